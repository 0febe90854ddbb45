"""Pictures of simulated worlds, drawn by MuJoCo without a screen."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

from PIL import Image

from diffaccel.pipelines.bundled.metaworld.environment import World

if sys.platform == "linux":  # elsewhere MuJoCo finds a way of its own
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # read when mujoco is imported, which a World does


def check_opengl() -> None:
    """See whether pictures can be drawn, before anything long begins.

    Raises:
        SystemExit: they cannot; says what to install.
    """
    try:
        import mujoco

        mujoco.GLContext(16, 16).free()
    except Exception as error:  # of many kinds, by platform and by what is missing
        raise SystemExit(
            f"MuJoCo cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {type(error).__name__}: {error}\n"
            "Install OSMesa (Debian and Ubuntu: apt install libosmesa6), or set MUJOCO_GL=egl where there is a GPU "
            "with its drivers."
        ) from error


class Camera:
    """Looks at the table of one world from the side, until it is closed.

    Args:
        world: to look at. Draw one world at a time: contexts of OpenGL get in each other's way.
        width: of a picture, in pixels.
        height: likewise.
    """

    def __init__(self, world: World, width: int, height: int) -> None:
        import mujoco

        self._data: Any = world.simulation.data
        self._renderer = mujoco.Renderer(world.simulation.model, 2 * height, 2 * width)
        self._view = mujoco.MjvCamera()
        self._view.lookat[:] = (0.02, 0.66, 0.15)
        self._view.distance, self._view.azimuth, self._view.elevation = 0.95, 160.0, -24.0
        self.size = width, height

    def picture(self) -> Image.Image:
        """The world as it is now."""
        self._renderer.update_scene(self._data, camera=self._view)
        return Image.fromarray(self._renderer.render()).resize(self.size, Image.Resampling.LANCZOS)

    def close(self) -> None:
        """Give back what OpenGL holds."""
        self._renderer.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
