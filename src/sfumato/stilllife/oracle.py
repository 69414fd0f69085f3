"""The oracle: a small network that reads a still life from its pixels. It is the judge of the benches.

It is fully convolutional. Per pixel it tells thing from no thing and points to the middle of the thing that the pixel
belongs to; pixels that point to the same spot are one thing, so that two red cubes side by side are two. Kind, colour,
material and whether the mark of a front is seen are maps as well, averaged over a thing's pixels. Ground, light and
style are read from pooled features. It learns from renders only (``sfumato.stilllife.train.oracle``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.io.files import atomic, from_json
from sfumato.stilllife.kinds import KINDS, TRAINED
from sfumato.stilllife.scene import COLOURS, GROUNDS, LIGHTS, MATERIALS, STYLES, Scene, relation

if TYPE_CHECKING:
    from sfumato.stilllife.captions import Said

TRAITS = {"kind": TRAINED, "colour": COLOURS, "material": MATERIALS, "mark": ("seen",)}
WORLD = {"ground": GROUNDS, "light": LIGHTS, "style": STYLES}
REACH = 32.0  # pixels that an offset of 1 stands for
SMALLEST = 20  # pixels: anything smaller is not a thing
COUNTED = 40  # visible pixels from which on a true thing counts in ``score``
MARK_SEEN = 6  # visible pixels from which on a mark is seen
_CELL = 4  # pixels: side of a cell of the vote grid
_APART = 12.0  # pixels: votes nearer than this to a middle belong to it
_ASTRAY = 0.3  # part of the root of a group's size by which its votes may miss its middle
_SIDEWAYS = 0.55  # height difference over side distance in the image, below which two things are beside one another
SURE = 0.85
"""It is surer than this of 288 of 300 renders that it never saw, of 9 of 24 photographs of single things, and of
none of 14 frames of a fox and a car."""
_STEP = 16  # an image's sides are multiples of it
_WHEN = {"day": "by day", "sunset": "at sunset", "night": "at night", "fog": "in fog"}


class Maps(NamedTuple):
    """What the network puts out, for images of h x w pixels."""

    mask: Float[Tensor, "b h w"]  # logit of thing against no thing
    offset: Float[Tensor, "b 2 h w"]  # x and y from the pixel to the middle of its thing, in units of REACH pixels
    traits: Float[Tensor, "b traits h//4 w//4"]  # logits, the TRAITS one after another
    world: Float[Tensor, "b world"]  # logits, the WORLD one after another


def _width(table: dict[str, tuple[str, ...]]) -> list[int]:
    return [len(words) for words in table.values()]


class _Block(nn.Module):
    def __init__(self, channels: int, *, normed: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels) if normed else nn.Identity()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(self.norm(x))))


class Oracle(nn.Module):
    """Reads images of 128 x 128 pixels; see ``read``. ``widths``: channels at 1/2, 1/4, 1/8 and 1/16 of the image."""

    def __init__(self, widths: Sequence[int] = (32, 64, 96, 128), depths: Sequence[int] = (1, 2, 2, 2)) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "depths": list(depths)}
        fine = widths[0]
        # at the finest level a norm costs more than the convolutions, and the network learns as well without
        normed = [bool(i) for i in range(len(widths))]
        # 2 x 2 pixels become channels: the finest layers run at half size and yet see, and mark, every pixel
        self.stem = nn.Conv2d(12, fine, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.encode = nn.ModuleList(
            nn.Sequential(*(_Block(w, normed=n) for _ in range(d)))
            for w, d, n in zip(widths, depths, normed, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(_Block(w, normed=n) for w, n in zip(widths[:-1], normed, strict=False))
        self.place = nn.Conv2d(fine, 3 * 4, 3, padding=1)
        self.traits = nn.Conv2d(widths[1], sum(_width(TRAITS)), 3, padding=1)
        self.world = nn.Sequential(nn.Linear(sum(widths), 128), nn.ReLU(), nn.Linear(128, sum(_width(WORLD))))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Maps:
        """Images in [0, 1] to maps; h and w are multiples of 16, else ``SfumatoError``."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[-1] % _STEP or images.shape[-2] % _STEP:
            shape = tuple(images.shape)
            raise SfumatoError(f"the oracle reads images (b, 3, h, w) with h and w multiples of {_STEP}, not {shape}")
        x = F.pixel_unshuffle(images * 2 - 1, 2).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        levels = []
        for i, stage in enumerate(self.encode):
            x = stage(self.down[i - 1](x) if i else x)
            levels.append(x)
        world = self.world(torch.cat([F.relu(level).mean((2, 3)) for level in levels], 1))
        for i in reversed(range(len(self.decode))):
            levels[i] = x = self.decode[i](levels[i] + F.interpolate(self.up[i](x), scale_factor=2.0, mode="bilinear"))
        traits = self.traits(F.relu(levels[1]))
        place = F.pixel_shuffle(self.place(F.relu(x)), 2).float()
        return Maps(place[:, 0], place[:, 1:], traits.float(), world.float())

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"], batch: int = 64) -> list[Reading]:
        """What is seen in each image (values in [0, 1]; 128 x 128 is what it was trained on) and in its mirror image.

        The mean of both reads a tenth of the kinds right that one view alone gets wrong.
        """
        device = next(self.parameters()).device
        out: list[Reading] = []
        for part in images.split(batch):
            pixels = part.to(device).float()
            maps = mean(self(pixels), mirrored(self(pixels.flip(-1))))
            out += interpret(maps, group(maps.mask, maps.offset))
        return out

    def save(self, path: str | Path) -> None:
        """Half-precision safetensors with the configuration in the metadata."""
        tensors = {k: v.detach().half().contiguous().cpu() for k, v in self.state_dict().items()}
        with atomic(path) as part:
            save_file(tensors, part, {"config": json.dumps(self.config)})

    @classmethod
    def load(cls, path: str | Path | None = None, device: str | torch.device = "cpu") -> Oracle:
        """The oracle that ships with the package, or one that ``save`` wrote. ``SfumatoError`` if it cannot be read."""
        if path is None:
            from sfumato.stilllife import weights

            path = weights.path("oracle.safetensors")
        try:
            with safe_open(path, "pt") as file:
                oracle = cls(**from_json((file.metadata() or {})["config"], dict))
                oracle.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, RuntimeError) as e:
            raise SfumatoError(f"{path} holds no oracle: {e}") from e
        return oracle.to(device).eval()


