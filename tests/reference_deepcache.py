"""What DeepCache makes of toy pipelines; run by ``references.py``.

    python tests/references.py tests/reference_deepcache.py FILE

Writes latents, by pipeline and interval, to FILE (npz).
"""

import sys

import numpy as np
import tiny
from DeepCache import DeepCacheSDHelper

STEPS = 9
INTERVALS = (2, 3, 5)


def main(path: str) -> None:
    """Run every UNet pipeline with DeepCache's default branch."""
    results = {}
    for name in ("sd", "sdxl"):
        family = tiny.FAMILIES[name]
        for interval in INTERVALS:
            pipe = family.make()
            helper = DeepCacheSDHelper(pipe=pipe)
            helper.set_params(cache_interval=interval, cache_branch_id=0)
            helper.enable()
            results[f"{name}_{interval}"] = family.run(pipe, steps=STEPS, guidance=True).numpy()
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
