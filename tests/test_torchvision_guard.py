"""Does the guard cure a torchvision that does not match torch, and keep its hands off everything else?"""

import os
import subprocess
import sys
from pathlib import Path

import torch

# What the real package does when its compiled operators did not load.
TORCHVISION = """
import torch
for operator in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{operator}", lambda dets, scores, iou_threshold: dets)
"""

# One process for all cases, since each would import torch anew.
SCRIPT = """
import sys, torchvision_guard
from importlib.util import find_spec
from pathlib import Path

version_file = Path(find_spec("torchvision").origin).with_name("version.py")

def imported(version):
    version_file.write_text(f"__version__ = {version!r}")
    try:
        import torchvision
    except RuntimeError as error:
        assert "operator torchvision::nms does not exist" in str(error), error
        return False
    return True

torchvision_guard.install()
find_spec("torchvision")  # how others ask whether it is there
assert "torch" not in sys.modules, "the guard is not lazy"
guarded_cpu = imported("0.28.0+cpu")
sys.meta_path.remove(torchvision_guard.Guard)
bare_cuda = imported("0.28.0+cu130")
torchvision_guard.install()
print(guarded_cpu, bare_cuda, imported("0.28.0+cu130"))
"""


def test_only_a_cuda_torchvision_beside_a_cpu_torch_is_cured(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISION)
    (package / "version.py").write_text("__version__ = '0.28.0+cu130'\n")
    paths = [str(tmp_path), str(Path(__file__).parent), *sys.path]
    result = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT],  # -S leaves out the environment's own copy of the guard
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    cured = torch.version.cuda is None and torch.version.hip is None
    assert result.stdout.split() == ["False", "False", str(cured)], result.stderr
