"""Choices in files: a JSON file to read, and beside it the calibration if there is one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffaccel.auto.candidates import method_of
from diffaccel.auto.choice import Choice, Conditions, Plain, Speed
from diffaccel.auto.quality import Quality
from diffaccel.auto.search import Target
from diffaccel.calibration import Calibration
from diffaccel.fingerprint import Fingerprint
from diffaccel.methods.fitted import Fitted
from diffaccel.pipelines import bundled
from diffaccel.pipelines.source import INDEX
from diffaccel.plan import Plan
from diffaccel.trace import Trace

FORMAT = 1
NAME = "calibration-auto-{target}-{steps}.json"
"""In a pipeline's own folder, where calibrations lie as well."""


def save(choice: Choice, path: str | Path) -> None:
    """Write a choice; a calibration goes to a safetensors file of the same name beside it."""
    path, data = Path(path), {"format": FORMAT, **choice.as_dict(), "calibration": None}
    if isinstance(choice.method, Fitted) and isinstance(choice.method.calibration, Calibration):
        tensors = path.with_suffix(".safetensors")
        choice.method.calibration.trace(choice.conditions.evaluations).save(tensors)
        data["calibration"] = tensors.name
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path) -> Choice:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: no such file, or no calibration beside it.
        ValueError: the file is damaged, or holds no choice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no choice at {path}: make one with `diffaccel tune MODEL -o {path}`")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']}, not {FORMAT}")
        return _read(data, path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no whole choice ({error}): make one with `diffaccel tune`") from error


def _read(data: dict[str, Any], path: Path) -> Choice:
    conditions = dict(data["conditions"])
    conditions["networks"] = {name: Fingerprint(**mark) for name, mark in conditions["networks"].items()}
    held = Conditions(**conditions)
    calibrations = {}
    if data["calibration"] is not None:
        trace = Trace.load(path.parent / data["calibration"])
        calibrations[trace.level] = Calibration({trace.steps: trace})
    plain = data["plain"]
    return Choice(
        target=Target(**data["target"]),
        name=data["method"],
        method=method_of(data["method"], calibrations),
        plan=Plan.at(data["plan"], held.evaluations),
        quality=Quality(**data["psnr"]),
        speed=Speed(**data["speedup"]),
        plain=Plain(plain["steps"], Quality(**plain["quality"]), Speed(**plain["speed"]), plain["ratio"]),
        conditions=held,
        contention=float(data["contention"]),
        tried=list(data["tried"]),
        environment=dict(data["environment"]),
    )


def place(pipe: Any, target: Target, steps: int) -> Path | None:
    """Where a choice is kept unless told otherwise: in the pipeline's folder; None if it has none, or is bundled."""
    name = str(getattr(pipe, "name_or_path", "") or "")
    folder = Path(name)
    if not name or not (folder / INDEX).is_file() or not os.access(folder, os.W_OK):
        return None
    if folder.resolve() in [bundled.path(name).resolve() for name in (*bundled.NAMES, *bundled.UNCONDITIONAL)]:
        return None
    return folder / NAME.format(target=target.slug, steps=steps)


def check_writable(path: str | Path) -> Path:
    """The path; ValueError unless a choice can be written there."""
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"choices are JSON files: name {path} {path.with_suffix('.json')}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ValueError(f"a choice cannot be written to {path}: name a file in a folder that exists")
    return path
