"""A still life as data: things on a ground, under a light, seen by a camera, in a style.

World units: a medium thing is about one unit tall. y is up, the ground is y = 0. A thing's front looks along +z at
yaw 0; yaw turns it counterclockwise seen from above, in degrees. The camera circles the target: azimuth 0 looks from
+z, azimuth 90 from +x; elevation is its angle above the ground. "Left", "in front of" and the like are as the camera
sees them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sfumato.errors import SfumatoError, unknown
from sfumato.io.files import from_json
from sfumato.stilllife.kinds import KINDS, TRAINED

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
MATERIALS = ("plain", "striped", "dotted", "checkered", "shiny")
SIZES = {"small": 0.8, "medium": 1.0, "large": 1.25}
GROUNDS = ("grass", "sand", "snow", "stone", "wood", "water")
LIGHTS = ("day", "sunset", "night", "fog")
STYLES = ("photo", "pencil sketch", "watercolour", "mosaic")
RELATIONS = ("left of", "right of", "in front of", "behind", "on top of")
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
}
VIEWS = ("front", "side", "back", "overhead")
_MATERIAL_ODDS = (0.4, 0.15, 0.15, 0.15, 0.15)
_LIGHT_ODDS = (0.4, 0.2, 0.2, 0.2)
_STYLE_ODDS = (0.61, 0.13, 0.13, 0.13)
SUPPORTS = ("cube", "cylinder")  # kinds that something can stand on


def _one_of(what: str, value: object, known: Collection[str]) -> None:
    if value not in known:
        raise unknown(what, value, known)


def _finite(what: str, *values: float) -> None:
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v):
            raise SfumatoError(f"{what} must be a finite number, got {v!r}")


@dataclass(frozen=True)
class Thing:
    """One thing. ``shape`` holds its kind's shape parameters in [-1, 1]; ``on`` is the index of what it stands on."""

    kind: str
    colour: str = "red"
    material: str = "plain"
    size: str = "medium"
    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0
    shape: tuple[float, ...] = ()
    on: int | None = None

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("colour", self.colour, COLOURS)
        _one_of("material", self.material, MATERIALS)
        _one_of("size", self.size, SIZES)
        _finite(f"the position and yaw of the {self.kind}", self.x, self.z, self.yaw)
        names = KINDS[self.kind].shape
        shape = tuple(float(v) for v in self.shape) or (0.0,) * len(names)
        if len(shape) != len(names):
            raise SfumatoError(
                f"a {self.kind} has {len(names)} shape parameters ({', '.join(names)}), got {len(shape)}"
            )
        if not all(-1 <= v <= 1 for v in shape):
            raise SfumatoError(f"shape parameters lie in [-1, 1]; the {self.kind} has {list(shape)}")
        object.__setattr__(self, "shape", shape)

    @property
    def scale(self) -> float:
        return SIZES[self.size]

    @property
    def height(self) -> float:
        """Top of the thing above what it stands on, in world units."""
        return KINDS[self.kind].height(self.shape) * self.scale

    @property
    def radius(self) -> float:
        """Radius of its footprint, in world units."""
        return KINDS[self.kind].radius(self.shape) * self.scale


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at ``target``. Angles in degrees; ``fov`` is vertical."""

    azimuth: float = 0.0
    elevation: float = 18.0
    distance: float = 3.8
    target: tuple[float, float, float] = (0.0, 0.45, 0.0)
    fov: float = 40.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", tuple(float(v) for v in self.target))
        if len(self.target) != 3:
            raise SfumatoError(f"a camera's target is three numbers, got {list(self.target)}")
        _finite("a camera's numbers", self.azimuth, self.elevation, self.distance, self.fov, *self.target)
        if not 0 < self.elevation < 90:
            raise SfumatoError(f"a camera's elevation lies between 0 and 90 degrees, got {self.elevation}")
        if not 0.5 <= self.distance <= 100:
            raise SfumatoError(f"a camera's distance lies in [0.5, 100], got {self.distance}")
        if not 1 <= self.fov <= 150:
            raise SfumatoError(f"a camera's field of view lies in [1, 150] degrees, got {self.fov}")

    @property
    def eye(self) -> np.ndarray:
        """Its position in the world, (3,)."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        out = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        return np.array(self.target) + self.distance * out

    def to_world(self) -> np.ndarray:
        """Camera-to-world, (4, 4), OpenGL: x right, y up, the camera looks along its -z."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        right = np.array([math.cos(a), 0.0, -math.sin(a)])
        back = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        pose = np.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(back, right), back, self.eye
        return pose

    def intrinsics(self, size: int) -> np.ndarray:
        """(3, 3) for a square image of ``size`` pixels; pixel centres lie at halves."""
        f = 0.5 * size / math.tan(math.radians(self.fov) / 2)
        return np.array([[f, 0, size / 2], [0, f, size / 2], [0, 0, 1.0]])


@dataclass(frozen=True)
class Scene:
    """A still life. ``sun`` is the azimuth in degrees that light comes from; ``seed`` fixes the ground's texture."""

    things: tuple[Thing, ...]
    ground: str = "grass"
    light: str = "day"
    style: str = "photo"
    camera: Camera = Camera()
    sun: float = -40.0
    seed: int = 0

    most: ClassVar[int] = 3  # as many things as a caption can name

    def __post_init__(self) -> None:
        object.__setattr__(self, "things", tuple(self.things))
        if not 1 <= len(self.things) <= self.most:
            raise SfumatoError(
                f"a {type(self).__name__.lower()} holds one to {self.most} things, got {len(self.things)}"
            )
        _one_of("ground", self.ground, GROUNDS)
        _one_of("light", self.light, LIGHTS)
        _one_of("style", self.style, STYLES)
        _finite("the sun's azimuth", self.sun)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise SfumatoError(f"a scene's seed is a whole number from 0, got {self.seed!r}")
        for i, t in enumerate(self.things):
            if t.on is None:
                continue
            if not isinstance(t.on, int) or not 0 <= t.on < len(self.things) or t.on == i:
                raise SfumatoError(f"thing {i} stands on {t.on!r}, which is not another thing of this scene")
            if self.things[t.on].kind not in SUPPORTS or self.things[t.on].on is not None:
                raise SfumatoError(f"things stand on a {' or a '.join(SUPPORTS)} on the ground, not on thing {t.on}")
            if math.hypot(t.x - self.things[t.on].x, t.z - self.things[t.on].z) > self.things[t.on].radius:
                raise SfumatoError(f"the {t.kind} is beside thing {t.on}, which it stands on; give both one place")
        for i, a in enumerate(self.things):
            for b in self.things[i + 1 :]:
                if a.on == b.on and math.hypot(a.x - b.x, a.z - b.z) < 0.75 * (a.radius + b.radius):
                    raise SfumatoError(f"the {a.kind} and the {b.kind} are in one another; move one of them")

    def base(self, index: int) -> float:
        """Height of the surface that a thing stands on."""
        on = self.things[index].on
        return 0.0 if on is None else self.things[on].height

    def with_thing(self, index: int, **change: Any) -> Scene:
        """This scene with fields of one thing replaced."""
        things = list(self.things)
        things[index] = replace(things[index], **change)
        return replace(self, things=tuple(things))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        try:
            things = tuple(Thing(**t) for t in data["things"])
            rest = {k: v for k, v in data.items() if k not in ("things", "camera")}
            return cls(things, camera=Camera(**data.get("camera", {})), **rest)
        except (TypeError, KeyError, ValueError, AttributeError) as e:
            raise SfumatoError(f"not a scene: {e}") from e

    @classmethod
    def from_json(cls, text: str) -> Scene:
        try:
            data = from_json(text, dict)
        except ValueError as e:
            raise SfumatoError(f"not a scene: broken JSON ({e})") from e
        return cls.from_dict(data)


