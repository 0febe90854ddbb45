"""Methods of acceleration by name: where features are caught, when computed, how they are forecast."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from diffaccel.forecast import Forecaster
from diffaccel.methods.conventions import is_diffusers_config, translated
from diffaccel.methods.first_block import FirstBlock
from diffaccel.methods.fitted import Fitted
from diffaccel.methods.hyca import HyCa
from diffaccel.methods.taylorseer import TaylorSeer
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.dimensions import ByDimension
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


METHODS: Mapping[str, type[TaylorSeer | FirstBlock | HyCa | Fitted]] = MappingProxyType(
    {
        "taylorseer": TaylorSeer,
        "first_block": FirstBlock,
        "hyca": HyCa,
        "fitted": Fitted,
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


def resolve(method: str | Method, pipeline: str, options: Mapping[str, Any]) -> Method:
    """The method meant by a name, or an instance, with `options` applied; `pipeline` is the class the preset is for.

    Raises:
        ValueError: an unknown name.
        TypeError: an option the method does not have, or something that is no method.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}{_nearest(method, METHODS)} Methods: {', '.join(METHODS)}.")
        kind = METHODS[method]
        _check_options(method, kind, options)
        return kind.preset(pipeline, **options)
    if is_diffusers_config(method):
        method = translated(method)
    if isinstance(method, type) or not all(hasattr(method, part) for part in ("plan", "forecaster", "level")):
        raise TypeError(
            f"method must be a name ({', '.join(METHODS)}) or an instance such as TaylorSeer(), got {method!r}"
        )
    if not options:
        return method
    _check_options(type(method).__name__, type(method), options)
    return dataclasses.replace(method, **options)


def written_out(method: Method) -> str:
    """A method with all options that are set, as Python would write it: "TaylorSeer(interval=6, order=1, ...)"."""
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.repr}
    set_options = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
    return f"{type(method).__name__}({set_options})"


def _check_options(name: str, kind: type[Any], options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(kind) if field.repr]
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}{_nearest(option, known)} Options: {', '.join(known)}.")


def _nearest(word: str, words: Sequence[str] | Mapping[str, Any]) -> str:
    match = difflib.get_close_matches(word, list(words), n=1)
    return f": did you mean {match[0]!r}?" if match else "."
