"""Against packages that only a process of its own may import: DeepCache, and networks quantized by torchao."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffaccel import accelerate_pipeline
from tests import references
from tests.tiny import FAMILIES

pytestmark = pytest.mark.skipif(bool(references.missing()), reason=references.missing())


@pytest.fixture(scope="module")
def deepcache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("deepcache") / "results.npz"
    references.run(Path(__file__).with_name("reference_deepcache.py"), path)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_deep_reuse_is_deepcache_bit_by_bit(name: str, interval: int, deepcache: dict[str, np.ndarray]) -> None:
    family = FAMILIES[name]
    pipe = accelerate_pipeline(family.make(), level="deep", interval=interval, order=0, warmup=1)
    found = family.run(pipe, steps=9, guidance=True)
    assert torch.equal(found, torch.from_numpy(deepcache[f"{name}_{interval}"]))
    pipe.acceleration.remove()
    assert not torch.equal(family.run(pipe, steps=9, guidance=True), found)


def test_int8_weights() -> None:
    said = references.run(Path(__file__).with_name("reference_torchao.py"))
    assert said.count("holds") == len(FAMILIES["flux"].levels) + len(FAMILIES["sd"].levels)
