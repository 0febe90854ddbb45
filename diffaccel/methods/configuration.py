"""Methods in files: a mapping of the method's name and its options, as JSON or YAML."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffaccel.methods import METHODS, Method
from diffaccel.methods.auto import Auto
from diffaccel.methods.cache_dit import from_cache_config
from diffaccel.methods.checks import nearest
from diffaccel.methods.speeds import SPEEDS
from diffaccel.plan import Plan
from diffaccel.schedule_file import WHAT, BlockSchedules

SUFFIXES = (".json", ".yaml", ".yml")
_LISTS = re.compile(r"\[\n([\s\d,]+)\]")  # of whole numbers, one a line


def save_config(what: Any, path: str | Path) -> None:
    """Write a method with its options to a file.

    Args:
        what: a method, the acceleration of a pipeline (`pipe.acceleration`) or an accelerated pipeline. Of a
            calibration its path is written, relative to the file, or its prompts; one that lies in the pipeline's own
            folder is found there again. Schedules of blocks are written whole. Of `auto` the choice is written, if one
            was made: all that is known of it, with its calibration beside it, as JSON; only the method as YAML.
        path: ends in .json, .yaml or .yml, which decides the format.

    Raises:
        TypeError: no method of diffaccel.
        ValueError: another ending, or a calibration that is in no file.
    """
    path = _checked(path)
    method = getattr(getattr(what, "acceleration", what), "method", what)
    if isinstance(method, Auto) and method.evaluations is not None:
        if path.suffix.lower() == ".json":
            from diffaccel.auto import files

            files.save(method.made, path)
            return
        method = method.chosen
    data = _as_data(method, path.parent)
    if path.suffix == ".json":
        path.write_text(_LISTS.sub(_on_one_line, json.dumps(data, indent=1)) + "\n")
    else:
        import yaml

        path.write_text(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120))


def load_config(path: str | Path, pipeline: str = "") -> Method:
    """The method that a file tells.

    Args:
        path: a file of `save_config` or of schedules of blocks, or one written by hand: `method` is a name in
            `METHODS` or a word in `SPEEDS`, all other keys are options. A file for cache-dit is taken where its
            `cache_config` can be had here, and a choice of auto is what it chose.
        pipeline: class name of the pipeline, whose preset holds for options that the file leaves out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or has an unknown key or a value that does not fit.
    """
    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} with a configuration")
    data = _read(path)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(f"{path} must hold names and values, such as method: taylorseer and interval: 4")
    if {"target", "conditions"} <= data.keys():
        return Auto(choice=path)
    try:
        return _from_data(data, path.parent, pipeline)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_config_file(method: object) -> bool:
    """Whether something names a file rather than a method."""
    return isinstance(method, Path) or (isinstance(method, str) and Path(method).suffix.lower() in SUFFIXES)


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a configuration is a file that ends in {', '.join(SUFFIXES)}, got {path}")
    return path


def _read(path: Path) -> Any:
    text = path.read_text()
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error


def _as_data(method: Any, folder: Path) -> dict[str, Any]:
    name = next((name for name, kind in METHODS.items() if type(method) is kind), None)
    if name is None:
        raise TypeError(f"only methods of diffaccel can be saved ({', '.join(METHODS)}), got {method!r}")
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.repr}
    if "schedules" in _fields(type(method)):
        return {"method": name, **_of_blocks(method, options, folder)}
    plain = {key: _plain(key, value, folder) for key, value in options.items()}
    return {"method": name, **{key: value for key, value in plain.items() if value is not None}}


def _of_blocks(method: Any, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Options of a method with schedules of blocks, and these, if it has them."""
    given = options.pop("calibration")
    schedules = given if method.schedules is None and isinstance(given, BlockSchedules) else method.schedules
    if schedules is None and isinstance(given, str) and Path(given).suffix != ".json":
        given = [given]  # a prompt, no path
    elif schedules is None and given is not None and not isinstance(given, str | Path | list):
        raise ValueError(
            "observations are in no file: accelerate a pipeline with the method, and save its acceleration, which has "
            "the schedules that were made of them"
        )
    options |= {"schedules": schedules.as_data()} if schedules is not None else {"calibration": given}
    plain = {key: value if key == "schedules" else _plain(key, value, folder) for key, value in options.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def _fields(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _plain(name: str, value: Any, folder: Path) -> Any:
    """An option as JSON has it."""
    if isinstance(value, Plan):
        rows = [value.computed(i) for i in range(len(value.rows))]
        return {"steps": value.steps, "computed": rows[0] if len(rows) == 1 else rows}
    if hasattr(value, "traces"):  # a calibration that was found: what it was found by is saved
        if value.source is None and not value.found:
            raise ValueError(_IN_NO_FILE)
        value = value.source
    if name == "dot":
        value = _place_of(value)
    if name in _PATHS and isinstance(value, str | Path) and not _on_the_hub(name, value):
        try:
            return os.path.relpath(Path(value), folder)
        except ValueError:  # another drive
            return str(Path(value).resolve())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}[{key!r}]", item, folder) for key, item in value.items()}
    if isinstance(value, Sequence) and all(isinstance(item, str | int) for item in value):
        return list(value)
    raise ValueError(_IN_NO_FILE if name == "calibration" else f"{name}={value!r} cannot be written to a file")


def _on_the_hub(name: str, value: str | Path) -> bool:
    """Whether a Dot is on the hub, under "owner/name", rather than in a folder."""
    return name == "dot" and not Path(value).exists() and str(value).count("/") == 1


def _place_of(dot: Any) -> Any:
    """Where a Dot is found again. Raises ValueError if it is in no folder."""
    if dot is None or isinstance(dot, str | Path):
        return dot
    if (place := getattr(getattr(dot, "config", None), "_name_or_path", "")) and Path(place).is_dir():
        return place
    raise ValueError(
        "this Dot is in no folder: write it with dot.save_pretrained(folder), accelerate with dot=folder, and save the "
        "configuration then"
    )


_PATHS = (
    "calibration",
    "choice",
    "dot",
    "save",
)  # options that name files, which are written relative to the configuration
_IN_NO_FILE = (
    "this calibration is in no file: write it with save(path) of its trace, or of the method's statistics, give the "
    "method calibration=path, and save the configuration then"
)


def _from_data(data: dict[str, Any], folder: Path, pipeline: str) -> Method:
    if "cache_config" in data:
        return from_cache_config(data)
    if data.get("what") == WHAT:
        data = {"method": data.get("rule"), **_mapping(data.get("settings")), "schedules": data}
    options = dict(data)
    name = options.pop("method", None)
    if not isinstance(name, str) or name not in (*METHODS, *SPEEDS):
        told = "no method is named" if name is None else f"unknown method {name!r}{nearest(str(name), METHODS)}"
        raise ValueError(f"{told}; give method: one of {', '.join((*METHODS, *SPEEDS))}")
    kind = METHODS["taylorseer" if name in SPEEDS else name]
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind) if field.repr}
    schedules = options.pop("schedules", None) if "schedules" in _fields(kind) else None
    made = {} if schedules is None else {"schedules": BlockSchedules.from_data(schedules)}
    for key in options:
        if key not in fields:
            raise ValueError(f"{name} has no option {key!r}{nearest(key, fields)} Options: {', '.join(fields)}.")
    read = {key: _option(key, fields[key], value, folder) for key, value in options.items()}
    found: Any = kind.preset(pipeline, **{**SPEEDS.get(name, {}), **read, **made})  # a Method or a TextMethod
    return found  # type: ignore[no-any-return]


