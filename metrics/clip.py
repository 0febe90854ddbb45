"""CLIP score: how well a picture fits its prompt, by the cosine of their two embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.metrics.extractor import as_bytes
from diffaccel.metrics.features import fingerprint
from diffaccel.metrics.ssim import check_pictures


class ClipScorer:
    """A CLIP model with its processors, in float32.

    Scores of different CLIP models do not compare, so a score is only worth anything beside `identity`.

    Args:
        model: a folder in Hugging Face form (`CLIPModel` with image processor and tokenizer), or a hub id.
        device: where the model runs.
        download: fetch a hub id that is not in the cache.

    Raises:
        OSError: the model is not there, or it is incomplete or damaged.
        ValueError: it is not a CLIP model.

    Attributes:
        identity: `name`, `weights` (see `features.fingerprint`) and `dimension` of the common space.
    """

    def __init__(self, model: str | Path, device: torch.device | str = "cpu", *, download: bool = False) -> None:
        # The image processor on Pillow: the other one needs torchvision and gives other numbers.
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.device = torch.device(device)
        name = _name(model)
        where = {"local_files_only": not download}
        try:
            _check_kind(model, where)
            self._images = CLIPImageProcessorPil.from_pretrained(str(model), **where)
            self._tokenizer = CLIPTokenizer.from_pretrained(str(model), **where)
            network, report = CLIPModel.from_pretrained(
                str(model), dtype=torch.float32, output_loading_info=True, **where
            )
        except _NotClipError:
            raise
        except Exception as error:  # each file format has errors of its own
            reason = " ".join(str(error).split())
            if not (download or Path(model).is_dir()):
                reason = "it is neither a folder nor whole in the hub's cache: give a folder, or allow --download"
            raise OSError(f"cannot load the CLIP model {model}: {reason}") from error
        if lacking := sorted(report["missing_keys"]):
            raise OSError(f"the CLIP model {model} lacks {len(lacking)} weights, among them {lacking[0]}")
        self._network: Any = network.eval().to(self.device)
        self._length = int(network.config.text_config.max_position_embeddings)
        self.identity: dict[str, Any] = {
            "name": name,
            "weights": fingerprint(network),
            "dimension": int(network.config.projection_dim),
        }

    @torch.no_grad()
    def scores(self, pictures: Tensor, prompts: Sequence[str], batch: int = 32, progress: bool = False) -> Tensor:
        """100 times the cosine of each picture's embedding and its prompt's (Hessel et al. 2021, without their factor).

        Negative cosines stay negative. torchmetrics' CLIPScore is the mean of these numbers, clamped at 0. A prompt
        longer than the model takes is cut, and a warning says so.

        Args:
            pictures: float32 [n, 3, h, w] in 0..1; rounded to bytes, then resized and cropped as the model asks for.
            prompts: n of them.
            batch: pictures the model sees at once.
            progress: show a progress bar on stderr.

        Returns:
            Shape (n,), float64, on the CPU.

        Raises:
            TypeError: pictures that are not floating point, or a single text.
            ValueError: pictures of another shape or range, or a number of prompts that does not fit.
        """
        check_pictures(pictures)
        if pictures.shape[1] != 3:
            raise ValueError(f"CLIP needs pictures of 3 channels, got {pictures.shape[1]}")
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of texts, got one text")
        if len(prompts) != len(pictures):
            raise ValueError(f"each picture needs a prompt: got {len(pictures)} pictures and {len(prompts)} prompts")
        self._warn_of_long(prompts)
        parts = []
        for start in tqdm(range(0, len(pictures), batch), desc="CLIP", unit="batch", disable=not progress):
            inputs = self._inputs(pictures[start : start + batch], list(prompts[start : start + batch]))
            out = self._network(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
            # Both come projected into the common space, and normalized.
            parts.append((out.image_embeds.double() * out.text_embeds.double()).sum(dim=1).cpu())
        return 100 * torch.cat(parts)

    def _inputs(self, pictures: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        rounded = as_bytes(pictures).permute(0, 2, 3, 1).cpu().numpy()
        images = self._images(list(rounded), input_data_format="channels_last", return_tensors="pt")
        text = self._tokenizer(prompts, padding=True, truncation=True, max_length=self._length, return_tensors="pt")
        return {
            "pixel_values": images["pixel_values"],
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
        }

    def _warn_of_long(self, prompts: Sequence[str]) -> None:
        long = sum(len(tokens) > self._length for tokens in self._tokenizer(list(prompts))["input_ids"])
        if long:
            warnings.warn(
                f"{long} of {len(prompts)} prompts have more than the {self._length} tokens "
                f"{self.identity['name']} takes: their ends do not count",
                stacklevel=3,
            )


class _NotClipError(ValueError):
    pass


def _name(model: str | Path) -> str:
    """The last part of a folder's path, or the hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _check_kind(model: str | Path, where: dict[str, bool]) -> None:
    from transformers import CLIPConfig

    config, _ = CLIPConfig.get_config_dict(str(model), **where)
    if (kind := config.get("model_type")) != "clip":
        raise _NotClipError(f"{model} holds a model of type {kind!r}, not 'clip': give a CLIPModel of text and images")
