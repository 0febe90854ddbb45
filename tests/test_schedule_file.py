"""Do schedules come back from their file as they were, and are they refused where they do not belong?"""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from diffaccel.schedule_file import FORMAT, BlockSchedules

NAMES = ("layers.0.sa", "layers.0.ca", "layers.0.ffn", "layers.1.sa", "layers.1.ca", "layers.1.ffn")

SCHEDULES = BlockSchedules(
    rows={name: (0, 3 + i, 9) for i, name in enumerate(NAMES)},
    steps=10,
    rule="bac",
    settings={"updates": 3, "bubbling": 1, "metric": "cosine", "always_update_last": False, "every": None},
    losses={name: 1 / (3 + i) for i, name in enumerate(NAMES)},
    bubbled=("layers.0.sa",),
    network="TransformerForDiffusion",
    layers=2,
    width=256,
    scheduler="DDPMScheduler",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "schedules.json"


@pytest.mark.parametrize("schedules", [SCHEDULES, replace(SCHEDULES, losses=None, bubbled=(), rule="acs")])
def test_a_file_keeps_everything(path: Path, schedules: BlockSchedules) -> None:
    schedules.save(path)
    loaded = BlockSchedules.load(path)
    assert loaded == schedules
    assert list(loaded.rows) == list(NAMES)  # in order of execution
    loaded.check(NAMES, 10, "TransformerForDiffusion", 256, "DDPMScheduler")


def test_a_line_for_each_block(path: Path) -> None:
    SCHEDULES.save(path)
    assert '  "layers.0.ca": [0, 4, 9],' in path.read_text().splitlines()
    assert json.loads(path.read_text())["format"] == FORMAT


def test_nobody_else_changes_them() -> None:
    rows = {"a.ffn": [0, 2]}
    schedules = replace(SCHEDULES, rows=rows, losses=None, bubbled=())  # type: ignore[arg-type]
    rows["a.ffn"].append(7)
    assert schedules.rows == {"a.ffn": (0, 2)}
    with pytest.raises(FrozenInstanceError):
        schedules.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies(duplicate: Any) -> None:
    assert duplicate(SCHEDULES) == SCHEDULES


def test_mean_updates() -> None:
    rows = {"a.sa": (0, 1, 2, 3), "a.ffn": (0,)}
    assert replace(SCHEDULES, rows=rows, losses=None, bubbled=()).mean_updates == 2.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": {}}, "at least one block"),
        ({"rows": {"a.sa": ()}}, "a.sa must rise from 0"),
        ({"rows": {"a.sa": (1, 2)}}, "a.sa must rise from 0"),
        ({"rows": {"a.sa": (0, 2, 2)}}, "a.sa must rise from 0"),
        ({"rows": {"a.sa": (0, 10)}}, "run of 10 steps"),
        ({"losses": {"layers.0.sa": 1.0}}, "each of them"),
        ({"losses": dict.fromkeys(NAMES, float("nan"))}, "NaN"),
        ({"bubbled": ("layers.7.sa",)}, "layers.7.sa"),
    ],
)
def test_schedules_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SCHEDULES, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "DiffusionTransformer"}, "network TransformerForDiffusion, here DiffusionTransformer"),
        ({"width": 512}, "width 256, here 512"),
        ({"scheduler": "DDIMScheduler"}, "scheduler DDPMScheduler, here DDIMScheduler"),
        ({"steps": 20}, "steps 10, here 20.*run 10 steps, or make"),
        ({"steps": 20, "width": 512}, "width 256, here 512; steps 10, here 20.*: make the schedules anew"),
        ({"names": NAMES[:-1]}, r"schedules for layers\.1\.ffn"),
        ({"names": (*NAMES, "layers.2.sa")}, r"no schedule for layers\.2\.sa"),
        ({"names": ("a.sa",)}, "and 3 more"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], said: str) -> None:
    here = {"names": NAMES, "steps": 10, "network": "TransformerForDiffusion", "width": 256}
    with pytest.raises(ValueError, match=said):
        SCHEDULES.check(**{**here, "scheduler": "DDPMScheduler", **change})


def test_what_is_not_given_is_not_compared() -> None:
    SCHEDULES.check(NAMES[::-1], 10)


def changed(path: Path, **changes: Any) -> Path:
    """The file with some entries changed, or without those that are `...`."""
    SCHEDULES.save(path)
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": FORMAT + 1}, "install a newer"),
        ({"format": ...}, "its format is None"),
        ({"format": "one"}, "its format is 'one'"),
        ({"what": "something else"}, "schedules of blocks"),
        ({"rows": ...}, "lacks 'rows'"),
        ({"rows": [0, 1]}, "'rows'"),
        ({"rows": {"layers.0.sa": [0, 1.5]}}, "whole numbers"),
        ({"rows": {"layers.0.sa": [0, 40]}}, "run of 10 steps"),
        ({"steps": "10"}, "'steps' is '10'"),
        ({"steps": True}, "'steps' is True"),
        ({"losses": dict.fromkeys(NAMES, "large")}, "losses must be numbers"),
        ({"bubbled": [1]}, "must be names"),
        ({"network": None}, "'network' is None"),
    ],
)
def test_files_refused(path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        BlockSchedules.load(changed(path, **changes))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"0, 3, 5", b"\xff\xfe\x00", b'"schedules of blocks"'])
def test_damaged_files_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be used"):
        BlockSchedules.load(path)


def test_a_file_cut_short_is_refused(path: Path) -> None:
    SCHEDULES.save(path)
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 9):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be used"):
            BlockSchedules.load(path)


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"schedules\.json"):
        BlockSchedules.load(path)
    with pytest.raises(FileNotFoundError):
        BlockSchedules.load(path.parent)


def test_a_setting_that_json_does_not_know_leaves_no_file(path: Path) -> None:
    with pytest.raises(TypeError):
        replace(SCHEDULES, settings={"calibration": object()}).save(path)
    assert not path.exists()
