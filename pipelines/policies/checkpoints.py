"""Checkpoints of real-stanford/diffusion_policy's transformer policies, read into the parts of a policy pipeline.

Sizes are read off the shapes of the parameters; what the shapes do not tell, such as the number of attention heads, is
asked for. Pickled files are opened without running code from them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion

State = Mapping[str, Tensor]

_MODEL, _NORMALIZER = "model.", "normalizer.params_dict."
# Parts of a policy that hold nothing a pipeline needs.
_UNUSED = re.compile(r"_dummy_variable|mask_generator\.|normalizer\.params_dict\.[^.]+\.input_stats\.")


@dataclass(frozen=True)
class Checkpoint:
    """A network and its normalizer, with what the shapes tell.

    Attributes:
        denoiser: the network, in evaluation mode.
        normalizer: of observations and actions.
        horizon: actions in a trajectory.
        n_obs_steps: observations given.
    """

    denoiser: TransformerForDiffusion
    normalizer: LinearNormalizer
    horizon: int
    n_obs_steps: int


def published_scheduler() -> DDPMScheduler:
    """The scheduler of the published configurations.

    All by keyword: what is given by position, other schedulers of diffusers do not take over.
    """
    return DDPMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", variance_type="fixed_small", clip_sample=True
    )


def read(source: State | str | Path, n_head: int = 4, ema: bool = True) -> Checkpoint:
    """The network and the normalizer of a checkpoint.

    Args:
        source: a state dict of a low-dimensional transformer policy; or a file of one, a .safetensors, .pt or .ckpt,
            also with the payload that training writes: `{"state_dicts": {"model": ..., "ema_model": ...}}`.
        n_head: attention heads, which no shape tells; 4 in the published configurations.
        ema: take the averaged weights of a payload that has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read safely, parameters that are missing, unknown or of another shape, no
            observation tokens, or heads that do not divide the width.
    """
    state = policy_state(source, ema)
    network = {name.removeprefix(_MODEL): value for name, value in state.items() if name.startswith(_MODEL)}
    fields = {name.removeprefix(_NORMALIZER): value for name, value in state.items() if name.startswith(_NORMALIZER)}
    unknown = [name for name in state if not name.startswith((_MODEL, _NORMALIZER)) and not _UNUSED.search(name)]
    if unknown:
        raise ValueError(f"this is no low-dimensional transformer policy: it has {_named(unknown)} besides its model")
    config = architecture(network, n_head)
    sizes = {"obs": config["cond_dim"], "action": config["input_dim"]}
    normalizer = _normalizer({name: value for name, value in fields.items() if "input_stats" not in name}, sizes)
    denoiser = TransformerForDiffusion(**config)
    _load(denoiser, {name: value for name, value in network.items() if not _UNUSED.search(name)})
    return Checkpoint(denoiser.eval(), normalizer, config["horizon"], config["n_obs_steps"])


def policy_state(source: State | str | Path, ema: bool = True) -> dict[str, Tensor]:
    """The state dict of a policy, from a file or a payload if need be; see `read`."""
    payload = source if isinstance(source, Mapping) else _opened(Path(source))
    states = payload.get("state_dicts")
    if isinstance(states, Mapping):
        name = "ema_model" if ema and "ema_model" in states else "model"
        if name not in states:
            raise ValueError(f"the payload has no state dict named model, only {_named(list(states))}")
        payload = states[name]
    wrong = [str(name) for name, value in payload.items() if not isinstance(value, Tensor)]
    if wrong or not payload:
        raise ValueError(f"this is no state dict of tensors: {_named(wrong) if wrong else 'it is empty'}")
    return dict(payload)


def architecture(network: State, n_head: int) -> dict[str, Any]:
    """The arguments of `TransformerForDiffusion` that give parameters of these shapes.

    Raises:
        ValueError: a parameter that tells is missing, or a network without observation tokens.
    """
    needed = ["input_emb.weight", "head.weight", "pos_emb", "cond_pos_emb", "cond_obs_emb.weight"]
    if missing := [f"{_MODEL}{name}" for name in needed if name not in network]:
        raise ValueError(
            f"{_named(missing)} not found: this must be a transformer policy with observations as condition tokens "
            "(obs_as_cond=True); policies of other kinds are accelerated as they are: accelerate_pipeline(policy, ...)"
        )
    width, actions = network["input_emb.weight"].shape
    if width % n_head:
        raise ValueError(
            f"n_head={n_head} does not divide the width {width}: give the number the policy was trained with"
        )
    return {
        "input_dim": actions,
        "output_dim": len(network["head.weight"]),
        "horizon": network["pos_emb"].shape[1],
        "n_obs_steps": network["cond_pos_emb"].shape[1] - 1,
        "cond_dim": network["cond_obs_emb.weight"].shape[1],
        "n_layer": _count(network, "decoder.layers"),
        "n_head": n_head,
        "n_emb": width,
        "causal_attn": "mask" in network,
        "n_cond_layers": _count(network, "encoder.layers"),
    }


def _opened(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and opening that could run code from it. Where you trust it, write its "
            "tensors to a file of their own where the project it comes from is installed: payload = torch.load(path, "
            "pickle_module=dill, weights_only=False); torch.save(payload['state_dicts']['ema_model'], 'policy.pt')"
        ) from error
    except (RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, as if it were cut off: {error}") from error
    if not isinstance(payload, Mapping):
        raise ValueError(f"{path} holds a {type(payload).__name__}, not a state dict")
    return payload


def _normalizer(fields: State, sizes: Mapping[str, int]) -> LinearNormalizer:
    """`scale` and `offset` of the fields "obs" and "action", which have so many numbers."""
    wanted = [f"{field}.{part}" for field in ("obs", "action") for part in ("scale", "offset")]
    if missing := [f"{_NORMALIZER}{name}" for name in wanted if name not in fields]:
        raise ValueError(f"the normalizer is incomplete: {_named(missing)} not found")
    if other := [f"{_NORMALIZER}{name}" for name in fields if name not in wanted]:
        raise ValueError(f"the normalizer has fields beside obs and action: {_named(other)}")
    made: LinearNormalizer = LinearNormalizer(sizes["obs"], sizes["action"])
    state = {}
    for name, value in fields.items():
        field, part = name.split(".")
        known = {"obs": "observation", "action": "action"}[field]
        # One number for all dimensions is a normalizer that leaves values as they are.
        state[f"{known}_{part}"] = value.float().expand(sizes[field]) if value.numel() == 1 else value.float()
    _load(made, state)
    return made


def _load(module: torch.nn.Module, state: State) -> None:
    own = module.state_dict()
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    differing = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {"not found": missing, "not known": unknown, "of another shape": differing}
    if said := "; ".join(f"{what}: {_named(names)}" for what, names in problems.items() if names):
        raise ValueError(f"the parameters do not make a {type(module).__name__}: {said}")
    module.load_state_dict(state)


def _count(network: State, layers: str) -> int:
    found = (re.match(rf"{re.escape(layers)}\.(\d+)\.", name) for name in network)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _named(names: list[str], most: int = 5) -> str:
    """Names as a sentence has them, the first few if there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
