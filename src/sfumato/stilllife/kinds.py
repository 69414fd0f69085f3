"""The kinds of thing a still life can hold: each a handful of primitives with named parts, in canonical coordinates.

A kind stands on y = 0, is about one unit tall and wide, and its front (if it has one) looks along +z. Its shape
parameters lie in [-1, 1]; 0 is the reference shape. Builders use plain arithmetic only, so the same code gives the
floats of one thing and the tensors of a batch, and this module imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Number = Any  # a float, or an array of one value per thing
Form = str  # "ellipsoid" | "box" | "cylinder" | "cone" | "ring" | "prism" | "dome" | "frustum"


@dataclass(frozen=True)
class Prim:
    """One primitive of a kind. ``half`` are its half sizes before ``turn``; cylinder, cone and ring stand along y.

    A prism is a roof along x, a dome the closed upper part of an ellipsoid, a frustum a cone cut at 55 % of its base
    radius. A ring's half sizes are (outer radius, tube radius, outer radius). ``turn`` is (axis, degrees) about its
    centre.
    """

    part: str
    form: Form
    centre: tuple[Number, Number, Number]
    half: tuple[Number, Number, Number]
    paint: str = "main"  # "main" takes the thing's colour and material, anything else is a fixed colour
    turn: tuple[str, float] | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of thing: how to build it and what is known of it."""

    name: str
    shape: tuple[str, ...]  # names of the shape parameters
    build: Callable[[Sequence[Number]], list[Prim]]
    front: bool = False  # has a front, so that view words mean something
    mark: str | None = None  # the part that is seen from the front only
    held_out: bool = False  # never in training data
    keypoints: dict[str, tuple[int, tuple[float, float, float]]] = field(default_factory=dict)
    """name -> (primitive, point in that primitive's own unit coordinates, each in [-1, 1])."""

    def reference(self) -> list[Prim]:
        return self.build([0.0] * len(self.shape))

    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.part for p in self.reference()))

    def height(self, shape: Sequence[float]) -> float:
        """Top of the thing in its own units."""
        return max(p.centre[1] + reach(p)[1] for p in self.build(shape))

    def radius(self, shape: Sequence[float]) -> float:
        """Radius of the upright cylinder about the origin that holds it."""
        return max(
            (abs(p.centre[0]) + reach(p)[0]) * 0.5 + (abs(p.centre[2]) + reach(p)[2]) * 0.5
            if p.form == "box"
            else max(abs(p.centre[0]) + reach(p)[0], abs(p.centre[2]) + reach(p)[2])
            for p in self.build(shape)
        )


def reach(p: Prim) -> tuple[float, float, float]:
    """Half sizes of the primitive's upright box after its turn (exact for quarter turns, an upper bound otherwise)."""
    hx, hy, hz = p.half
    if p.form == "ring":
        hx, hz = p.half[0], p.half[2]
    if p.turn is None:
        return hx, hy, hz
    c, s = abs(math.cos(math.radians(p.turn[1]))), abs(math.sin(math.radians(p.turn[1])))
    if p.turn[0] == "x":
        return hx, c * hy + s * hz, s * hy + c * hz
    if p.turn[0] == "y":
        return c * hx + s * hz, hy, s * hx + c * hz
    return c * hx + s * hy, s * hx + c * hy, hz


TOP, BOTTOM = (0.0, 1.0, 0.0), (0.0, -1.0, 0.0)
LEFT, RIGHT, FRONT, BACK = (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)


def _sphere(s):
    r = 0.5 + 0.05 * s[0]
    return [Prim("body", "ellipsoid", (0, r, 0), (r, r, r))]


def _cube(s):
    h, w = 0.42 + 0.06 * s[0], 0.42 + 0.04 * s[1]
    return [Prim("body", "box", (0, h, 0), (w, h, w))]


def _cylinder(s):
    h, r = 0.5 + 0.1 * s[0], 0.36 + 0.05 * s[1]
    return [Prim("body", "cylinder", (0, h, 0), (r, h, r))]


def _cone(s):
    h, r = 0.55 + 0.08 * s[0], 0.46 + 0.05 * s[1]
    return [Prim("body", "cone", (0, h, 0), (r, h, r))]


