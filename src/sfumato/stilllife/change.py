"""Changes to a scene, as data: what is done, the scene it leads to, the sentence that asks for it, what it may touch.

A change is one of eleven small dataclasses. A counterfactual is the same world before and after one change, so that an
edit of an image can be compared, pixel by pixel, with what it should have been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from sfumato.errors import SfumatoError, unknown
from sfumato.stilllife import captions
from sfumato.stilllife.kinds import KINDS, TRAINED
from sfumato.stilllife.scene import (
    COLOURS,
    GROUNDS,
    LIGHTS,
    MATERIALS,
    SIZES,
    STYLES,
    SUPPORTS,
    Scene,
    Thing,
    sample_scene,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "closer": (0, 1), "further away": (0, -1)}
"""Ways to move a thing as the camera sees it -> (step to the right, step towards the camera)."""


@dataclass(frozen=True)
class Recolour:
    thing: int
    colour: str


@dataclass(frozen=True)
class Reshape:
    """Another kind in its place; colour, material, size and yaw stay."""

    thing: int
    kind: str
    shape: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rematerial:
    thing: int
    material: str


@dataclass(frozen=True)
class Reground:
    ground: str


@dataclass(frozen=True)
class Relight:
    light: str


@dataclass(frozen=True)
class Restyle:
    style: str


@dataclass(frozen=True)
class Add:
    """One more thing, after the others."""

    thing: Thing


@dataclass(frozen=True)
class Remove:
    thing: int


@dataclass(frozen=True)
class Move:
    """A step of ``by`` world units in one of ``DIRECTIONS``; what stands on the thing goes with it."""

    thing: int
    direction: str
    by: float = 0.6


@dataclass(frozen=True)
class Turn:
    """Counterclockwise seen from above, which is to the thing's own left, in degrees."""

    thing: int
    degrees: float = 180.0


@dataclass(frozen=True)
class Resize:
    thing: int
    size: str


Change: TypeAlias = Recolour | Reshape | Rematerial | Reground | Relight | Restyle | Add | Remove | Move | Turn | Resize


@dataclass(frozen=True)
class Counterfactual:
    """One world twice. ``captions`` describe it before and after, in the same phrasing; ``instruction`` asks for it."""

    before: Scene
    after: Scene
    change: Change
    captions: tuple[str, str]
    instruction: str


def same_geometry(change: Change) -> bool:
    """Whether both scenes have the same shapes, places and camera, so that one ``trace`` serves both."""
    return isinstance(change, Recolour | Rematerial | Reground | Relight | Restyle)


def apply(scene: Scene, change: Change) -> Scene:
    """The scene after the change.

    Raises ``SfumatoError`` for a thing that is not there, an unknown word, a change that changes nothing, and one that
    leads to a scene that cannot be (the only thing removed, things in one another).
    """
    match change:
        case Add(thing):
            return replace(scene, things=(*scene.things, thing))
        case Reground(ground):
            after = replace(scene, ground=ground)
        case Relight(light):
            after = replace(scene, light=light)
        case Restyle(style):
            after = replace(scene, style=style)
        case _:
            if not 0 <= change.thing < len(scene.things):
                raise SfumatoError(f"no thing {change.thing} to change; this scene's are 0 to {len(scene.things) - 1}")
            after = _apply_to_thing(scene, change)
    if after == scene:
        raise SfumatoError(f"{change} changes nothing: it is so already")
    return after


def _apply_to_thing(scene: Scene, change: Recolour | Reshape | Rematerial | Remove | Move | Turn | Resize) -> Scene:
    i = change.thing
    old = scene.things[i]
    match change:
        case Recolour(_, colour):
            return scene.with_thing(i, colour=colour)
        case Rematerial(_, material):
            return scene.with_thing(i, material=material)
        case Reshape(_, kind, shape):
            if kind == old.kind:
                raise SfumatoError(f"the thing is a {kind} already; name another kind")
            return scene.with_thing(i, kind=kind, shape=shape)
        case Resize(_, size):
            return scene.with_thing(i, size=size)
        case Turn(_, degrees):
            return scene.with_thing(i, yaw=(old.yaw + degrees + 180) % 360 - 180)
        case Remove():
            return _without(scene, i)
        case Move(_, direction, by):
            return _moved(scene, i, direction, by)


