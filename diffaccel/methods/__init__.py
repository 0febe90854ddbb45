"""Methods of acceleration by name: where features are caught, when computed, how they are forecast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from diffaccel.forecast import Forecaster
from diffaccel.methods.auto import Auto
from diffaccel.methods.block_cache import BlockCache
from diffaccel.methods.blockwise import Acs, Bac, Unified, Uniform
from diffaccel.methods.by_effect import Effect
from diffaccel.methods.checks import nearest
from diffaccel.methods.conventions import is_diffusers_config, translated
from diffaccel.methods.dkv import Dkv
from diffaccel.methods.fast_dllm import FastDllm
from diffaccel.methods.first_block import FirstBlock
from diffaccel.methods.fitted import Fitted
from diffaccel.methods.hyca import HyCa
from diffaccel.methods.innovation import Innovation
from diffaccel.methods.morse import Morse
from diffaccel.methods.sparsed import SparseD
from diffaccel.methods.speeds import SPEEDS
from diffaccel.methods.ssd import Ssd
from diffaccel.methods.taylorseer import TaylorSeer
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.dimensions import ByDimension
    from diffaccel.dlm.decoding import TextMethod
    from diffaccel.sites import Site


class Method(Protocol):
    """What a session asks of a method. Implementations are frozen dataclasses, so that options can be replaced."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def level(self) -> str:
        """Level of sites, see `diffaccel.sites`."""

    @property
    def order(self) -> int:
        """Anchors a forecast uses, less one."""

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """Who computes when in a run of `steps` steps."""

    def forecaster(self, site: Site, steps: int) -> Forecaster | ByDimension:
        """The rule by which the feature of `site` is forecast in a run of `steps` steps."""


Kind = type[TaylorSeer | FirstBlock | HyCa | Fitted | Auto | Uniform | Acs | Effect | Innovation | Morse]
TextKind = type[Dkv | FastDllm | BlockCache | SparseD | Ssd]

METHODS: Mapping[str, Kind | TextKind] = MappingProxyType(
    {
        "taylorseer": TaylorSeer,
        "first_block": FirstBlock,
        "hyca": HyCa,
        "fitted": Fitted,
        "auto": Auto,
        "bac": Bac,
        "acs": Acs,
        "unified": Unified,
        "uniform": Uniform,
        "effect": Effect,
        "innovation": Innovation,
        "morse": Morse,
        "dkv": Dkv,
        "fast_dllm": FastDllm,
        "block_cache": BlockCache,
        "sparsed": SparseD,
        "ssd": Ssd,
    }
)


@runtime_checkable
class Calibrated(Method, Protocol):
    """A method that learns from a calibration of the pipeline."""

    def calibrated(self, pipe: Any) -> Method:
        """The method with its calibration found and checked, or made."""

    def for_network(self, name: str) -> Method:
        """The method for one of a pipeline's denoisers."""


def of_network(method: Method, name: str) -> Method:
    """The method for one of a pipeline's denoisers; most do not tell them apart."""
    return method.for_network(name) if isinstance(method, Calibrated) else method


def resolve(method: Any, pipeline: str, options: Mapping[str, Any]) -> Method:
    """The method meant, with `options` applied.

    Args:
        method: a name in `METHODS`, a word in `SPEEDS`, a file of `diffaccel.save_config`, a configuration of one of
            diffusers' caches, or a method.
        pipeline: class name of the pipeline, which decides the preset.
        options: of the method.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, or a configuration that cannot be had here.
        TypeError: an option the method does not have, something that is no method, or a method for text.
    """
    found: Method = _resolved(method, pipeline, options)
    if is_for_text(found):
        raise TypeError(
            f"{type(found).__name__} accelerates diffusion language models (TextDiffusionPipeline, LLaDA2Pipeline), "
            f"and {pipeline} is none. Methods for it: {', '.join(names(for_text=False))}"
        )
    return found


def resolve_text(method: Any, pipeline: str, options: Mapping[str, Any]) -> TextMethod:
    """The method meant for a pipeline of a diffusion language model; arguments and errors as in `resolve`."""
    found: TextMethod = _resolved(method, pipeline, options)
    if not is_for_text(found):
        raise TypeError(
            f"{type(found).__name__} forecasts features of pipelines with timesteps, and {pipeline} writes text. "
            f"Methods for it: {', '.join(names(for_text=True))}"
        )
    return found


def is_for_text(method: Any) -> bool:
    """Whether a method, or a class of methods, is one for diffusion language models."""
    return bool(getattr(method, "is_for_text", False))


def names(for_text: bool) -> list[str]:
    """Names of the methods for diffusion language models, or of all others."""
    return [name for name, kind in METHODS.items() if is_for_text(kind) == for_text]


def _resolved(method: Any, pipeline: str, options: Mapping[str, Any]) -> Any:
    from diffaccel.methods.configuration import is_config_file, load_config

    if isinstance(method, str) and method in SPEEDS:
        method, options = "taylorseer", {**SPEEDS[method], **options}
    if is_config_file(method):
        method = load_config(method, pipeline)
    elif isinstance(method, str):
        if method not in METHODS:
            known = (*METHODS, *SPEEDS)
            raise ValueError(
                f"unknown method {method!r}{nearest(method, known)} Methods: {', '.join(METHODS)}; by speed: "
                f"{', '.join(SPEEDS)}; or a .json or .yaml file."
            )
        kind = METHODS[method]
        _check_options(method, kind, options)
        return kind.preset(pipeline, **options)
    elif is_diffusers_config(method):
        method = translated(method)
    parts = ("applied",) if is_for_text(method) else ("plan", "forecaster", "level")
    if isinstance(method, type) or not all(hasattr(method, part) for part in parts):
        raise TypeError(
            f"method must be a name ({', '.join((*METHODS, *SPEEDS))}), a .json or .yaml file, a configuration of "
            f"diffusers or an instance such as TaylorSeer(), got {method!r}"
        )
    if not options:
        return method
    _check_options(type(method).__name__, type(method), options)
    return dataclasses.replace(method, **options)


def written_out(method: Method) -> str:
    """A method with all options that are set, as Python would write it: "TaylorSeer(interval=6, order=1, ...)"."""
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.repr}
    set_options = ", ".join(f"{name}={_shown(value)}" for name, value in options.items() if value is not None)
    return f"{type(method).__name__}({set_options})"


def _shown(value: Any) -> str:
    """An option as Python would write it; a network, which is a page, by its class."""
    written = repr(value)
    return f"<{type(value).__name__}>" if hasattr(value, "state_dict") else written


def _check_options(name: str, kind: type[Any], options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(kind) if field.repr]
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}{nearest(option, known)} Options: {', '.join(known)}.")