def _ring(s):
    r, t = 0.5 + 0.05 * s[0], 0.15 + 0.03 * s[1]
    return [Prim("body", "ring", (0, r, 0), (r, t, r), turn=("x", 90.0))]


def _robot(s):
    leg, head, arm = 0.13 + 0.03 * s[0], 0.2 + 0.03 * s[1], 0.2 + 0.05 * s[2]
    body, hip = 0.24, 2 * leg
    neck = hip + 2 * body
    mid, eye = neck + head, head * 0.35
    return [
        Prim("body", "box", (0, hip + body, 0), (0.28, body, 0.19)),
        Prim("head", "box", (0, mid, 0), (head * 1.2, head, head)),
        Prim("face", "box", (0, mid, head), (head * 1.0, head * 0.78, 0.03), "white"),
        Prim("face", "ellipsoid", (-head * 0.45, mid + eye * 0.5, head + 0.03), (0.055, 0.055, 0.03), "black"),
        Prim("face", "ellipsoid", (head * 0.45, mid + eye * 0.5, head + 0.03), (0.055, 0.055, 0.03), "black"),
        Prim("face", "box", (0, mid - head * 0.42, head + 0.03), (head * 0.5, 0.025, 0.02), "black"),
        Prim("arm", "box", (-0.37, neck - arm - 0.04, 0), (0.07, arm, 0.08)),
        Prim("arm", "box", (0.37, neck - arm - 0.04, 0), (0.07, arm, 0.08)),
        Prim("leg", "box", (-0.14, leg, 0), (0.09, leg, 0.11), "grey"),
        Prim("leg", "box", (0.14, leg, 0), (0.09, leg, 0.11), "grey"),
    ]


def _duck(s):
    length, head, neck = 0.46 + 0.06 * s[0], 0.21 + 0.03 * s[1], 0.06 * s[2]
    y = 0.74 + neck
    z = length * 0.62
    return [
        Prim("body", "ellipsoid", (0, 0.31, 0), (0.33, 0.31, length)),
        Prim("head", "ellipsoid", (0, y, z), (head, head, head)),
        Prim("beak", "ellipsoid", (0, y - 0.03, z + head + 0.05), (0.1, 0.045, 0.13), "orange"),
        Prim("eye", "ellipsoid", (-head * 0.62, y + 0.07, z + head * 0.68), (0.04, 0.045, 0.04), "black"),
        Prim("eye", "ellipsoid", (head * 0.62, y + 0.07, z + head * 0.68), (0.04, 0.045, 0.04), "black"),
        Prim("tail", "cone", (0, 0.5, -length * 0.93), (0.15, 0.2, 0.08), turn=("x", -50.0)),
    ]


def _house(s):
    w, h, roof = 0.45 + 0.05 * s[0], 0.32 + 0.05 * s[1], 0.22 + 0.05 * s[2]
    return [
        Prim("wall", "box", (0, h, 0), (w, h, 0.38)),
        Prim("roof", "prism", (0, 2 * h + roof, 0), (w * 1.15, roof, 0.44), "grey"),
        Prim("door", "box", (0, 0.22, 0.38), (0.11, 0.22, 0.02), "brown"),
        Prim("window", "box", (-w * 0.62, h * 1.2, 0.38), (0.085, 0.09, 0.02), "glass"),
        Prim("window", "box", (w * 0.62, h * 1.2, 0.38), (0.085, 0.09, 0.02), "glass"),
        Prim("chimney", "box", (w * 0.55, 2 * h + roof * 1.5, -0.15), (0.075, roof * 0.75, 0.075), "grey"),
    ]


def _car(s):
    length, cab, wheel = 0.62 + 0.06 * s[0], 0.16 + 0.03 * s[1], 0.15 + 0.02 * s[2]
    top = wheel + 0.32
    axle = length * 0.6
    wheels = [
        Prim("wheel", "cylinder", (x, wheel, z), (wheel, 0.06, wheel), "black", ("z", 90.0))
        for x in (-0.3, 0.3)
        for z in (-axle, axle)
    ]
    return [
        Prim("body", "box", (0, wheel + 0.16, 0), (0.33, 0.16, length)),
        Prim("cabin", "box", (0, top + cab, -0.08), (0.28, cab, length * 0.52)),
        Prim("window", "box", (0, top + cab, -0.08), (0.29, cab * 0.62, length * 0.44), "glass"),
        Prim("windscreen", "box", (0, top + cab, -0.08 + length * 0.52), (0.24, cab * 0.68, 0.015), "glass"),
        Prim("light", "ellipsoid", (-0.22, wheel + 0.18, length), (0.07, 0.06, 0.03), "cream"),
        Prim("light", "ellipsoid", (0.22, wheel + 0.18, length), (0.07, 0.06, 0.03), "cream"),
        *wheels,
    ]


