"""What the built-in model does best, made afresh, each with a check of its claims by the oracle or the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.core.backbone import Backbone
from sfumato.media import page, pictures
from sfumato.media.images import open_picture, pixels
from sfumato.media.labels import lines, overlay
from sfumato.media.overlays import heatmap
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.metrics.image import psnr
from sfumato.prompts.layout import Layout, Region
from sfumato.reading.reader import read
from sfumato.stilllife import change
from sfumato.stilllife.captions import parse
from sfumato.stilllife.oracle import Oracle, Reading, matches
from sfumato.stilllife.render import keypoints, render
from sfumato.stilllife.scene import Scene, Thing
from sfumato.studio.photos import CREDITS, photos
from sfumato.tasks import recipes
from sfumato.tasks.chain import Chain
from sfumato.tasks.distill import distill_images
from sfumato.tasks.edit import PictureEdit, fit_all, run_edits
from sfumato.tasks.generate import generate
from sfumato.tasks.match import match
from sfumato.tasks.segment import Segmenter

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Frames = tuple["Picture", ...]

PHOTOS = {
    "coffee": (((181, 91), (137, 54)), ((97, 108), (274, 118)), ((339, 65),)),
    "astronaut": (((57, 158),), ((115, 36), (122, 55)), ((57, 43), (165, 72)), ((108, 129),)),
    "camera": (((43, 129), (60, 90)), ((194, 43), (21, 32)), ((215, 183), (240, 215))),
}
"""Photographs, and points (x, y) of what is one thing, apart from the other things: cup, saucer, table; suit,
head, backdrop, collar; man, sky, grass."""
ROBOTS = (
    Scene((Thing("robot", "blue", "plain", "large", yaw=15.0),), ground="sand", seed=3),
    Scene((Thing("robot", "green", "plain", "large", yaw=-5.0),), ground="wood", seed=5),
)
NEAR = 0.1
"""A point is found within so much of the thing's longer side."""
STILL = Scene(
    (
        Thing("mug", "red", "plain", "medium", x=-0.6, yaw=20.0),
        Thing("sphere", "blue", "plain", "medium", x=0.7),
    ),
    ground="wood",
    seed=3,
)
SENTENCE, WORDS = "a red mug and a blue sphere on wood", ("mug", "sphere")
EDITED, EDIT = "a red mug and a yellow sphere on wood", change.Recolour(1, "yellow")
LEFT, RIGHT = (0.1, 0.3, 0.45, 0.75), (0.6, 0.35, 0.9, 0.7)
THINGS, GROUND = ("a red cube", "a blue sphere"), "on grass"
DISTILLED, SCALE, FRAMES = "a green tree on snow", 15.0, 20


@dataclass(frozen=True)
class Piece:
    """Pictures with their words, what is claimed of them and whether it was seen to hold."""

    title: str
    about: str
    """HTML."""
    figures: tuple[tuple[str, Frames], ...]
    """Words (HTML), and a picture or the frames of a moving one."""
    commands: tuple[str, ...]
    claims: dict[str, bool]
    tile: int = 240
    table: str = ""

    @property
    def holds(self) -> bool:
        return all(self.claims.values())

    def html(self) -> str:
        figures = [
            page.figure(frames[0], words) if len(frames) == 1 else page.clip(frames, words, words)
            for words, frames in self.figures
        ]
        least = "100%" if self.tile > 300 else "50%"
        shown = page.row(*figures, tile=self.tile, least=least) if figures else ""
        return page.section(self.title, self.about, shown + self.table + page.commands(*self.commands))


