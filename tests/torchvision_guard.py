"""Let a CUDA build of torchvision be imported beside a CPU build of torch, in a development environment.

Such a pair fails at ``import torchvision`` with "operator torchvision::nms does not exist", and takes with
it everything that looks for torchvision, transformers and diffusers included: the compiled operators do not
load, and torchvision then describes operators that were never declared. Declaring the two is enough for
models and transforms; calling them still raises, clearly.

The library itself never does this. ``make test`` runs this file once, which copies it into the environment
and has it loaded at start-up by a ``.pth`` file. There it waits until torchvision is really imported, and
then acts only if torchvision was built for CUDA and torch neither for CUDA nor for HIP.
"""

import shutil
import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

OPERATORS = ("nms", "qnms")
_declared = []  # a torch.library.Library takes its declarations with it when it is collected


class Guard:
    """A finder that declares the operators just before torchvision's own code runs."""

    @staticmethod
    def find_spec(name, path=None, target=None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or not built_for_cuda(spec):
            return None
        run = spec.loader.exec_module

        def exec_module(module) -> None:
            declare_operators()
            run(module)

        spec.loader.exec_module = exec_module
        return spec


def built_for_cuda(spec: ModuleSpec) -> bool:
    """Whether ``torchvision/version.py`` carries a CUDA tag; the package's metadata does not."""
    version = Path(spec.origin or "").with_name("version.py")
    return version.is_file() and "+cu" in version.read_text()


def declare_operators() -> None:
    import torch

    if torch.version.cuda or torch.version.hip:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def install() -> None:
    sys.meta_path.insert(0, Guard)


def main() -> None:
    """Copy this file and the line that loads it into the running environment."""
    if sys.prefix == sys.base_prefix:
        raise SystemExit("torchvision_guard: run me with the python of a virtual environment, not the system's")
    site_packages = Path(sysconfig.get_paths()["purelib"])
    shutil.copy(__file__, site_packages)
    name = Path(__file__).stem
    (site_packages / f"{name}.pth").write_text(f"import {name}; {name}.install()\n")


if __name__ == "__main__":
    main()
