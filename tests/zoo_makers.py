"""What the arguments of a denoiser's `forward` are made of, told by their names: latents, text, masks, positions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

FRAMES, HEIGHT, WIDTH, TEXT = 2, 8, 8, 6  # of latents, and the number of text tokens
LAYOUTS = {  # axes of the latents: channels, frames, height, width; L tokens
    "image": "CHW",
    "video": "CFHW",
    "frames": "FCHW",
    "grid": "FHWC",
    "tokens": "LC",
    "sequence": "CL",
    "vector": "C",
    "list": "CFHW",
}


@dataclass
class Sketch:
    """How to make the arguments of one call.

    Attributes:
        network: what is called.
        layout: a name in `LAYOUTS`, that of the latents.
        widths: number of channels, by argument.
        patch: height and width of a token in the latents.
        axes: number of coordinates of a position.
        given: the optional arguments that are given.
        choices: which of its possible makers an argument takes, by name.
    """

    network: nn.Module
    layout: str
    widths: dict[str, int]
    patch: int = 1
    axes: int = 3
    given: set[str] = field(default_factory=set)
    choices: dict[str, int] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, height and width of the latents, in tokens."""
        frames = FRAMES if "F" in LAYOUTS[self.layout] else 1
        return frames, HEIGHT // self.patch, WIDTH // self.patch

    @property
    def tokens(self) -> int:
        """Number of tokens of the latents."""
        return prod(self.grid)


Maker = Callable[[Sketch, str, Generator], Any]


def noise(*shape: int) -> Maker:
    """Makes normal noise of a shape."""
    return lambda s, name, g: torch.randn(shape, generator=g)


def constant(value: Any) -> Maker:
    """Makes the same value every time."""
    return lambda s, name, g: value


def ones(shape: Callable[[Sketch], tuple[int, ...]], dtype: torch.dtype) -> Maker:
    """Makes a mask that hides nothing."""
    return lambda s, name, g: torch.ones(shape(s), dtype=dtype)


def latents(s: Sketch, name: str, g: Generator) -> Any:
    """Noise in the layout of the sketch."""
    sizes = {"C": s.widths[name], "F": FRAMES, "H": HEIGHT, "W": WIDTH, "L": s.tokens}
    value = torch.randn(1, *(sizes[axis] for axis in LAYOUTS[s.layout]), generator=g)
    return list(value) if s.layout == "list" else value


def _text(s: Sketch, name: str, g: Generator) -> Tensor:
    return torch.randn(1, TEXT, s.widths[name], generator=g)


def _text_list(s: Sketch, name: str, g: Generator) -> list[Tensor]:
    return list(_text(s, name, g))


def _vector(s: Sketch, name: str, g: Generator) -> Tensor:
    return torch.randn(1, s.widths[name], generator=g)


def _text_mask(dtype: torch.dtype) -> Maker:
    return ones(lambda s: (1, TEXT), dtype)


def _image_ids(s: Sketch, name: str, g: Generator) -> Tensor:
    """Positions of the latents' tokens, with as many coordinates as the network wants."""
    ids = torch.cartesian_prod(*(torch.arange(n) for n in s.grid)).float()
    return torch.cat([torch.zeros(len(ids), s.axes), ids], 1)[:, -s.axes :]


def _text_ids(s: Sketch, name: str, g: Generator) -> Tensor:
    return torch.zeros(TEXT, s.axes)


def _joint_ids(s: Sketch, name: str, g: Generator) -> Tensor:
    return torch.cat([_text_ids(s, name, g), _image_ids(s, name, g)])


def _batched(maker: Maker) -> Maker:
    return lambda s, name, g: maker(s, name, g)[None]


def _axis(index: int) -> Maker:
    return lambda s, name, g: s.grid[index]


def _positions(s: Sketch, name: str, g: Generator) -> list[Tensor]:
    return [torch.arange(n) for n in s.grid]


LATENTS = re.compile(r"^(hidden_states|sample|x|latent_image_embeds)$")
TIME = re.compile(r"^(t|r|time|timesteps?|sigma|timestep_ratio|.*_timesteps?|timestep_.*|.*_time)$")

# What makes an argument, by a pattern of its name; several makers are tried in turn.
_MAKERS: tuple[tuple[str, tuple[Maker, ...]], ...] = (
    (LATENTS.pattern, (latents,)),
    (r"(encoder_hidden_states|text).*mask.*", tuple(map(_text_mask, (torch.bool, torch.float, torch.long)))),
    (r"encoder_(attention_)?mask(_\d)?", tuple(map(_text_mask, (torch.bool, torch.float)))),
    (r"mask", (_text_mask(torch.bool),)),
    (r"attention_mask", (ones(lambda s: (1, s.tokens + TEXT), torch.bool), _text_mask(torch.bool))),
    (r"text_lens", (constant(torch.tensor([TEXT])),)),
    (r"img_ids", (_image_ids, _batched(_image_ids))),
    (r"txt_ids", (_text_ids, _batched(_text_ids))),
    (r"position_ids", (_joint_ids, _batched(_joint_ids))),
    (r"img_shapes", (lambda s, name, g: [[s.grid]],)),
    (r"(original|target)_size|crop_coords", (constant(torch.tensor([[float(HEIGHT), float(WIDTH)]])),)),
    (r"(audio_)?num_frames", (_axis(0),)),
    (r"height", (_axis(1),)),
    (r"width", (_axis(2),)),
    (r"visual_rope_pos", (_positions,)),
    (r"text_rope_pos", (constant(torch.arange(TEXT)),)),
    (r"guidance", (constant(torch.tensor([3.0])),)),
    (r"fps", (constant(8), constant(torch.tensor([8.0])))),
    (r"class_labels", (constant(torch.tensor([1])),)),
    (r"added_time_ids", (constant(torch.ones(1, 3)),)),
    (r".*(pooled|global|proj_embedding|clip_img|image_embeddings).*", (_vector, _text)),
    (r".*(encoder_hidden_states|text|cap_feats|prompt_embeds|clip|image_embeds).*|c", (_text, _text_list, _vector)),
    (r".*(latents|hidden_states|effnet).*", (latents, _text)),
)


def makers_of(name: str) -> tuple[Maker, ...]:
    """The makers of an argument of this name, likeliest first; none if no rule knows it."""
    return next((makers for pattern, makers in _MAKERS if re.fullmatch(pattern, name)), ())