def _is_plan(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"steps", "computed"}


# Of the annotations of options: what fits them in a file, and its name.
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "int": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        "float": (lambda value: isinstance(value, int | float) and not isinstance(value, bool), "a number"),
        "bool": (lambda value: isinstance(value, bool), "true or false"),
        "str": (lambda value: isinstance(value, str), "a word"),
        "None": (lambda value: value is None, "null"),
        "Plan": (_is_plan, "a plan such as {steps: 14, computed: [0, 1, 2, 6, 10]}"),
        "Source": (
            lambda value: (
                value is None
                or isinstance(value, str)
                or (isinstance(value, list) and all(isinstance(item, str) for item in value))
            ),
            "a file, a folder or a list of prompts",
        ),
    }
)


def _option(name: str, annotation: str, value: Any, folder: Path) -> Any:
    """The value of an option, checked by its annotation; annotations not in `_KINDS` are left to the method."""
    kinds = [_KINDS.get(part) for part in annotation.split(" | ") if part != "Calibration"]
    if None not in kinds and not any(kind[0](value) for kind in kinds if kind):
        raise ValueError(f"{name} must be {' or '.join(kind[1] for kind in kinds if kind)}, got {value!r}")
    if name in _PATHS and isinstance(value, str):
        on_the_hub = name == "dot" and not (folder / value).exists() and _on_the_hub(name, value)
        return value if on_the_hub else str(folder / value)
    if "Plan" in annotation and _is_plan(value):
        return _plan(name, value)
    return value


def _plan(name: str, value: dict[str, Any]) -> Plan:
    steps, rows = value["steps"], value["computed"]
    whole = _KINDS["int"][0]
    several = isinstance(rows, list) and bool(rows) and all(isinstance(row, list) for row in rows)
    lists = rows if several else [rows]
    if not whole(steps) or not all(isinstance(row, list) and all(map(whole, row)) for row in lists):
        raise ValueError(f"{name} must be {_KINDS['Plan'][1]}, with a list for each site if they differ, got {value!r}")
    return Plan(tuple(Plan.at(row, steps).rows[0] for row in lists))
