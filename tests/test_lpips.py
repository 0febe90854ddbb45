"""Is LPIPS that of its authors' package, and refused where its weights are not there?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from diffaccel.metrics.lpips import BACKBONES, Lpips
from tests import references


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if reason := references.missing():
        pytest.fail(reason)
    return json.loads(references.run(Path(__file__).with_name("reference_lpips.py"), tmp_path_factory.mktemp("hub")))


@pytest.mark.parametrize("net", BACKBONES)
def test_it_is_what_the_package_says_of_pictures_in_minus_one_to_one(found: dict[str, Any], net: str) -> None:
    ours, theirs = found[net]["ours"], found[net]["theirs"]
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)
    assert abs(ours[0] - found[net]["in 0..1 by mistake"]) > 1e-2 * ours[0]  # so that the range would be noticed
    assert found[net]["swapped"] == pytest.approx(ours, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("net", BACKBONES)
def test_only_identical_pictures_are_at_distance_zero(found: dict[str, Any], net: str) -> None:
    assert [value == 0 for value in found[net]["ours"]] == [False, False, False, True, False]


@pytest.mark.parametrize("net", BACKBONES)
def test_missing_and_damaged_weights_are_named(found: dict[str, Any], net: str) -> None:
    file = Path(found[net]["file"])
    missing, damaged = found[net]["missing"], found[net]["damaged"]
    assert missing.startswith("MissingWeights: ")
    assert f"put {file.name} into {file.parent}" in missing
    assert "--download" in missing
    assert damaged.startswith(f"OSError: cannot load the weights {file}")


@pytest.mark.parametrize("net", BACKBONES)
def test_the_identity_holds_the_digest_of_the_backbones_file(found: dict[str, Any], net: str) -> None:
    digest = hashlib.sha256(Path(found[net]["file"]).read_bytes()).hexdigest()
    assert found[net]["identity"] == {"name": f"lpips-{net}", "version": "0.1", "weights": digest}


@pytest.mark.parametrize("net", BACKBONES)
def test_pictures_the_network_cannot_take_are_refused(found: dict[str, Any], net: str) -> None:
    side = BACKBONES[net].side
    assert found[net]["smallest"] > 0
    assert found[net]["too small"] == (
        f"ValueError: lpips-{net} needs sides of at least {side} pixels, got ({side - 1}, {side + 9})"
    )
    assert found[net]["gray"] == "ValueError: LPIPS needs pictures of 3 channels, got 1"
    assert found[net]["bytes"].startswith("TypeError: pictures must be floating point")


def test_an_unknown_network_is_refused_and_so_is_a_machine_without_the_package() -> None:
    with pytest.raises(ValueError, match="no LPIPS network 'resnet': choose alex, vgg, squeeze"):
        Lpips("resnet")
    with pytest.raises(ImportError, match=r"LPIPS needs lpips and torchvision: pip install 'diffaccel\[fid\]'"):
        Lpips()
