"""Does the guard cure a torchvision that does not match torch, and keep its hands off everything else?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GUARD = Path(__file__).with_name("torchvision_guard.py")

# What the real package does when its compiled operators did not load.
TORCHVISION = """
import torch
for operator in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{operator}", lambda dets, scores, iou_threshold: dets)
"""


@pytest.mark.parametrize(
    ("guarded", "version", "cured"),
    [
        (False, "0.28.0+cu130", False),
        (True, "0.28.0+cu130", torch.version.cuda is None and torch.version.hip is None),
        (True, "0.28.0+cpu", False),
    ],
)
def test_only_a_cuda_torchvision_beside_a_cpu_torch_is_cured(
    tmp_path: Path, guarded: bool, version: str, cured: bool
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISION)
    (package / "version.py").write_text(f"__version__ = {version!r}\n")
    install = "import torchvision_guard; torchvision_guard.install(); " if guarded else ""
    result = subprocess.run(
        # -S leaves out the environment's own copy of the guard.
        [
            sys.executable,
            "-S",
            "-c",
            f"{install}import sys; assert 'torch' not in sys.modules; import torchvision",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(GUARD.parent), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert (result.returncode == 0) == cured, result.stderr
    assert cured or "operator torchvision::nms does not exist" in result.stderr
