"""Run a script that may import the reference implementations: clean-fid, torch-fidelity, lpips, and torchvision.

They lie in a folder of their own, installed by ``make test``, and only a process started here sees them: beside a CPU
build of torch a CUDA build of torchvision is worse than none (see ``torchvision_guard.py``).
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.prefix, "references")


def missing() -> str:
    """Why the reference implementations cannot be run, or nothing if they can."""
    if (FOLDER / "torchvision").is_dir():
        return ""
    return f"the reference implementations are not in {FOLDER}: `make test` installs them there"


def run(script: Path, *arguments: str | Path) -> str:
    """Run a script with the reference implementations importable; what it printed.

    Raises:
        RuntimeError: the script failed; the message holds what it wrote to stderr.
    """
    command = [sys.executable, "-W", "ignore", __file__, str(script), *map(str, arguments)]
    result = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{script.name} failed:\n{result.stderr}")
    return result.stdout


def main() -> None:
    """Run the script named on the command line, with the folder last on the path and the guard in place."""
    import torchvision_guard  # lies beside this file, whose folder is first on the path

    torchvision_guard.install()
    sys.path.append(str(FOLDER))
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