def _mug(s):
    h, r, handle = 0.42 + 0.07 * s[0], 0.34 + 0.04 * s[1], 0.2 + 0.03 * s[2]
    return [
        Prim("body", "cylinder", (0, h, 0), (r, h, r)),
        Prim("handle", "ring", (r + handle * 0.45, h, 0), (handle + 0.06, 0.06, handle + 0.06), turn=("x", 90.0)),
        Prim("coffee", "cylinder", (0, 2 * h, 0), (r * 0.82, 0.012, r * 0.82), "brown"),
    ]


def _snowman(s):
    a, b, hat = 0.32 + 0.03 * s[0], 0.23 + 0.02 * s[1], 0.11 + 0.04 * s[2]
    y1, y2 = a * 0.95, a * 1.8 + b * 0.75
    top = y2 + b * 0.82
    return [
        Prim("body", "ellipsoid", (0, y1, 0), (a, a * 0.95, a)),
        Prim("head", "ellipsoid", (0, y2, 0), (b, b, b)),
        Prim("nose", "cone", (0, y2, b + 0.09), (0.055, 0.13, 0.055), "orange", ("x", 90.0)),
        Prim("eye", "ellipsoid", (-b * 0.38, y2 + 0.07, b * 0.86), (0.04, 0.04, 0.035), "black"),
        Prim("eye", "ellipsoid", (b * 0.38, y2 + 0.07, b * 0.86), (0.04, 0.04, 0.035), "black"),
        Prim("button", "ellipsoid", (0, y1 + a * 0.35, a * 0.93), (0.04, 0.04, 0.04), "black"),
        Prim("button", "ellipsoid", (0, y1 - a * 0.1, a), (0.04, 0.04, 0.04), "black"),
        Prim("hat", "cylinder", (0, top, 0), (b * 1.05, 0.025, b * 1.05), "black"),
        Prim("hat", "cylinder", (0, top + hat, 0), (b * 0.68, hat, b * 0.68), "black"),
    ]


def _tree(s):
    trunk, r, layers = 0.16 + 0.04 * s[0], 0.42 + 0.05 * s[1], 0.3 + 0.04 * s[2]
    return [
        Prim("trunk", "cylinder", (0, trunk, 0), (0.09, trunk, 0.09), "brown"),
        Prim("crown", "cone", (0, 2 * trunk + layers, 0), (r, layers, r)),
        Prim("crown", "cone", (0, 2 * trunk + layers * 1.95, 0), (r * 0.76, layers * 0.9, r * 0.76)),
    ]


def _mushroom(s):
    stem, r, h = 0.24 + 0.05 * s[0], 0.46 + 0.05 * s[1], 0.27 + 0.05 * s[2]
    return [
        Prim("stem", "cylinder", (0, stem, 0), (0.15, stem, 0.15), "cream"),
        Prim("cap", "dome", (0, 2 * stem + h * 0.4, 0), (r, h, r)),
    ]


def _lamp(s):
    pole, r, h = 0.24 + 0.05 * s[0], 0.38 + 0.05 * s[1], 0.21 + 0.04 * s[2]
    return [
        Prim("base", "cylinder", (0, 0.04, 0), (0.24, 0.04, 0.24), "grey"),
        Prim("pole", "cylinder", (0, pole + 0.06, 0), (0.045, pole, 0.045), "grey"),
        Prim("shade", "frustum", (0, 2 * pole + h, 0), (r, h, r)),
    ]


def _chair(s):
    leg, w, back = 0.22 + 0.04 * s[0], 0.34 + 0.04 * s[1], 0.3 + 0.05 * s[2]
    seat = 2 * leg + 0.05
    legs = [
        Prim("leg", "box", (x * (w - 0.06), leg, z * (w - 0.06)), (0.055, leg, 0.055)) for x in (-1, 1) for z in (-1, 1)
    ]
    return [
        Prim("seat", "box", (0, seat, 0), (w, 0.06, w)),
        Prim("back", "box", (0, seat + back, -w + 0.05), (w, back, 0.055)),
        *legs,
    ]


