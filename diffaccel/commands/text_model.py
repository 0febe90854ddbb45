"""A model that writes text: found by name, folder or hub id, its options checked, and only then loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from diffaccel.commands import UsageError
from diffaccel.pipelines import bundled
from diffaccel.pipelines.source import INDEX, read_json

if TYPE_CHECKING:
    import torch

    from diffaccel.dlm.decoding import Decoding, TextMethod
    from diffaccel.pipelines.text import TextDiffusionPipeline

PIPELINE = "TextDiffusionPipeline"
CHECKPOINT = "config.json"


@dataclass(frozen=True)
class TextModel:
    """Where a model is, and what its files say; nothing is loaded.

    Attributes:
        name: as it was given.
        folder: with its files; of a hub id, all but the weights.
        facts: the pipeline's model_index.json, or the checkpoint's config.json.
        is_pipeline: which of the two.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    is_pipeline: bool

    @property
    def config(self) -> SimpleNamespace:
        """The configuration that the pipeline will have."""
        from diffaccel.pipelines.text import TextDiffusionPipeline

        parameters = inspect.signature(TextDiffusionPipeline.__init__).parameters.items()
        own = {name: each.default for name, each in parameters if each.default is not inspect.Parameter.empty}
        if self.is_pipeline:
            own |= {name: self.facts[name] for name in own.keys() & self.facts.keys()}
        else:
            own["shift"] = self.facts.get("model_type") == "Dream" or bool(self.facts.get("shift_logits"))
        return SimpleNamespace(**own | {"mask_token_id": own["mask_token_id"] or 0})  # which one changes no check

    def decoding(self, method: TextMethod | None, arguments: Mapping[str, Any]) -> Decoding:
        """How a call with these arguments will decode.

        Raises:
            UsageError: the call, or the method, would refuse them.
        """
        import numpy as np

        from diffaccel.dlm.conventions import Conventions
        from diffaccel.pipelines.text import TextDiffusionPipeline

        own = self.config
        conventions = Conventions(own.mask_token_id, own.eos_token_id, own.shift, own.block_causal)
        # A pipeline checks a call by its configuration alone, so the checks run without a model.
        unloaded: Any = SimpleNamespace(config=own, conventions=conventions)
        try:
            decoding = TextDiffusionPipeline.decoding(unloaded, **arguments)
            decoding = decoding if method is None else method.applied(decoding)
            decoding.course(np.zeros(1, dtype=np.int64), 0)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return decoding

    def load(self, dtype: torch.dtype, device: torch.device) -> TextDiffusionPipeline:
        """The pipeline.

        Raises:
            OSError: its files cannot be read.
            ValueError: a checkpoint of another kind.
        """
        from diffaccel.pipelines.text import TextDiffusionPipeline

        if not self.is_pipeline:
            place = self.name if not Path(self.name).is_dir() else self.folder
            return TextDiffusionPipeline.from_checkpoint(place, dtype, device)
        place = self.folder if self.name in bundled.TEXT else self.name
        try:
            pipe: TextDiffusionPipeline = TextDiffusionPipeline.from_pretrained(place, dtype=dtype).to(device)
        except Exception as error:
            raise OSError(f"cannot load {self.name}: {error}") from error
        return pipe


def find(model: str) -> TextModel:
    """A bundled name, a folder or a hub id, whose small files are fetched.

    Raises:
        UsageError: neither of these, or a model that writes no text.
        OSError: its files cannot be read or fetched.
    """
    if model in bundled.TEXT:
        folder = bundled.text_path(model)
    elif model and Path(model).is_dir():
        folder = Path(model)
        if not any((folder / name).is_file() for name in (INDEX, CHECKPOINT)):
            raise UsageError(
                f"{model} has neither {INDEX} nor {CHECKPOINT}: give the folder of a pipeline or checkpoint"
            )
    else:
        folder = _fetched(model)
    is_pipeline = (folder / INDEX).is_file()
    facts = read_json(str(folder), INDEX if is_pipeline else CHECKPOINT)
    if is_pipeline and (kind := facts.get("_class_name")) != PIPELINE:
        raise UsageError(f"{model} is a {kind}, not a {PIPELINE}: pictures are drawn by diffaccel generate")
    return TextModel(model, folder, facts, is_pipeline)


def _fetched(model: str) -> Path:
    owner, _, name = model.partition("/")
    if not owner or not name or "/" in name or owner in (".", "..", "~"):
        names = ", ".join(bundled.TEXT)
        hint = (
            " (it draws pictures: use diffaccel generate)" if model in (*bundled.NAMES, *bundled.UNCONDITIONAL) else ""
        )
        raise UsageError(f"there is no {model!r}{hint}: give {names}, a folder with a model, or a hub id (owner/name)")
    from diffaccel.dlm.weights import Source

    return Source.find(model).folder