def _without(scene: Scene, index: int) -> Scene:
    if len(scene.things) == 1:
        raise SfumatoError(f"the {scene.things[0].kind} is the only thing; a scene without things cannot be")
    if _riders(scene, index):
        rider = scene.things[_riders(scene, index)[0]].kind
        raise SfumatoError(f"the {rider} stands on the {scene.things[index].kind}; remove the {rider} first")
    rest = (t for i, t in enumerate(scene.things) if i != index)
    return replace(scene, things=tuple(t if t.on is None else replace(t, on=t.on - (t.on > index)) for t in rest))


def _moved(scene: Scene, index: int, direction: str, by: float) -> Scene:
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    thing = scene.things[index]
    if thing.on is not None:
        under = scene.things[thing.on].kind
        raise SfumatoError(f"the {thing.kind} stands on the {under}; move the {under}")
    right, near = DIRECTIONS[direction]
    az = math.radians(scene.camera.azimuth)
    dx = by * (right * math.cos(az) + near * math.sin(az))
    dz = by * (near * math.cos(az) - right * math.sin(az))
    going = {index, *_riders(scene, index)}
    things = (replace(t, x=t.x + dx, z=t.z + dz) if i in going else t for i, t in enumerate(scene.things))
    return replace(scene, things=tuple(things))


def _riders(scene: Scene, index: int) -> list[int]:
    return [i for i, t in enumerate(scene.things) if t.on == index]


def counterfactual(scene: Scene, change: Change) -> Counterfactual:
    """The scene before and after the change, with captions and instruction. Raises as ``apply``."""
    after = apply(scene, change)
    return Counterfactual(
        scene, after, change, (captions.plain(scene), captions.plain(after)), instruction(scene, change)
    )


def name(scene: Scene, index: int) -> str:
    """The shortest name that means this thing and no other: "the cube", "the red cube", "the left red cube"."""
    thing = scene.things[index]
    alike = [i for i, t in enumerate(scene.things) if t.kind == thing.kind]
    words: list[str] = [thing.kind]
    for field in ("colour", "material", "size"):
        fewer = [i for i in alike if getattr(scene.things[i], field) == getattr(thing, field)]
        if len(fewer) < len(alike):
            alike = fewer
            words.insert(0, getattr(thing, field))
        if len(alike) == 1:
            return f"the {' '.join(words)}"
    across = sorted(alike, key=lambda i: _on_screen(scene, i)[0])
    shared = " ".join(words)
    ends = {0: f"the left {shared}", len(across) - 1: f"the right {shared}"}
    return ends.get(across.index(index), f"the {shared} next to the left one")


def instruction(scene: Scene, change: Change) -> str:
    """What to say to have the change made to this scene."""
    match change:
        case Add(thing):
            material = None if thing.material == "plain" else thing.material
            return f"add {captions.SaidThing(thing.kind, thing.colour, material).phrase()}"
        case Reground(ground):
            return f"put it on {ground}"
        case Relight(light):
            return "put it in fog" if light == "fog" else f"make it {light}"
        case Restyle(style):
            return f"make it a {style}"
    it = name(scene, change.thing)
    match change:
        case Recolour(_, colour):
            return f"make {it} {colour}"
        case Rematerial(_, material):
            return f"make {it} {material}"
        case Reshape(_, kind):
            return f"replace {it} with {captions.SaidThing(kind).phrase()}"
        case Resize(i, size):
            return f"make {it} {'larger' if SIZES[size] > scene.things[i].scale else 'smaller'}"
        case Turn(_, degrees):
            degrees = (degrees + 180) % 360 - 180
            how = "around" if abs(degrees) > 135 else "to its left" if degrees > 0 else "to its right"
            return f"turn {it} {how}"
        case Remove():
            return f"remove {it}"
        case Move(_, direction):
            return f"move {it} {direction}"


def _on_screen(scene: Scene, index: int) -> tuple[float, float, float]:
    """The middle of a thing as it appears, x right and y up from the image's centre, and its radius, in half frames."""
    thing = scene.things[index]
    inverse = np.linalg.inv(scene.camera.to_world())
    x, y, z, _ = inverse @ (thing.x, scene.base(index) + 0.5 * thing.height, thing.z, 1.0)
    reach = math.tan(math.radians(scene.camera.fov) / 2) * max(-z, 1e-6)
    return x / reach, y / reach, thing.radius / reach


