"""Where the names of points go in a plot, so that none covers another: pure geometry in one unit of length."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Size = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

ANGLES = (45, -45, 135, -135, 90, -90, 0, 180)  # degrees, the most readable first
DISTANCES = (8.5, 13.0, 20.0, 30.0, 42.0, 56.0)
HARD = 20.0  # how much worse it is to cover a point or a name than a line


def overlap(a: Box, b: Box) -> float:
    """The area two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def around(point: Point, radius: float) -> Box:
    """The square around a point."""
    return point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius


def between(a: Point, b: Point, step: float = 6.0) -> list[Point]:
    """Points along the line from `a` to `b`, at most a step apart."""
    count = max(1, math.ceil(math.dist(a, b) / step))
    return [(a[0] + (b[0] - a[0]) * i / count, a[1] + (b[1] - a[1]) * i / count) for i in range(count + 1)]


def beside(point: Point, size: Size, angle: float, distance: float) -> Box:
    """A box of this size that lies off `point` in the direction `angle`, its nearest side or corner at `distance`."""
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    left = point[0] + distance * x + (0 if x > 0.1 else -size[0] if x < -0.1 else -size[0] / 2)
    bottom = point[1] + distance * y + (0 if y > 0.1 else -size[1] if y < -0.1 else -size[1] / 2)
    return left, bottom, left + size[0], bottom + size[1]


def place(points: Sequence[Point], sizes: Sequence[Size], room: Box, lines: Sequence[Box] = ()) -> list[Box]:
    """A box for the name of each point, in the order of the points.

    A name goes to the place that covers least, near ones and the first of `ANGLES` preferred: no point and no other
    name if there is such a place, and as little of the lines as can be. The first points choose first.

    Args:
        points: that are named.
        sizes: of the names.
        room: where names have to stay.
        lines: boxes that names should rather not cover.
    """
    markers = [around(point, 6.0) for point in points]
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):

        def cost(box: Box, size: Size = size) -> float:
            outside = size[0] * size[1] - overlap(box, room)
            hidden = sum(overlap(box, other) for other in [*markers, *placed])
            return HARD * (outside + hidden) + sum(overlap(box, line) for line in lines)

        boxes = [
            (beside(point, size, angle, distance), distance + rank)
            for distance in DISTANCES
            for rank, angle in enumerate(ANGLES)
        ]
        placed.append(min(boxes, key=lambda found: cost(found[0]) + found[1])[0])
    return placed
