"""Settings of TaylorSeer by one word, the same for every pipeline: "slow", "medium", "fast", "ultra".

Chosen among intervals 2 to 6 and orders 1 to 3 with and without the last step, none of which needs a calibration.
Measured on the bundled flux-digits (`benchmarks/speeds.json`): PSNR in dB to the full run, 32 pictures, in brackets
that of a plain run of as many steps as are computed; speed-up in processor time of whole calls of 16 pictures.

          28 steps: computed  speed-up  PSNR         50 steps: computed  speed-up  PSNR
  slow                    16     1.66x  64.2 (51.1)                  27     1.75x  69.7 (55.0)
  medium                  12     2.04x  54.8 (47.0)                  19     2.32x  62.3 (49.5)
  fast                    10     2.36x  48.1 (44.2)                  15     2.78x  56.4 (47.1)
  ultra                    8     2.89x  38.9 (41.4)                  13     3.77x  49.1 (45.3)

The first three are the most faithful of the official forecasts with as few computed steps, at both lengths. In shorter
runs less can be skipped: at 20 steps "slow" and "medium" beat plain runs (57.5 to 50.1, 47.7 to 44.6), "fast" and
"ultra" lose (37.8 to 42.8, 32.4 to 40.7); at 10 steps all lose, "slow" by 0.3 dB. `forecast="newton"` is better by
0.8 to 4.4 dB with "slow" and "medium" at 28 and 50 steps, and worse by 2 to 6 at 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SPEEDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "slow": {"interval": 2, "order": 2, "warmup": 3, "last": True},
        "medium": {"interval": 3, "order": 2, "warmup": 3, "last": True},
        "fast": {"interval": 4, "order": 2, "warmup": 3, "last": True},
        "ultra": {"interval": 5, "order": 1, "warmup": 3, "last": True},
    }
)