def _in_sight(scene: Scene, index: int) -> bool:
    """Whether a thing is well inside the frame and neither hides nor is hidden, but by what it stands on or carries."""
    x, y, r = _on_screen(scene, index)
    near = {index, scene.things[index].on, *_riders(scene, index)}
    others = (_on_screen(scene, i) for i in range(len(scene.things)) if i not in near)
    return max(abs(x), abs(y)) < 0.75 and all(math.hypot(x - u, y - v) > 0.7 * (r + q) for u, v, q in others)


def _apart(scene: Scene) -> bool:
    """Whether things on the ground keep clear of one another; ``Scene`` itself allows them to be closer."""
    low = [t for t in scene.things if t.on is None]
    return all(math.hypot(a.x - b.x, a.z - b.z) > a.radius + b.radius for i, a in enumerate(low) for b in low[i + 1 :])


def _other(rng: np.random.Generator, words: Iterable[str], *but: str) -> str:
    return str(rng.choice([w for w in words if w not in but]))


def _sample_add(scene: Scene, rng: np.random.Generator, i: int) -> Change:
    kind, r = str(rng.choice(TRAINED)), 0.25 * scene.camera.distance
    az = math.radians(scene.camera.azimuth)
    right, near = rng.uniform(-r, r), rng.uniform(-0.6 * r, 0.6 * r)
    return Add(
        Thing(
            kind,
            str(rng.choice(COLOURS)),
            str(rng.choice(MATERIALS)),
            "medium" if rng.random() < 0.5 else "small",
            float(right * math.cos(az) + near * math.sin(az)),
            float(near * math.cos(az) - right * math.sin(az)),
            float(rng.uniform(-180, 180)),
            tuple(float(v) for v in rng.uniform(-1, 1, len(KINDS[kind].shape))),
        )
    )


def _sample_reshape(scene: Scene, rng: np.random.Generator, i: int) -> Change:
    kind = _other(rng, SUPPORTS if _riders(scene, i) else TRAINED, scene.things[i].kind)
    return Reshape(i, kind, tuple(float(v) for v in rng.uniform(-1, 1, len(KINDS[kind].shape))))


def _sample_resize(scene: Scene, rng: np.random.Generator, i: int) -> Change:
    return Resize(i, _other(rng, SIZES, scene.things[i].size))


_SAMPLE: dict[str, Callable[[Scene, np.random.Generator, int], Change]] = {
    "recolour": lambda s, rng, i: Recolour(i, _other(rng, COLOURS, s.things[i].colour)),
    "reshape": _sample_reshape,
    "material": lambda s, rng, i: Rematerial(i, _other(rng, MATERIALS, s.things[i].material)),
    "ground": lambda s, rng, i: Reground(_other(rng, GROUNDS, s.ground)),
    "light": lambda s, rng, i: Relight(_other(rng, LIGHTS, s.light)),
    "style": lambda s, rng, i: Restyle(_other(rng, STYLES, s.style)),
    "add": _sample_add,
    "remove": lambda s, rng, i: Remove(i),
    "move": lambda s, rng, i: Move(i, str(rng.choice(list(DIRECTIONS))), float(rng.uniform(0.4, 0.9))),
    "turn": lambda s, rng, i: Turn(i, float(rng.choice([180, 90, -90], p=[0.6, 0.2, 0.2]))),
    "resize": _sample_resize,
}
OPS = tuple(_SAMPLE)


def _fits(scene: Scene, change: Change) -> bool:
    """Whether a drawn change leads to a scene that can be, in which the change is seen and keeps its distance."""
    if isinstance(change, Turn) and not KINDS[scene.things[change.thing].kind].front:
        return False  # a turned sphere is the same sphere
    try:
        after = apply(scene, change)
    except SfumatoError:
        return False
    match change:
        case Add():
            return _apart(after) and _in_sight(after, len(after.things) - 1)
        case Move(i):
            return _apart(after) and _in_sight(after, i)
        case Reshape() | Resize():
            return _apart(after) or not _apart(scene)
        case _:
            return True


def sample_change(scene: Scene, rng: np.random.Generator, ops: Sequence[str] | None = None) -> Change:
    """A change that this scene can take, its kind drawn evenly from ``ops`` (default: all of ``OPS``).

    Raises ``SfumatoError`` for an unknown op, or when none of ``ops`` is possible here.
    """
    asked = OPS if ops is None else tuple(ops)
    for op in asked:
        if op not in OPS:
            raise unknown("change", op, OPS)
    for op in rng.permutation(np.array(asked, dtype=object)):
        for _ in range(60):
            change = _SAMPLE[op](scene, rng, int(rng.integers(len(scene.things))))
            if _fits(scene, change):
                return change
    raise SfumatoError(f"none of these changes is possible in this scene: {', '.join(asked)}")


