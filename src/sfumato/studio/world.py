"""The part of the tour on the world that ships: what its model paints, sets of images, and the truth of renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.inversion import Direct
from sfumato.media import page, pictures
from sfumato.media import video as videos
from sfumato.media.page import commands, figure, row, section
from sfumato.methods.edit import PromptToPrompt
from sfumato.stilllife import captions, change, compose, moves, paint, weights
from sfumato.stilllife.captions import Said, parse
from sfumato.stilllife.oracle import Oracle, Reading, ReadThing, matches
from sfumato.stilllife.render import Rendering, keypoints, render
from sfumato.stilllife.scene import Camera, Scene, Thing
from sfumato.stilllife.sketches import sketches
from sfumato.tasks.edit import PictureEdit
from sfumato.tasks.panorama import panorama
from sfumato.tasks.recipes import EDITING
from sfumato.tasks.video import Footage, VideoEdit, edit_video

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SENTENCES = (
    "a red cube on grass",
    "a yellow duck on water at sunset",
    "a green snowman on snow at night",
    "a red mug to the left of a blue sphere on wood",
    "a pencil sketch of a black car on sand",
    "a watercolour of a red house on grass",
)
EACH = 2  # paintings a sentence
GUIDANCE = 5.0
WORLD = Scene(
    (
        Thing("robot", "blue", "plain", "medium", x=-0.62, z=0.1, yaw=-24.0),
        Thing("mug", "red", "striped", "small", x=0.35, z=0.75, yaw=-20.0),
        Thing("mushroom", "orange", "dotted", "medium", x=0.95, z=-0.45),
    ),
    ground="wood",
    camera=Camera(elevation=20.0, distance=4.3),
    seed=7,
)


EDIT = change.Recolour(0, "blue")
RING, RING_SIZE, RING_STRIDE = "a red cube on grass", (128, 384), 8
CLIP = Scene((Thing("cube", "red", "plain", "medium", x=-0.5, yaw=20.0),), ground="grass", seed=3)
CLIP_FRAMES = 8


def _plainly(stated: Said) -> Said:
    """What was said, and the plainest for what was not."""
    things = (replace(t, material=t.material or "plain", size=t.size or "medium") for t in stated.things)
    return replace(stated, things=tuple(things), light=stated.light or "day", style=stated.style or "photo")


def verdicts(reading: Reading, stated: Said) -> list[tuple[str, bool | None]]:
    """Each word that was said, and whether the oracle sees it: None where it cannot tell (sizes, side views).

    Things are matched with what was seen so that most words are right. What is seen beyond what was said comes last.
    """
    wanted = [t for t in stated.things for _ in range(t.count)]
    seats: list[ReadThing | None] = [*reading.things, *[None] * len(wanted)]

    def of_things(chosen: Sequence[ReadThing | None]) -> list[tuple[str, bool | None]]:
        rows: list[tuple[str, bool | None]] = []
        for thing, seen in zip(wanted, chosen, strict=True):
            rows += [(thing.size, None)] if thing.size else []
            for name in ("material", "colour", "kind"):
                word = getattr(thing, name)
                rows += [(word, seen is not None and getattr(seen, name) == word)] if word else []
        return rows

    choices = (of_things(chosen) for chosen in permutations(seats, len(wanted)))
    rows = max(choices, key=lambda r: sum(right is True for _, right in r))
    whole = matches(reading, stated)
    views = [t.view for t in wanted if t.view]
    rows += [(f"{view} view", whole["view"]) for view in views]
    for name in ("relation", "ground", "light", "style"):
        if getattr(stated, name):
            rows.append((getattr(stated, name), whole[name]))
    extra = len(reading.things) - len(wanted)
    return rows + ([(f"{extra} more", False)] if extra > 0 else [])


def marked(reading: Reading, stated: Said) -> str:
    """The verdicts as HTML."""
    kind = {True: "right", False: "wrong", None: "open"}
    return " ".join(f'<span class="{kind[right]}">{escape(word)}</span>' for word, right in verdicts(reading, stated))


def rendered(seed: int, device: torch.device) -> Tensor:
    """A render of each sentence."""
    rng = np.random.default_rng(seed)
    return render([compose.scene_of(_plainly(parse(s)), rng) for s in SENTENCES], device=device).images.cpu()


def painted(steps: int, seed: int, oracle: Oracle, device: torch.device) -> str:
    """Sentences: a render of each, what the model paints, and what the oracle sees of every word."""
    renders, words = rendered(seed, device), [s for s in SENTENCES for _ in range(EACH)]
    pipe = weights.pipeline("stilllife", device)
    images = paint.paint(pipe, words, range(seed, seed + len(words)), steps=steps, guidance=GUIDANCE)
    readings = oracle.read(torch.cat([renders, images]))
    blocks, n = [], len(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        stated = parse(sentence)
        shown = [("rendered", renders[i], readings[i])]
        shown += [("painted", images[k], readings[n + k]) for k in range(EACH * i, EACH * (i + 1))]
        figures = [
            figure(
                pictures.picture(pixels),
                f'<span class="by">{by}</span><br>{marked(reading, stated)}',
                f"{sentence}, {by}",
            )
            for by, pixels, reading in shown
        ]
        blocks.append(f'<div class="sentence"><q>{escape(sentence)}</q>\n{row(*figures)}</div>\n')
    right = [
        all(ok is not False for _, ok in verdicts(r, parse(SENTENCES[k // EACH]))) for k, r in enumerate(readings[n:])
    ]
    about = (
        "Left, a render of the sentence: one of the many scenes of which it is true. Beside it, what the model paints "
        "from the words alone, from two seeds, nothing picked. Under each picture, what the oracle sees of each word. "
        f"It finds every word in {sum(right)} of the {len(right)} paintings."
    )
    return section("From a sentence", about, f'<div class="sentences">\n{"".join(blocks)}</div>\n')


def ring(model: Backbone, seed: int, steps: int) -> str:
    """A panorama that closes."""
    options = {"ring": True, "stride": RING_STRIDE, "steps": steps, "guide": GUIDANCE}
    (strip,) = panorama(model, RING, [seed], RING_SIZE, **options).pictures
    height, width = RING_SIZE
    about = (
        f"<i>{escape(RING[0].upper() + RING[1:])}</i>, all around: the model sees a square at a time, and the squares "
        "agree where they overlap, also across the seam. It was never shown a picture of this shape, and draws "
        "its cubes into each other."
    )
    command = f'sfumato panorama "{RING}" --size {width}x{height} --ring --stride {RING_STRIDE} --steps {steps}'
    return section("A picture without an end", about, page.ring(strip, RING) + commands(command))


def filmed(model: Backbone, out: Path, steps: int) -> str:
    """A clip edited by words, beside the render of what it should have become. Frames that are there stay."""
    edit, device = change.counterfactual(CLIP, EDIT), model.device
    before, after = (_clip(scene, device) for scene in (edit.before, edit.after))
    footage = Footage(videos.opened(videos.write(before, out / "clip")))
    source, target = edit.captions
    asked = PictureEdit(source, target, Direct(steps=steps), [PromptToPrompt()], EDITING)
    edited = edit_video(model, VideoEdit(footage, asked), out / "clip-edited", settings={"model": "stilllife"})
    sides = {
        "the frames of clip/": before,
        f"“{escape(edit.instruction)}”": list(videos.opened(edited.frames).frames()),
        "as it should be": after,
    }
    body = row(*(page.clip(frames, words, words) for words, frames in sides.items()), tile=240)
    about = f"{CLIP_FRAMES} frames, each inverted and painted again from other words; what is shared keeps its place."
    asked_of = f'--from "{source}" --to "{target}" --steps {steps} --guidance {EDITING:g}'
    command = f"sfumato video clip {asked_of} --invert direct prompt-to-prompt"
    return section("A clip edited by words", about, body + commands(command))


def _clip(scene: Scene, device: torch.device) -> list[Picture]:
    """A scene whose thing moves to the right and turns."""
    (thing,) = scene.things
    scenes = moves.between(scene, replace(scene, things=(replace(thing, x=-thing.x, yaw=50.0),)), CLIP_FRAMES)
    return [pictures.picture(image) for image in render(scenes, device=device).images]


def rendered_only(seed: int, device: torch.device, reason: str) -> str:
    """The sentences without a model."""
    renders = rendered(seed, device)
    figures = [figure(pictures.picture(r), escape(s)) for r, s in zip(renders, SENTENCES, strict=True)]
    about = f"The model's paintings are missing: {escape(reason)}."
    return section("From a sentence", about, row(*figures))


def truth(device: torch.device) -> str:
    """Of one scene, all that is known of its pixels."""
    rendering = render([WORLD], size=256, device=device)
    drawn = sketches(rendering)
    words = {
        "depth": "depth",
        "normal": "normals",
        "thing": "things",
        "part": "named parts",
        "canonical": "each thing's own coordinates",
    }
    figures = [figure(pictures.picture(rendering.images[0]), "image")]
    figures += [figure(drawn[name], label) for name, label in words.items()]
    figures.append(figure(_pinned(rendering), "keypoints; hollow ones are hidden"))
    words_of = captions.plain(WORLD)
    about = (
        f"<i>{escape(words_of[0].upper() + words_of[1:])}.</i> A scene is data, so of every pixel everything is known."
    )
    return section("The truth behind a picture", about, row(*figures))


def _pinned(rendering: Rendering) -> Picture:
    """The image with its keypoints: full where visible, hollow where hidden."""
    sheet = pictures.picture(rendering.images[0]).convert("RGB")
    draw = ImageDraw.Draw(sheet)
    for named in keypoints(rendering.scenes[0], rendering):
        for x, y, visible in named.values():
            box = (x - 3.5, y - 3.5, x + 3.5, y + 3.5)
            draw.ellipse(box, fill="white" if visible else None, outline="black" if visible else "white")
    return sheet


def counterfactuals(device: torch.device) -> str:
    """The scene with one thing changed."""
    edits = [
        change.counterfactual(WORLD, what)
        for what in (change.Recolour(0, "green"), change.Reshape(1, "duck"), change.Relight("sunset"))
    ]
    before, after = change.render_pairs(edits, 256, str(device))
    figures = [figure(pictures.picture(before[0]), "before")]
    for edit, pixels in zip(edits, after, strict=True):
        figures.append(figure(pictures.picture(pixels), f"“{escape(edit.instruction)}”"))
        if not isinstance(edit.change, change.Relight):
            figures.append(figure(_where(change.masks(edit, 256)), "what may change"))
    about = (
        "The same world with one thing changed, rendered again: the instruction, what the edit should look like, and "
        "the only pixels that it may touch. An edit can be measured against it pixel by pixel."
    )
    return section("What an edit should have been", about, row(*figures))


def _where(mask: Tensor) -> Picture:
    return Image.fromarray((mask.cpu().numpy() * 255).astype(np.uint8))


def orbit(device: torch.device) -> str:
    """The scene from all around."""
    scenes = moves.orbit(WORLD, 8)
    images = render(scenes, device=device).images
    figures = [
        figure(pictures.picture(x), f"{round(s.camera.azimuth) % 360}°") for x, s in zip(images, scenes, strict=True)
    ]
    return section("Once around", "Eight cameras on a circle, each with its pose and its truth.", row(*figures))