class Wide(Scene):
    """A world with more things than a caption names, for strips and panoramas."""

    most: ClassVar[int] = 24


def relation(scene: Scene, a: int, b: int) -> str | None:
    """Where thing ``a`` is to thing ``b`` as the camera sees it, or None when neither side nor depth clearly leads."""
    first, second = scene.things[a], scene.things[b]
    if first.on == b:
        return "on top of"
    if second.on == a or first.on is not None or second.on is not None:
        return None
    az = math.radians(scene.camera.azimuth)
    dx, dz = first.x - second.x, first.z - second.z
    side = dx * math.cos(az) - dz * math.sin(az)
    depth = dx * math.sin(az) + dz * math.cos(az)  # towards the camera
    if abs(side) > 1.5 * abs(depth):
        return "right of" if side > 0 else "left of"
    if abs(depth) > 1.5 * abs(side):
        return "in front of" if depth > 0 else "behind"
    return None


def view(scene: Scene, index: int) -> str | None:
    """The view word that holds for a thing with a front, or None between two views (or without a front)."""
    thing = scene.things[index]
    if not KINDS[thing.kind].front:
        return None
    if scene.camera.elevation >= 55:
        return "overhead"
    turn = abs((thing.yaw - scene.camera.azimuth + 180) % 360 - 180)
    if turn <= 36:
        return "front"
    if turn >= 144:
        return "back"
    return "side" if 60 <= turn <= 120 else None