def _teapot(s):
    r, h = 0.4 + 0.05 * s[0], 0.34 + 0.04 * s[1]
    return [
        Prim("body", "ellipsoid", (0, h, 0), (r, h, r)),
        Prim("lid", "ellipsoid", (0, 2 * h, 0), (0.1, 0.09, 0.1)),
        Prim("spout", "cone", (r + 0.08, h * 1.2, 0), (0.1, 0.26, 0.1), turn=("z", -45.0)),
        Prim("handle", "ring", (-r - 0.06, h, 0), (0.22, 0.05, 0.22), turn=("x", 90.0)),
    ]


def _rocket(s):
    h, r, fin = 0.42 + 0.06 * s[0], 0.22 + 0.03 * s[1], 0.18 + 0.04 * s[2]
    return [
        Prim("body", "cylinder", (0, h + 0.12, 0), (r, h, r)),
        Prim("nose", "cone", (0, 2 * h + 0.34, 0), (r, 0.22, r), "red"),
        Prim("window", "ellipsoid", (0, h * 1.5, r), (0.1, 0.1, 0.04), "glass"),
        Prim("fin", "box", (-r - 0.06, fin, 0), (0.14, fin, 0.035), "grey"),
        Prim("fin", "box", (r + 0.06, fin, 0), (0.14, fin, 0.035), "grey"),
        Prim("fin", "box", (0, fin, -r - 0.06), (0.035, fin, 0.14), "grey"),
    ]


def _cactus(s):
    h, r, arm = 0.55 + 0.06 * s[0], 0.17 + 0.02 * s[1], 0.17 + 0.04 * s[2]
    return [
        Prim("stem", "ellipsoid", (0, h, 0), (r, h, r)),
        Prim("arm", "ellipsoid", (-r - 0.06, h, 0), (0.17, 0.085, 0.085)),
        Prim("arm", "ellipsoid", (-r - 0.16, h + arm, 0), (0.085, arm + 0.06, 0.085)),
        Prim("arm", "ellipsoid", (r + 0.06, h * 0.75, 0), (0.17, 0.085, 0.085)),
        Prim("arm", "ellipsoid", (r + 0.16, h * 0.75 + arm, 0), (0.085, arm + 0.06, 0.085)),
    ]


def _boat(s):
    length, mast, sail = 0.58 + 0.05 * s[0], 0.4 + 0.05 * s[1], 0.28 + 0.05 * s[2]
    return [
        Prim("hull", "ellipsoid", (0, 0.16, 0), (0.25, 0.16, length)),
        Prim("deck", "box", (0, 0.24, 0), (0.2, 0.03, length * 0.72), "brown"),
        Prim("mast", "cylinder", (0, 0.24 + mast, 0), (0.03, mast, 0.03), "brown"),
        Prim("sail", "cone", (0, 0.36 + mast, -0.02), (0.04, mast * 0.82, sail), "white"),
    ]


