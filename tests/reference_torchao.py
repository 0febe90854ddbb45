"""Acceleration of networks with int8 weights; run by ``references.py``, which makes torchao importable.

    python tests/references.py tests/reference_torchao.py

Fails with an AssertionError unless results are as they should be.
"""

import sys
from typing import Any

import tiny
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from diffaccel import accelerate_pipeline


def quantized(family: tiny.Family, **options: Any) -> Any:
    """A toy pipeline with int8 weights, accelerated first if options are given."""
    pipe = family.make()
    if options:
        accelerate_pipeline(pipe, **options)
    quantize_(family.denoiser(pipe), Int8WeightOnlyConfig())
    return pipe


def check(name: str) -> None:
    """A full plan changes nothing, removal neither, and it does not matter what was done first."""
    family = tiny.FAMILIES[name]
    plain = family.run(quantized(family))
    assert not torch.equal(plain, family.run(family.make())), "nothing was quantized"
    for level in family.levels:
        pipe = accelerate_pipeline(quantized(family), level=level, interval=1)
        assert torch.equal(family.run(pipe), plain), f"{name}, {level}: a full plan changes the result"
        pipe.acceleration.remove()
        result = family.run(accelerate_pipeline(pipe, level=level, interval=3))
        assert all(sum(site.skipped.values()) == 4 for site in pipe.acceleration.report().sites)
        assert torch.equal(family.run(quantized(family, level=level, interval=3)), result), f"{name}, {level}: order"
        pipe.acceleration.remove()
        assert torch.equal(family.run(pipe), plain), f"{name}, {level}: removal leaves something"
        sys.stdout.write(f"{name} {level} holds\n")


if __name__ == "__main__":
    for name in ("flux", "sd"):
        check(name)