def sample_scene(
    rng: np.random.Generator,
    *,
    count: int | None = None,
    kinds: Iterable[str] = TRAINED,
    style: str | None = None,
    view: str | None = None,
    relation: str | None = None,
    same: bool | None = None,
) -> Scene:
    """Draw a scene. What is given is held: ``count`` things, kinds to draw from, a style, a view word for the first
    thing (which then has a front, if any of the kinds has one), a relation of the first thing to the second, all things
    of the ``same`` kind and colour. Only what stands on something may stand on a kind that was not given."""
    names = tuple(kinds)
    for what, asked, known in (("view", view, VIEWS), ("relation", relation, RELATIONS)):
        if asked is not None:
            _one_of(what, asked, known)
    for kind in names:
        _one_of("kind", kind, KINDS)
    if count is None:
        count = int(rng.choice([1, 2, 3], p=[0.5, 0.4, 0.1])) if relation is None else 2
    n = count
    if not names or n not in (1, 2, 3) or (n == 1 and relation is not None):
        asked = f"{n} things of {len(names)} kinds" + (f", one {relation} the other" if relation else "")
        raise SfumatoError(
            f"cannot draw {asked}; ask for one to three things (two or three in a relation) of some kinds"
        )
    overhead = view == "overhead" or (view is None and relation is None and rng.random() < 0.06)
    camera = Camera(
        azimuth=0.0,
        elevation=float(rng.uniform(58, 75) if overhead else rng.uniform(12, 28)),
        distance=float({1: 3.0, 2: 3.9, 3: 4.6}[n] * rng.uniform(0.93, 1.1)),
        target=(0.0, 0.45, 0.0),
    )
    if same is None:
        same = n > 1 and relation is None and rng.random() < 0.12
    shown = style or str(rng.choice(STYLES, p=_STYLE_ODDS))
    base = Scene(
        (Thing("sphere"),),
        ground=str(rng.choice(GROUNDS)),
        light=str(rng.choice(LIGHTS, p=_LIGHT_ODDS)),
        style=shown,
        camera=camera,
        sun=float(rng.uniform(-75, 75)),
        seed=int(rng.integers(0, 2**31)),
    )
    for _ in range(200):
        things = _draw_things(rng, n, names, relation, same, view)
        try:
            drawn = replace(base, things=things)
        except SfumatoError:  # drawn into one another: draw again
            continue
        # look at the middle of what is there, from far enough to see its top
        top = max(drawn.base(i) + t.height for i, t in enumerate(things))
        middle = replace(camera, target=(0.0, 0.42 * top, 0.0), distance=max(camera.distance, 2.1 * top))
        return replace(drawn, camera=middle)
    raise SfumatoError(f"no room found for {n} things of the kinds {', '.join(names)}")