KINDS: dict[str, Kind] = {
    k.name: k
    for k in (
        Kind("sphere", ("radius",), _sphere, keypoints={"top": (0, TOP), "bottom": (0, BOTTOM)}),
        Kind(
            "cube",
            ("height", "width"),
            _cube,
            keypoints={
                f"{'top' if y > 0 else 'bottom'} {'left' if x < 0 else 'right'} {'front' if z > 0 else 'back'}": (
                    0,
                    (float(x), float(y), float(z)),
                )
                for y in (1, -1)
                for x in (-1, 1)
                for z in (1, -1)
            },
        ),
        Kind("cylinder", ("height", "girth"), _cylinder, keypoints={"top": (0, TOP), "bottom": (0, BOTTOM)}),
        Kind("cone", ("height", "girth"), _cone, keypoints={"tip": (0, TOP), "bottom": (0, BOTTOM)}),
        Kind("ring", ("radius", "tube"), _ring, keypoints={"right": (0, RIGHT), "left": (0, LEFT)}),
        Kind(
            "robot",
            ("legs", "head", "arms"),
            _robot,
            front=True,
            mark="face",
            keypoints={
                "head top": (1, TOP),
                "left eye": (3, FRONT),
                "right eye": (4, FRONT),
                "mouth": (5, FRONT),
                "chest": (0, FRONT),
                "back": (0, BACK),
                "left hand": (6, BOTTOM),
                "right hand": (7, BOTTOM),
                "left foot": (8, BOTTOM),
                "right foot": (9, BOTTOM),
            },
        ),
        Kind(
            "duck",
            ("length", "head", "neck"),
            _duck,
            front=True,
            mark="beak",
            keypoints={
                "head top": (1, TOP),
                "beak tip": (2, FRONT),
                "left eye": (3, LEFT),
                "right eye": (4, RIGHT),
                "left side": (0, LEFT),
                "right side": (0, RIGHT),
                "tail tip": (5, TOP),
            },
        ),
        Kind(
            "house",
            ("width", "height", "roof"),
            _house,
            front=True,
            mark="door",
            keypoints={
                "roof left": (1, (-1.0, 1.0, 0.0)),
                "roof right": (1, (1.0, 1.0, 0.0)),
                "door": (2, FRONT),
                "left window": (3, FRONT),
                "right window": (4, FRONT),
                "chimney top": (5, TOP),
            },
        ),
        Kind(
            "car",
            ("length", "cabin", "wheels"),
            _car,
            front=True,
            mark="windscreen",
            keypoints={
                "roof": (1, TOP),
                "left light": (4, FRONT),
                "right light": (5, FRONT),
                "back": (0, BACK),
                "rear left wheel": (6, TOP),
                "front left wheel": (7, TOP),
                "rear right wheel": (8, BOTTOM),
                "front right wheel": (9, BOTTOM),
            },
        ),
        Kind(
            "mug",
            ("height", "girth", "handle"),
            _mug,
            front=True,
            keypoints={"handle": (1, RIGHT), "coffee": (2, TOP), "bottom": (0, BOTTOM)},
        ),
        Kind(
            "snowman",
            ("body", "head", "hat"),
            _snowman,
            front=True,
            mark="nose",
            keypoints={
                "hat top": (8, TOP),
                "nose tip": (2, TOP),
                "left eye": (3, FRONT),
                "right eye": (4, FRONT),
                "button": (5, FRONT),
                "back": (0, BACK),
            },
        ),
        Kind("tree", ("trunk", "girth", "crown"), _tree, keypoints={"tip": (2, TOP), "root": (0, BOTTOM)}),
        Kind("mushroom", ("stem", "cap", "height"), _mushroom, keypoints={"cap top": (1, TOP), "root": (0, BOTTOM)}),
        Kind("lamp", ("pole", "shade", "height"), _lamp, keypoints={"shade top": (2, TOP), "base": (0, BOTTOM)}),
        Kind(
            "chair",
            ("legs", "width", "back"),
            _chair,
            front=True,
            keypoints={
                "back left": (1, (-1.0, 1.0, 0.0)),
                "back right": (1, (1.0, 1.0, 0.0)),
                "seat": (0, TOP),
                "rear left foot": (2, BOTTOM),
                "front left foot": (3, BOTTOM),
                "rear right foot": (4, BOTTOM),
                "front right foot": (5, BOTTOM),
            },
        ),
        Kind(
            "teapot",
            ("girth", "height"),
            _teapot,
            front=True,
            held_out=True,
            keypoints={"lid": (1, TOP), "spout tip": (2, TOP), "handle": (3, LEFT)},
        ),
        Kind(
            "rocket",
            ("height", "girth", "fins"),
            _rocket,
            front=True,
            mark="window",
            held_out=True,
            keypoints={"tip": (1, TOP), "window": (2, FRONT), "left fin": (3, LEFT), "right fin": (4, RIGHT)},
        ),
        Kind(
            "cactus",
            ("height", "girth", "arms"),
            _cactus,
            held_out=True,
            keypoints={"top": (0, TOP), "left arm": (2, TOP), "right arm": (4, TOP)},
        ),
        Kind(
            "boat",
            ("length", "mast", "sail"),
            _boat,
            front=True,
            held_out=True,
            keypoints={"bow": (0, FRONT), "stern": (0, BACK), "mast top": (2, TOP)},
        ),
    )
}
TRAINED = tuple(k for k, v in KINDS.items() if not v.held_out)
HELD_OUT = tuple(k for k, v in KINDS.items() if v.held_out)