@dataclass
class Showpieces:
    """Made one after the other by one model; pictures that commands read are written into ``out``."""

    out: Path
    device: torch.device
    steps: int = 30
    distil_steps: int = 120

    @cached_property
    def model(self) -> Backbone:
        return load("stilllife", device=self.device)

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle.load(device=self.device)

    def _read(self, image: Float[Tensor, "3 h w"]) -> Reading:
        return self.oracle.read(image[None].to(self.device))[0]

    def segments(self) -> Piece:
        """Photographs, parted by a model that has seen none."""
        method, side = recipes.suited("diff-seg", "stilllife", None)
        cut, _ = recipes.suited("graph-cut", "stilllife", None)
        segmenter = Segmenter(self.model, method, (cut,), side=side)
        figures, claims = [], {}
        for name, photo in photos().items():
            photo.save(self.out / f"{name}.png")
            labels = segmenter(photo).labels.cpu()
            seen = [{int(labels[y, x]) for x, y in points} for points in PHOTOS[name]]
            claims[f"things of {name} are segments of their own"] = all(len(of) == 1 for of in seen) and len(
                set.union(*seen)
            ) == len(seen)
            figures.append((f"{name}.png, {int(labels.max()) + 1} segments", (_beside(photo, overlay(photo, labels)),)))
        about = (
            "Parted into segments by the self-attention of a diffusion model, without training and without a label. "
            "The model that ships is small, and has seen renders of toys only, never a photograph."
        )
        names = " ".join(f"{name}.png" for name in PHOTOS)
        command = f"sfumato segment {names} --side {side} diff-seg --preset still-life + graph-cut --preset still-life"
        note = f'<p class="note">{CREDITS}</p>\n'
        return Piece("Segments of photographs", about, tuple(figures), (command,), claims, 320, note)

    def matches(self) -> Piece:
        """Points of one picture, found in another."""
        method, side = recipes.suited("dift", "stilllife", None)
        seen = render(list(ROBOTS), 256, device=self.device)
        first, second = (keypoints(scene, seen, i)[0] for i, scene in enumerate(ROBOTS))
        named = [name for name in first if first[name][2] and second[name][2]]
        points, truth = ([of[name][:2] for name in named] for of in (first, second))
        files = [
            pictures.write(pictures.picture(image), self.out / f"robot-{i}.png")
            for i, image in enumerate(seen.images, 1)
        ]
        y, x = (seen.thing[1] == 0).nonzero().T.cpu()
        box = float(max(x.max() - x.min(), y.max() - y.min()) + 1)
        found = match(self.model, files[0], files[1], method, points=points, side=side).matches.target.cpu()
        off = (found - torch.tensor(truth)).norm(dim=1) / box
        drawn = lines(open_picture(files[0]), open_picture(files[1]), torch.tensor(points), found)
        words = f"{', '.join(named)}: found within {float(off.max()):.0%} of the robot's height"
        about = "Points of one picture are found in another by the features that a denoiser has of them."
        at = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        command = f"sfumato match robot-1.png robot-2.png --side {side} --points {at} dift --preset still-life"
        claims = {f"{name} is found": bool(d < NEAR) for name, d in zip(named, off, strict=True)}
        return Piece("A match between two pictures", about, ((words, (drawn,)),), (command,), claims, 480)

    def edit(self) -> Piece:
        """A picture file edited by words, beside the render of what it should have become."""
        counterfactual = change.counterfactual(STILL, EDIT)
        before, truth = (side[0].cpu() for side in change.render_pairs([counterfactual], device=str(self.device)))
        photo = pictures.write(pictures.picture(before), self.out / "photo.png")
        kind = STILL.things[EDIT.thing].kind
        method = PromptToPrompt(blend=LocalBlend(kind, kind, threshold=recipes.BLEND))
        chain = Chain((method,), ("prompt-to-prompt",))
        asked = PictureEdit.of(chain, SENTENCE, EDITED, "edit-friendly", self.steps, recipes.EDITING)
        fitted = fit_all({photo.stem: open_picture(photo)}, self.model)
        (picture,) = run_edits(self.model, tuple(fitted.values()), {"": asked})[""].edited.pictures
        edited = pixels(picture)
        near, untouched = (float(psnr(x[None], truth[None])) for x in (edited, before))
        figures = (
            ("photo.png", (open_picture(photo),)),
            (f"“{counterfactual.instruction}”: {near:.1f} dB to the truth, untouched {untouched:.1f}", (picture,)),
            ("the truth: rendered with this one change", (pictures.picture(truth),)),
        )
        claims = {
            "read as asked": agrees(self._read(edited), EDITED),
            "nearer to the truth than untouched": near > untouched,
        }
        about = (
            "A picture file is inverted and painted again from other words; what the words do not name keeps its own "
            "pixels. Beside it the truth, which only a world that is rendered has."
        )
        command = (
            f'sfumato edit photo.png --from "{SENTENCE}" --to "{EDITED}" --invert edit-friendly --steps {self.steps} '
            f"--guidance {recipes.EDITING:g} prompt-to-prompt --blend {kind} {kind} {recipes.BLEND}"
        )
        return Piece("A picture edited by words, and its truth", about, figures, (command,), claims)

    def boxes(self) -> Piece:
        """Two things in two boxes, and in each other's."""
        method, _ = recipes.suited("region-prompts", "stilllife", None)
        prompt = f"{' and '.join(THINGS)} {GROUND}"
        figures, commands, claims = [], [], {}
        for places in ((LEFT, RIGHT), (RIGHT, LEFT)):
            layout = Layout(tuple(Region(phrase, box=box) for phrase, box in zip(THINGS, places, strict=True)))
            chain = Chain((replace(method, background=GROUND),), ("region-prompts",)).given(layout=layout)
            chain = chain.of(self.model.size, self.model.size)
            done = generate(self.model, prompt, [3], methods=chain.methods, guide=5.0, steps=self.steps)
            picture = done.pictures[0]
            reading = self._read(pixels(picture))
            for phrase, box in zip(THINGS, places, strict=True):
                claims[f"{phrase} in {box}"] = _in_box(reading, phrase, box)
            figures.append((f"the oracle sees {escape(reading.describe())}", (_framed(picture, places),)))
            boxes = " ".join(f'--box "{t}" {",".join(map(str, b))}' for t, b in zip(THINGS, places, strict=True))
            commands.append(
                f'sfumato generate "{prompt}" --n 1 --seed 3 --guidance 5 --steps {self.steps} {boxes} '
                f'region-prompts --preset still-life --background "{GROUND}"'
            )
        about = "Each box reads words of its own: one seed, and the boxes exchanged."
        return Piece("Things in their boxes", about, tuple(figures), (commands[0],), claims, 240)

    def words(self) -> Piece:
        """Where words look in a picture."""
        picture = pictures.picture(render([STILL], 256, device=self.device).images[0])
        picture.save(self.out / "still.png")
        row = recipes.find("text-attribution", "stilllife")
        method = replace(row.method, words=WORDS, prompt=SENTENCE)
        with read(self.model, picture, row.side) as reader:
            maps = method.heat_maps(reader).cpu()
        where = render([STILL], maps.shape[-1], device=self.device).thing[0].cpu()
        claims = {}
        for i, (word, map) in enumerate(zip(WORDS, maps, strict=True)):
            y, x = divmod(int(map.argmax()), map.shape[1])
            claims[f"{word} looks at the {word}"] = int(where[y, x]) == i
        figures = [(f"<i>{escape(SENTENCE)}</i>", (picture,))]
        figures += [(f"<i>{word}</i>", (heatmap(picture, map),)) for word, map in zip(WORDS, maps, strict=True)]
        command = (
            f"sfumato segment still.png --side {row.side} --show-attention text-attribution --preset still-life "
            f'--words {",".join(WORDS)} --prompt "{SENTENCE}"'
        )
        about = "The attention of single words, light where they look: where in a picture a word of its sentence is."
        return Piece("Attention over words", about, tuple(figures), (command,), claims, 240)

    def distilled(self) -> Piece:
        """A picture that score distillation draws out of noise."""
        done = distill_images(
            self.model, DISTILLED, ScoreDistillation(guidance=SCALE), self.distil_steps, n=1,
            frame_every=max(1, self.distil_steps // FRAMES),
        )  # fmt: skip
        reading = self._read(done.images[0])
        words = f"{self.distil_steps} steps; the oracle sees {escape(reading.describe())}"
        command = f'sfumato distill2d "{DISTILLED}" --n 1 --steps {self.distil_steps} sds --guidance {SCALE:g}'
        about = (
            f"<i>{escape(DISTILLED[0].upper() + DISTILLED[1:])}</i>, by the gradient of score distillation. It moves "
            "whatever renders pictures: pixels, strips, scenes in three dimensions."
        )
        claims = {"read as asked": agrees(reading, DISTILLED)}
        return Piece("A distilled image", about, ((words, done.frames),), (command,), claims, 240)

    def plan(self) -> Piece:
        """What an edit would read, write and cost."""
        edit = PictureEdit.of(
            Chain((PromptToPrompt(),), ("prompt-to-prompt",)), "a red cube", "a blue cube", "direct", self.steps
        )
        fitted = fit_all({"": Image.new("RGB", (self.model.size, self.model.size))}, self.model)
        rows = edit.plan(self.model, tuple(fitted.values()), self.steps).table()
        shown = [{**row, "bytes": f"{row['bytes'] / 2**20:.1f} MiB"} if "bytes" in row else row for row in rows]
        about = (
            "A method says what it reads and writes of which attention, so that a run is checked and priced before its "
            "first step, and methods that would undo each other are refused."
        )
        command = f"sfumato show plan prompt-to-prompt --steps {self.steps}"
        return Piece(
            "A plan, before anything runs", about, (), (command,), {"is tapped": bool(rows)}, table=_table(shown)
        )

    def makers(self) -> dict[str, Callable[[], Piece]]:
        """What makes each, in the order in which they are shown."""
        return {
            "segments": self.segments,
            "a match": self.matches,
            "an edit": self.edit,
            "boxes": self.boxes,
            "words": self.words,
            "a distilled image": self.distilled,
            "a plan": self.plan,
        }


def agrees(reading: Reading, sentence: str) -> bool:
    """Does the oracle see all that a sentence says, as far as it can tell?"""
    return all(right is not False for right in matches(reading, parse(sentence)).values())


def _in_box(reading: Reading, phrase: str, box: Sequence[float]) -> bool:
    """Is the thing of a phrase seen once, with its middle in its box?"""
    (thing,) = parse(phrase).things
    h, w = reading.mask.shape
    seen = [t.centre for t in reading.things if (t.kind, t.colour) == (thing.kind, thing.colour)]
    x0, y0, x1, y1 = box
    return len(seen) == 1 and x0 <= seen[0][0] / w <= x1 and y0 <= seen[0][1] / h <= y1


def _framed(picture: Picture, boxes: Sequence[Sequence[float]]) -> Picture:
    """At twice its size, with the boxes drawn."""
    shown = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(shown)
    for (x0, y0, x1, y1), colour in zip(boxes, ("#ffb0a0", "#a8c8ff"), strict=True):
        w, h = shown.size
        draw.rectangle((x0 * w, y0 * h, x1 * w, y1 * h), outline=colour, width=2)
    return shown


def _beside(*shown: Picture) -> Picture:
    return pictures.grid(shown, len(shown), 0)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(head, "") for head in heads] for row in rows]
    words = [[", ".join(map(str, c)) if isinstance(c, list) else str(c) for c in line] for line in cells]
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in line)}</tr>\n" for line in words)
    return f'<div class="plan"><table><tr>{head}</tr>\n{body}</table></div>\n'