def redress(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same geometry and camera in another appearance: colours, materials, ground, light, style and texture."""
    same = len({(t.kind, t.colour) for t in scene.things}) == 1
    colours = [str(rng.choice(COLOURS))] * len(scene.things) if same else rng.choice(COLOURS, len(scene.things))
    return replace(
        scene,
        things=tuple(
            replace(t, colour=str(c), material=str(rng.choice(MATERIALS, p=_MATERIAL_ODDS)))
            for t, c in zip(scene.things, colours, strict=True)
        ),
        ground=str(rng.choice(GROUNDS)),
        light=str(rng.choice(LIGHTS, p=_LIGHT_ODDS)),
        style=str(rng.choice(STYLES, p=_STYLE_ODDS)),
        seed=int(rng.integers(0, 2**31)),
    )


def _pair(rng: np.random.Generator, how: str) -> list[tuple[float, float]]:
    """Places of two things, the first in the relation ``how`` to the second."""
    gap, slip = rng.uniform(1.15, 1.6) / 2, rng.uniform(-0.25, 0.25)
    if how in ("left of", "right of"):
        sign = -1 if how == "left of" else 1
        return [(sign * gap, slip), (-sign * gap, -slip)]
    # beside one another a little, so that the one in front does not hide the other
    aside = rng.uniform(0.25, 0.36) * rng.choice([-1, 1])
    sign = 1 if how == "in front of" else -1
    if how == "on top of":
        return [(0.0, 0.0), (rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))]
    return [(aside, sign * gap), (-aside, -sign * gap)]


def _draw_things(rng, n, names, wanted, same, first_view) -> tuple[Thing, ...]:
    spots: list[tuple[float, float]]
    how = None
    if n == 1:
        spots = [(rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))]
    elif n == 2:
        how = wanted or str(rng.choice(RELATIONS, p=[0.3, 0.3, 0.14, 0.14, 0.12]))
        if wanted is None and how == "on top of" and (same or not set(names) & set(SUPPORTS)):
            how = "left of"
        spots = _pair(rng, how)
    elif wanted in (None, "left of", "right of"):
        lean = 0.5 if wanted is None else 0.3  # with less the relation is beyond doubt
        spots = [(x * rng.uniform(1.05, 1.3), rng.uniform(-lean, lean)) for x in (-1, 0, 1)]
        rng.shuffle(spots)
        if wanted:
            spots[:2] = sorted(spots[:2], reverse=wanted == "right of")
    else:  # the pair to one side, the third to the other
        how, side = wanted, rng.choice([-1, 1])
        spots = [(x - 0.6 * side, z) for x, z in _pair(rng, how)]
        spots.append((side * rng.uniform(0.85, 1.0), rng.uniform(-0.3, 0.3)))
    on_top = how == "on top of"
    things: list[Thing] = []
    for i, (x, z) in enumerate(spots):
        pool = [k for k in names if k in SUPPORTS] or list(SUPPORTS) if on_top and i == 1 else names
        if i == 0 and first_view:
            pool = [k for k in names if KINDS[k].front] or names
        kind, colour = str(rng.choice(pool)), str(rng.choice(COLOURS))
        if same and things and not on_top:
            kind, colour = things[0].kind, things[0].colour
        facing = str(rng.choice(["front", "side", "back"], p=[0.5, 0.3, 0.2]))
        if i == 0 and first_view in ("front", "side", "back"):
            facing = str(first_view)
        yaw = {"front": 0.0, "side": 90.0 * rng.choice([-1, 1]), "back": 180.0}[facing] + rng.uniform(-30, 30)
        if not KINDS[kind].front:
            yaw = rng.uniform(-180, 180)
        things.append(
            Thing(
                kind,
                colour,
                str(rng.choice(MATERIALS, p=_MATERIAL_ODDS)),
                str(rng.choice(list(SIZES), p=[0.25, 0.5, 0.25])),
                float(x),
                float(z),
                float((yaw + 180) % 360 - 180),
                tuple(float(v) for v in rng.uniform(-1, 1, len(KINDS[kind].shape))),
                on=1 if on_top and i == 0 else None,
            )
        )
    if on_top:  # the upper thing stands on the middle of the lower one, and is not larger than it
        low = things[1]
        upper_size = "medium" if low.size == "large" else "small"
        things[0] = replace(things[0], x=low.x, z=low.z, size=upper_size)
    return tuple(things)