def sample_counterfactual(rng: np.random.Generator, op: str, count: int) -> Counterfactual:
    """A change of this kind, in a scene of ``count`` things that can take it.

    Raises ``SfumatoError`` for an unknown op and one that no such scene takes.
    """
    if op not in OPS:
        raise unknown("change", op, OPS)
    for _ in range(100):
        scene = sample_scene(rng, count=count)
        with suppress(SfumatoError):  # a scene that is full, say, has no place for one more
            return counterfactual(scene, sample_change(scene, rng, [op]))
    raise SfumatoError(f"no scene of {count} takes this change: {op}")


def _placed(scene: Scene) -> list[tuple[Thing, float]]:
    return [(replace(t, on=None), scene.base(i)) for i, t in enumerate(scene.things)]


_TILE = 4  # a mosaic's tiles in pixels
_REACH = {"photo": 1, "pencil sketch": 2, "watercolour": 8, "mosaic": 1}
"""How far, in pixels, a change is felt: a photo's smooth edges, a pencil's contours, a watercolour's wet rims."""


def masks(counterfactual: Counterfactual, size: int = 128) -> Bool[Tensor, "h w"]:
    """The pixels that the change may touch; elsewhere the two renders agree to within 1/255.

    They are those of the changed things in either scene, those whose shadow or ambient occlusion differs, and around
    them the pixels that smooth edges and the style reach. A new ground may touch all ground; light and style, all.
    """
    import torch
    import torch.nn.functional as F

    from sfumato.stilllife.render import trace

    scenes = (counterfactual.before, counterfactual.after)
    if isinstance(counterfactual.change, Relight | Restyle):
        return torch.ones(size, size, dtype=torch.bool)
    buffers = trace(scenes, size)
    if isinstance(counterfactual.change, Reground):
        touched = (buffers.thing < 0) & ~buffers.t.isinf()
    else:
        placed = [_placed(s) for s in scenes]
        most = max(map(len, placed)) + 1
        gone = [[p not in other for p in mine] for mine, other in (placed, placed[::-1])]
        rows = [row + [False] * (most - len(row)) for row in gone]
        touched = torch.tensor(rows)[buffers.pixel // size**2, buffers.thing]  # -1, no thing, reads the last column
    out = torch.zeros(2 * size**2, dtype=torch.bool)
    out[buffers.pixel[touched]] = True
    # less than a thousandth of the light is not seen in eight bits
    lit = torch.stack([buffers.light, buffers.ambient, torch.ones_like(buffers.t)])
    total = torch.zeros(3, 2 * size**2).index_add_(1, buffers.pixel, lit)
    lit = (total[:2] / total[2]).view(2, 2, size, size)
    mask = out.view(2, size, size).any(0) | ((lit[:, 0] - lit[:, 1]).abs() > 1e-3).any(0)
    reach = _REACH[counterfactual.before.style]
    grown = F.max_pool2d(mask[None, None].float(), 2 * reach + 1, 1, reach)
    if counterfactual.before.style == "mosaic":
        tiles = F.max_pool2d(grown, _TILE, ceil_mode=True)
        grown = tiles.repeat_interleave(_TILE, 2).repeat_interleave(_TILE, 3)[..., :size, :size]
    return grown[0, 0] > 0


def render_pairs(
    counterfactuals: Sequence[Counterfactual], size: int = 128, device: str | None = None
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
    """The images before and after, in [0, 1]. Where only the appearance changes, one trace serves both."""
    import torch

    from sfumato.stilllife.render import shade, trace

    before = torch.empty(len(counterfactuals), 3, size, size, device=device)
    after = torch.empty_like(before)
    for same in (True, False):
        at = [i for i, c in enumerate(counterfactuals) if same_geometry(c.change) == same]
        if not at:
            continue
        old, new = [counterfactuals[i].before for i in at], [counterfactuals[i].after for i in at]
        buffers = trace(old, size, device)
        before[at] = shade(buffers)
        after[at] = shade(buffers, new) if same else shade(trace(new, size, device))
    return before, after
