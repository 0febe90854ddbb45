"""Which metrics an evaluation reports, and the networks they need: chosen and checked before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from diffaccel.metrics.clip import ClipScorer
from diffaccel.metrics.extractor import Extractor
from diffaccel.metrics.lpips import Lpips
from diffaccel.metrics.statistics import Statistics

Better = Literal["higher", "lower"]
Kind = Literal["pair", "distribution", "prompt"]


@dataclass(frozen=True)
class Metric:
    """A column of the result.

    Attributes:
        key: name in the data.
        label: name in tables.
        unit: of the value, "" if it has none.
        better: which direction is.
        kind: "pair" for what compares a picture with the full run's, "prompt" for what judges a picture by its prompt,
            "distribution" for what compares sets of pictures.
        about: one sentence.
        digits: after the point.
    """

    key: str
    label: str
    unit: str
    better: Better
    kind: Kind
    about: str
    digits: int

    def as_dict(self) -> dict[str, Any]:
        """The column as data."""
        return asdict(self)


PAIRS = {
    "psnr": Metric("psnr", "PSNR", "dB", "higher", "pair", "Peak signal-to-noise ratio to the full run's picture.", 1),
    "ssim": Metric("ssim", "SSIM", "", "higher", "pair", "Structural similarity to the full run's picture.", 4),
    "lpips": Metric("lpips", "LPIPS", "", "lower", "pair", "Perceptual distance to the full run's picture.", 4),
    "latent": Metric(
        "latent", "latent L2", "", "lower", "pair", "Distance to the full run's final latents, relative to them.", 4
    ),
    "exact": Metric(
        "exact", "exact", "%", "higher", "pair", "Pictures whose latents equal the full run's bit by bit.", 1
    ),
}
PROMPTS = {
    "clip": Metric("clip", "CLIP score", "", "higher", "prompt", "100 times the cosine of picture and prompt.", 2),
    "caption": Metric(
        "caption", "captions", "%", "higher", "prompt", "Pictures in which the bundled checker reads their prompt.", 1
    ),
}
DISTRIBUTIONS: dict[str, tuple[str, Better, str, int]] = {
    "fid": ("fd", "lower", "Fréchet distance of features to {reference}.", 2),
    "sfid": ("sfd", "lower", "Fréchet distance of spatial features to {reference}.", 2),
    "kid": ("kd", "lower", "Kernel distance of features to {reference}, unbiased at any number of pictures.", 4),
    "is": ("is", "higher", "Inception score: how sure and how varied the classes of the pictures are.", 2),
    "precision": ("precision", "higher", "Share of pictures that lie among {reference}.", 3),
    "recall": ("recall", "higher", "Share of {reference} that lie among the pictures.", 3),
}
"""By name: kind of `Extractor.label`, direction, sentence, digits."""
NAMES = (*PAIRS, *DISTRIBUTIONS, *PROMPTS)

_NEEDED = {"ssim": ("torchmetrics", "eval"), "kid": ("torchmetrics", "eval"), "is": ("torchmetrics", "eval")}
_NEEDED |= {"lpips": ("lpips", "fid")}


@dataclass(frozen=True)
class Reference:
    """What distribution metrics compare with; without statistics it is the full run."""

    name: str = "the full run"
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Tools:
    """The metrics of an evaluation and what they need.

    Attributes:
        names: of the metrics, from `NAMES`.
        extractor: for distribution metrics.
        reference: for distribution metrics.
        clip: for the CLIP score.
        lpips: for LPIPS.
        checker: the bundled network that reads captions, for pictures of the bundled pipelines.
        resamples: resampled sets behind an interval of a distribution metric; 0 for no interval.
    """

    names: Sequence[str]
    extractor: Extractor | None = None
    reference: Reference = Reference()
    clip: ClipScorer | None = None
    lpips: Lpips | None = None
    checker: Any = None
    resamples: int = 0

    def metrics(self, folder: bool = False) -> list[Metric]:
        """The columns of the result, in the order of `NAMES`; `folder` if there is no full run among the candidates."""
        result = []
        for name in (name for name in NAMES if name in self.names):
            if name in PAIRS:
                metric = PAIRS[name]
                if name == "exact" and folder:
                    metric = replace(metric, about="Pictures that equal the reference's in every pixel.")
                result.append(
                    replace(metric, about=metric.about.replace("full run", "reference")) if folder else metric
                )
            elif name in PROMPTS:
                result.append(self._prompt(name))
            else:
                result.append(self._distribution(name))
                if name == "fid" and self.reference.statistics is not None and not folder:
                    about = "Fréchet distance of features to the full run's pictures of the same seeds."
                    result.append(
                        Metric("fid_full", f"{result[-1].label} to full", "", "lower", "distribution", about, 3)
                    )
        return result

    def _prompt(self, name: str) -> Metric:
        metric = PROMPTS[name]
        if name == "clip" and self.clip is not None and self.clip.identity["name"].startswith("clip_"):
            return replace(metric, label=self.clip.identity["name"])
        return metric

    def _distribution(self, name: str) -> Metric:
        assert self.extractor is not None
        kind, better, about, digits = DISTRIBUTIONS[name]
        label = self.extractor.label(kind)
        return Metric(name, label, "", better, "distribution", about.format(reference=self.reference.name), digits)

    def warnings(self, n: int) -> list[str]:
        """What has to be said about metrics of n pictures."""
        if self.extractor is None or not {"fid", "sfid"} & set(self.names):
            return []
        name, dimension = self.extractor.label("fd"), self.extractor.identity.dimension
        result = []
        if n <= dimension:
            result.append(
                f"{name} from {n} pictures: fewer than its {dimension} features, so the covariance is singular and the "
                "distance far too large; compare candidates with each other only"
            )
        elif n < 5000:
            result.append(f"{name} from {n} pictures is biased upwards; published distances take 5,000 to 50,000")
        if self.extractor.identity.name != "inception":
            result.append(f"{name} is not FID: it uses another network and cannot be held against published FIDs")
        return result


def check_installed(names: Sequence[str]) -> None:
    """Raise ImportError if a metric needs a package that is missing."""
    for name in names:
        package, extra = _NEEDED.get(name, ("", ""))
        if package and find_spec(package) is None:
            raise ImportError(f"--metrics {name} needs {package}: pip install 'diffaccel[{extra}]', or leave it out")


def check_names(text: str) -> list[str]:
    """The metrics of a list like "fid,clip,psnr".

    Raises:
        ValueError: an unknown name, or none.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--metrics {text!r} names none: choose from {', '.join(NAMES)}")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"--metrics knows no {name!r}: choose from {', '.join(NAMES)}")
    return names


def is_statistics(path: Path) -> bool:
    """Whether a reference is a file of statistics rather than a folder of pictures."""
    return path.suffix == ".npz"