def mirrored(maps: Maps) -> Maps:
    """The maps of the mirror images."""
    across = maps.offset.new_tensor([-1.0, 1.0]).view(2, 1, 1)
    return Maps(maps.mask.flip(-1), maps.offset.flip(-1) * across, maps.traits.flip(-1), maps.world)


def mean(a: Maps, b: Maps) -> Maps:
    return Maps(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


@dataclass(frozen=True)
class ReadThing:
    """A thing as it was seen. ``box`` is (left, top, right, bottom) in pixels, right and bottom exclusive."""

    kind: str
    colour: str
    material: str
    box: tuple[int, int, int, int]
    centre: tuple[float, float]  # mean x and y of its pixels
    pixels: int
    face: bool  # the part that only a front view shows (a robot's face, a house's door) is seen

    def __str__(self) -> str:
        return " ".join((*(() if self.material == "plain" else (self.material,)), self.colour, self.kind))


@dataclass(frozen=True, eq=False)
class Reading:
    """What the oracle saw in one image. Things are ordered from left to right."""

    things: tuple[ReadThing, ...]
    ground: str
    light: str
    style: str
    mask: Int[np.ndarray, "h w"]  # 0 for no thing, else 1 + index into things
    sure: float = 1.0  # how probable it holds ground, light and style together to be

    @property
    def strange(self) -> bool:
        """Is the picture unlike what the oracle has learned?"""
        return self.sure < SURE

    def relation(self, a: int, b: int) -> str | None:
        """Where thing ``a`` is to thing ``b`` in the words of ``scene.RELATIONS``; None for what something stands on.

        Judged from the image alone, by rules set against ``scene.relation`` on renders: see ``_SIDEWAYS``.
        """
        first, second = self.things[a], self.things[b]
        if _stands_on(first, second):
            return "on top of"
        if _stands_on(second, first):
            return None
        side = first.centre[0] - second.centre[0]
        # what is nearer to the camera meets the ground lower in the image
        depth = first.box[3] - second.box[3]
        if abs(depth) <= _SIDEWAYS * abs(side):
            return "right of" if side > 0 else "left of"
        return "in front of" if depth > 0 else "behind"

    def describe(self) -> str:
        """A sentence: "a red cube left of a blue duck on grass, by day, photo"."""
        if len(self.things) == 2:
            order = (1, 0) if self.relation(1, 0) == "on top of" else (0, 1)
            joint = self.relation(*order) or "and"
            what = f"a {self.things[order[0]]} {joint} a {self.things[order[1]]}"
        else:
            what = _listed([f"a {t}" for t in self.things]) or "nothing"
        return f"{what} on {self.ground}, {_WHEN[self.light]}, {self.style}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the mask."""
        return {
            "things": [asdict(t) for t in self.things],
            "ground": self.ground,
            "light": self.light,
            "style": self.style,
            "sentence": self.describe(),
            "sure": round(self.sure, 3),
            "strange": self.strange,
        }


def _stands_on(upper: ReadThing, lower: ReadThing) -> bool:
    """Straight above, and its foot clearly above the other's; behind it, a thing would show to one side."""
    left, top, right, bottom = lower.box
    aside = abs(upper.centre[0] - lower.centre[0])
    above = upper.box[3] < bottom - 0.2 * (bottom - top) and upper.centre[1] < lower.centre[1]
    return above and aside < 0.25 * (right - left)


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def group(mask: Float[Tensor, "b h w"], offset: Float[Tensor, "b 2 h w"]) -> Int[Tensor, "b h w"]:
    """Pixels to things: 0 for none, else 1 + a number below ``Scene.most``.

    Every pixel of a thing votes for a middle; the fullest spots of the vote grid are the things, and each pixel goes to
    the one nearest to its vote. Groups of fewer than SMALLEST pixels, or whose votes miss their own middle, are
    dissolved into the others.
    """
    b, h, w = mask.shape
    inside = (mask > 0).flatten(1)
    x = (torch.arange(w).to(offset) + REACH * offset[:, 0]).flatten(1)  # the votes, (b, hw)
    y = (torch.arange(h).to(offset)[:, None] + REACH * offset[:, 1]).flatten(1)
    rows, columns = -(-h // _CELL), -(-w // _CELL)
    cell = (y / _CELL).long().clamp(0, rows - 1) * columns + (x / _CELL).long().clamp(0, columns - 1)
    left, distances, real = inside, [], []
    for _ in range(Scene.most):
        grid = x.new_zeros(b, rows * columns).scatter_add_(1, cell, left.to(x))
        peak = F.avg_pool2d(grid.view(b, 1, rows, columns), 3, 1, 1).flatten(1).argmax(1)
        middle_x, middle_y = ((at + 0.5) * _CELL for at in (peak % columns, peak // columns))
        near = left & (_squared(x, y, middle_x, middle_y) < _APART**2)
        count = near.sum(1)
        middle_x, middle_y = ((v * near).sum(1) / count.clamp(min=1) for v in (x, y))
        distances.append(_squared(x, y, middle_x, middle_y))
        real.append(count >= SMALLEST)
        left = left & (distances[-1] >= _APART**2) & ~near
    distance, exists = torch.stack(distances, 1), torch.stack(real, 1)
    at_x, at_y = (torch.arange(h * w, device=x.device) % w).to(x), (torch.arange(h * w, device=x.device) // w).to(x)
    for _ in range(2):  # the second time without those that proved to be none
        nearest = distance.masked_fill(~exists[..., None], torch.inf).argmin(1)
        mine = apart(torch.where(inside, nearest + 1, 0)).to(x)
        size = mine.sum(2)
        # a thing's pixels vote for the middle of just these pixels; stray votes do not
        astray_x, astray_y = ((mine * v[:, None]).sum(2) / size.clamp(min=1) for v in (x - at_x, y - at_y))
        exists = exists & (size >= SMALLEST) & (astray_x**2 + astray_y**2 < _ASTRAY**2 * size)
    return torch.where(inside & exists.gather(1, nearest), nearest + 1, 0).view(b, h, w)


def _squared(x: Tensor, y: Tensor, to_x: Tensor, to_y: Tensor) -> Tensor:
    return (x - to_x[:, None]).square() + (y - to_y[:, None]).square()


def apart(label: Int[Tensor, "b ..."]) -> Bool[Tensor, "b most ..."]:
    """One mask a thing, of labels that are 0 for none, else 1 + index."""
    one = torch.arange(1, Scene.most + 1, device=label.device)
    return label[:, None] == one.view(-1, *[1] * (label.ndim - 1))


def pool(traits: Float[Tensor, "b c h//4 w//4"], label: Int[Tensor, "b h w"]) -> Float[Tensor, "b most c"]:
    """Mean of the trait maps over the pixels of each thing; ``label`` as ``group`` gives it. Zeros for no pixels."""
    share = F.avg_pool2d(apart(label).to(traits), label.shape[-1] // traits.shape[-1]).flatten(2)
    return share @ traits.flatten(2).transpose(1, 2) / share.sum(2, keepdim=True).clamp(min=1e-6)


def interpret(maps: Maps, label: Int[Tensor, "b h w"]) -> list[Reading]:
    """Maps and grouped pixels to readings: the best word for each thing and for the world."""
    traits = [t.cpu() for t in pool(maps.traits, label).split(_width(TRAITS), 2)]
    kind, colour, material = (t.argmax(2) for t in traits[:3])
    seen = traits[3][..., 0] > 0
    words_of = maps.world.split(_width(WORLD), 1)
    world = [t.argmax(1).cpu() for t in words_of]
    sure = torch.stack([t.softmax(1).amax(1) for t in words_of]).prod(0).tolist()
    readings = []
    for i, labels in enumerate(label.cpu().numpy()):
        things = []
        for k in range(Scene.most):
            y, x = np.nonzero(labels == k + 1)
            if not len(x):
                continue
            name = TRAINED[kind[i, k]]
            thing = ReadThing(
                name,
                COLOURS[colour[i, k]],
                MATERIALS[material[i, k]],
                (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1),
                (float(x.mean() + 0.5), float(y.mean() + 0.5)),
                len(x),
                KINDS[name].mark is not None and bool(seen[i, k]),
            )
            things.append((thing, k + 1))
        things.sort(key=lambda pair: pair[0].centre)
        mask = np.zeros_like(labels)
        for index, (_, value) in enumerate(things):
            mask[labels == value] = index + 1
        ground, light, style = (words[best[i]] for words, best in zip(WORLD.values(), world, strict=True))
        readings.append(Reading(tuple(t for t, _ in things), ground, light, style, mask, sure[i]))
    return readings


def score(
    readings: Sequence[Reading],
    scenes: Sequence[Scene],
    thing: Int[Tensor, "b h w"],
    mark: Int[Tensor, "b most"],
) -> dict[str, float]:
    """Accuracies in [0, 1] of readings against the truth.

    ``thing`` holds 0 for none, else 1 + index of the thing; ``mark`` the visible pixels of each thing's mark. Read
    things are matched to true things by the overlap of their masks; a true thing that nothing matches is read wrongly.
    True things with fewer than COUNTED visible pixels are left out, with their pixels, and scenes that hold one are
    left out of ``count``. ``pixels`` is the share of all other pixels put to the right thing, or rightly to none.
    ``mark`` and ``relation`` are taken where there is something to say. A key is nan when nothing was there to judge.
    """
    tally: dict[str, list[float]] = {k: [] for k in ("pixels", "kind", "colour", "material", "mark", "count")}
    tally |= {k: [] for k in (*WORLD, "relation")}
    for reading, scene, truth, marks in zip(readings, scenes, thing.cpu().numpy(), mark.cpu().numpy(), strict=True):
        n = len(scene.things)
        visible = [int((truth == i + 1).sum()) for i in range(n)]
        counted = [i for i in range(n) if visible[i] >= COUNTED]
        match = _match(reading, truth, n)
        back = np.zeros(len(reading.things) + 1, int)  # read label to true label
        back[1:] = -1
        for i, j in match.items():
            back[j + 1] = i + 1
        judged = np.isin(truth, [0, *(i + 1 for i in counted)])
        tally["pixels"].append(float((back[reading.mask] == truth)[judged].mean()))
        for i in counted:
            true, read = scene.things[i], reading.things[match[i]] if i in match else None
            for key in ("kind", "colour", "material"):
                tally[key].append(read is not None and getattr(read, key) == getattr(true, key))
            if KINDS[true.kind].mark is not None and read is not None:
                tally["mark"].append(read.face == (marks[i] >= MARK_SEEN))
        if len(counted) == n:
            tally["count"].append(len(reading.things) == n)
        for key in WORLD:
            tally[key].append(getattr(reading, key) == getattr(scene, key))
        for i in counted:
            for j in counted:
                if i != j and i in match and j in match and (word := relation(scene, i, j)):
                    tally["relation"].append(reading.relation(match[i], match[j]) == word)
    return {k: float(np.mean(v)) if v else float("nan") for k, v in tally.items()}


def _match(reading: Reading, truth: Int[np.ndarray, "h w"], n: int) -> dict[int, int]:
    """True index to read index, by intersection over union."""
    overlap = np.zeros((n, len(reading.things)))
    for i in range(n):
        for j in range(len(reading.things)):
            a, b = truth == i + 1, reading.mask == j + 1
            overlap[i, j] = (a & b).sum() / max((a | b).sum(), 1)
    pairs = zip(*linear_sum_assignment(-overlap), strict=True)
    return {int(i): int(j) for i, j in pairs if overlap[i, j] > 0}


def matches(reading: Reading, stated: Said) -> dict[str, bool | None]:
    """Is what was said seen? Keys things, ground, light, style, relation, view; None where nothing was said.

    ``things``: exactly the things that were said, each with its kind, colour and material where given (sizes are not
    read). ``relation``: of the first to the second. ``view``: the front's mark is seen where a front view was said,
    and not seen where a back view was; other view words and kinds without a mark are not judged. When several read
    things fit the words, the choice that makes the most of it true counts.
    """
    wanted = [thing for thing in stated.things for _ in range(thing.count)]
    out: dict[str, bool | None] = {"things": None}
    for key in WORLD:
        word = getattr(stated, key)
        out[key] = None if word is None else getattr(reading, key) == word
    judged = [t.view in ("front", "back") and KINDS[t.kind].mark is not None for t in wanted]
    has_relation = stated.relation is not None and len(wanted) > 1
    best: tuple[bool | None, bool | None, bool | None] = (
        False if wanted else None,
        False if has_relation else None,
        False if any(judged) else None,
    )
    if len(wanted) == len(reading.things):
        for order in permutations(range(len(wanted))):
            seen = [reading.things[j] for j in order]
            if not all(_fits(t, s) for t, s in zip(wanted, seen, strict=True)):
                continue
            related = reading.relation(order[0], order[1]) == stated.relation if has_relation else None
            faces = [s.face == (t.view == "front") for t, s, j in zip(wanted, seen, judged, strict=True) if j]
            found = (True if wanted else None, related, all(faces) if faces else None)
            best = max(best, found, key=lambda verdicts: sum(v is True for v in verdicts))
    out["things"], out["relation"], out["view"] = best
    return out


def _fits(stated: Any, seen: ReadThing) -> bool:
    return (
        stated.kind == seen.kind and stated.colour in (None, seen.colour) and stated.material in (None, seen.material)
    )
