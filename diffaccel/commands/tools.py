"""The metrics of the command line: which are meant, and the networks they need, loaded before anything is generated."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from diffaccel.commands import NotHereError, UsageError
from diffaccel.evaluation.tools import DISTRIBUTIONS, Reference, Tools, check_installed, check_names, is_statistics
from diffaccel.metrics import statistics
from diffaccel.metrics.clip import ClipScorer
from diffaccel.metrics.extractor import Extractor, Features, load_extractor
from diffaccel.metrics.folders import find, read_bytes
from diffaccel.metrics.inception import MissingWeights
from diffaccel.metrics.lpips import Lpips
from diffaccel.pipelines import bundled

DEFAULTS = ("psnr", "latent", "exact")
BUNDLED_DEFAULTS = ("psnr", "latent", "exact", "fid", "clip", "caption")
FOLDER_DEFAULTS = ("psnr", "exact")
SMALL, RESAMPLES = 512, 100
"""Up to this dimension distances are cheap enough to be made from so many resampled sets."""


def metric_names(args: argparse.Namespace) -> list[str]:
    """The metrics asked for, or those that need nothing that is not here.

    Raises:
        ValueError: an unknown metric.
        ImportError: one that needs a package that is not installed.
        UsageError: one that cannot be computed of what is compared.
    """
    is_bundled = args.images is None and args.model in bundled.NAMES
    defaults = FOLDER_DEFAULTS if args.images else BUNDLED_DEFAULTS if is_bundled else DEFAULTS
    names = check_names(args.metrics) if args.metrics else list(defaults)
    check_installed(names)
    if args.images and "latent" in names:
        raise UsageError("--metrics latent needs the pipeline: picture files hold no latents, leave it out")
    if "clip" in names and not (args.clip_model or is_bundled):
        raise UsageError("--metrics clip needs --clip-model: scores of different CLIP models do not compare")
    if "caption" in names and not (is_bundled or args.images):
        raise UsageError(f"--metrics caption reads pictures of {', '.join(bundled.NAMES)} only: leave it out")
    return names


def tools(args: argparse.Namespace, names: Sequence[str], device: torch.device, progress: bool) -> Tools:
    """The networks that the metrics need, and the reference's statistics.

    Raises:
        NotHereError: weights are missing.
        UsageError: a reference that cannot be read, or was made with another extractor.
        OSError: weights that are damaged.
    """
    is_bundled = args.images is None and args.model in bundled.NAMES
    wanted = [name for name in names if name in DISTRIBUTIONS]
    extractor = None
    if wanted:
        extractor = load(args, args.extractor or ("fd_digits" if is_bundled else "inception"), device)
    clip = checker = lpips = None
    if "clip" in names:
        clip = ClipScorer(args.clip_model or bundled.clip_path(), device, download=args.download)
    if "caption" in names:
        checker = bundled.checker()
    if "lpips" in names:
        try:
            lpips = Lpips(args.lpips_net, download=args.download, device=device)
        except MissingWeights as error:
            raise NotHereError(str(error)) from error
    reference, resamples = Reference(), args.resamples
    if extractor is not None:
        reference = _reference(args, extractor, is_bundled, progress)
        if resamples is None:
            resamples = RESAMPLES if extractor.identity.dimension <= SMALL else 0
    return Tools(names, extractor, reference, clip, lpips, checker, resamples or 0)


def as_data(chosen: Tools) -> dict[str, Any]:
    """The networks and the reference for the result."""
    statistic = chosen.reference.statistics
    distribution = chosen.extractor is not None
    return {
        "extractor": chosen.extractor.identity.as_dict() if chosen.extractor else None,
        "clip_model": chosen.clip.identity if chosen.clip else None,
        "lpips": chosen.lpips.identity if chosen.lpips else None,
        "reference": {"name": chosen.reference.name, "n": statistic.n if statistic else None} if distribution else None,
    }


def load(args: argparse.Namespace, name: str, device: torch.device) -> Extractor:
    """The extractor `name`, with the options of the command line.

    Raises:
        NotHereError: its weights are missing.
        UsageError: the file that was given is not there.
        ValueError: an unknown extractor, or weights that do not fit.
    """
    weights = Path(args.weights) if args.weights else None
    if weights is not None and not weights.is_file():
        raise UsageError(f"--weights {weights}: there is no such file")
    try:
        return load_extractor(name, weights=weights, resize=args.resize, download=args.download, device=device)
    except MissingWeights as error:
        raise NotHereError(str(error)) from error


def _reference(args: argparse.Namespace, extractor: Extractor, is_bundled: bool, progress: bool) -> Reference:
    given = args.reference or ("bundled" if is_bundled and args.extractor in (None, "fd_digits") else "full")
    if given == "full":
        return Reference()
    name = given
    if given == "bundled":
        statistic = bundled.renders_path(args.model) if is_bundled else bundled.renders_path()
        given, name = str(statistic), "renders of held-out handwriting"
    path = Path(given)
    if path.is_dir():
        return Reference(name, statistics.of(features_of(find(path).files, extractor, progress), extractor.identity))
    if not is_statistics(path):
        raise UsageError(f"--reference {given} is neither a folder of pictures nor a statistics file (.npz)")
    loaded = statistics.load(path)
    try:
        statistics.check(loaded, extractor.identity, trust=args.trust_reference)
    except ValueError as error:
        hint = str(error).replace("trust=True", "--trust-reference")
        raise UsageError(f"--reference {given}: {hint}") from error
    return Reference(name, loaded)


def features_of(files: Sequence[Path], extractor: Extractor, progress: bool) -> Features:
    """Features of picture files, which may differ in size if the extractor resizes."""
    parts = []
    with tqdm(total=len(files), desc="reference", unit="picture", disable=not progress) as bar:
        for batch in _batches(files):
            parts.append(extractor(read_bytes(batch)))
            bar.update(len(batch))
    return Features.concatenate(parts)


def _batches(files: Sequence[Path], most: int = 64) -> Iterator[list[Path]]:
    """Neighbouring files of one size, at most so many at once."""
    for _, group in groupby(files, key=_size):
        same = list(group)
        yield from (same[start : start + most] for start in range(0, len(same), most))


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read the picture {file}: {error}") from error
