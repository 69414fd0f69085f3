"""The tour: one page, opened from disk, that shows what the world holds and what the built-in model paints of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato import __version__
from sfumato.backbones.load import load
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.io.device import choose
from sfumato.io.files import write_text
from sfumato.media import page, pictures
from sfumato.media import video as videos
from sfumato.media.images import fit, open_picture
from sfumato.media.page import figure, image, page_of, row, section
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.stilllife import captions, change, compose, moves, paint, weights
from sfumato.stilllife.captions import Said, parse
from sfumato.stilllife.oracle import Oracle, Reading, ReadThing, matches
from sfumato.stilllife.render import Rendering, keypoints, render, shade, trace
from sfumato.stilllife.scene import LIGHTS, STYLES, Camera, Scene, Thing
from sfumato.stilllife.sketches import sketches
from sfumato.tasks.edit import PictureEdit, edit_pictures
from sfumato.tasks.panorama import panorama
from sfumato.tasks.recipes import BLEND, EDITING
from sfumato.tasks.video import Footage, VideoEdit, edit_video

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SENTENCES = (
    "a red cube on grass",
    "a yellow duck on water at sunset",
    "a blue robot, front view, on sand",
    "a blue robot, back view, on sand",
    "a green snowman on snow at night",
    "a red mug to the left of a blue sphere on wood",
    "a purple cone on top of a white cube on stone",
    "a striped orange ring behind a green tree on grass in fog",
    "a pencil sketch of a black car on sand",
    "a watercolour of a red house on grass",
)
EACH = 2  # paintings a sentence
STEPS, GUIDANCE = 30, 5.0
SHOWN = "a yellow duck on sand"  # in every style and light
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


PHOTO = Scene((Thing("cube", "red", "plain", "large", yaw=30.0),), ground="grass", seed=3)
EDITS = (change.Recolour(0, "blue"), change.Reshape(0, "sphere"))
EDIT_STEPS = 50
RING, RING_SIZE, RING_STRIDE = "a red cube on grass", (128, 384), 8
CLIP = replace(PHOTO, things=(Thing("cube", "red", "plain", "medium", x=-0.5, yaw=20.0),))
CLIP_FRAMES = 8
SET_STEPS = 12  # of the ring and of the clip, which are as many pictures


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - began


def make(out: Path, seed: int = 0, device: str = "auto") -> tuple[Path, float]:
    """Write ``index.html`` into ``out``; returns its path and the seconds it took.

    Without shipped weights the page shows the world alone, and says so.
    """
    began, clock, target = time.perf_counter(), Clock(), choose(device)
    rng = np.random.default_rng(seed)
    scenes = [compose.scene_of(_plainly(parse(s)), rng) for s in SENTENCES]
    with clock.on("rendering"):
        renders = render(scenes, device=target).images.cpu()
    parts = [_head()]
    try:
        with clock.on("loading"):
            pipe, oracle = weights.pipeline("stilllife", target), Oracle.load(device=target)
        with clock.on("painting"):
            words = [*(s for s in SENTENCES for _ in range(EACH)), *_dressed_sentences()]
            painted = paint.paint(pipe, words, range(seed, seed + len(words)), steps=STEPS, guidance=GUIDANCE)
        with clock.on("reading"):
            readings = oracle.read(torch.cat([renders, painted[: EACH * len(SENTENCES)]]))
        parts += [_sentences(renders, painted, readings), _dressed(painted[EACH * len(SENTENCES) :], target)]
        with clock.on("editing"):
            parts.append(_edited(out, target))
        with clock.on("sets of images"):
            parts += [_ring(seed, target), _filmed(out, target)]
        speed = {"images painted": len(words), "seconds an image": clock.spent["painting"] / len(words)}
    except SfumatoError as e:
        parts += [_rendered_only(renders, str(e))]
        speed = {}
    with clock.on("rendering"):
        parts += [_truth(target), _counterfactuals(target), _orbit(target)]
    parts.append(_foot(clock, speed, target))
    file = out / "index.html"
    write_text(file, page_of("".join(parts)))
    return file, round(time.perf_counter() - began, 1)


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


def _head() -> str:
    return (
        "<h1>Still Life</h1>\n"
        '<p class="lead">A small world of things on a ground, under a light, seen by a camera, told in a sentence. '
        "The renderer draws it exactly. A small latent diffusion model, which ships with the package, paints it from "
        "the sentence alone. An oracle reads the pictures.</p>\n"
    )


def _sentences(renders: Tensor, painted: Tensor, readings: Sequence[Reading]) -> str:
    blocks, n = [], len(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        stated = parse(sentence)
        shown = [("rendered", renders[i], readings[i])]
        shown += [("painted", painted[k], readings[n + k]) for k in range(EACH * i, EACH * (i + 1))]
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


def _dressed_sentences() -> list[str]:
    stated = parse(SHOWN)
    return [replace(stated, style=style, light=light).phrase() for style in STYLES for light in LIGHTS]


def _dressed(painted: Float[Tensor, "16 3 h w"], device: torch.device) -> str:
    base = compose.scene_of(_plainly(parse(SHOWN)), np.random.default_rng(1))
    scenes = [replace(base, style=style, light=light) for style in STYLES for light in LIGHTS]
    buffers = trace([base] * len(scenes), device=device)
    sides = (("rendered", shade(buffers, scenes).cpu()), ("painted", painted))
    tables = []
    for by, images in sides:
        cells = ["<span></span>", *(f'<span class="top">{light}</span>' for light in LIGHTS)]
        for i, style in enumerate(STYLES):
            cells.append(f"<span>{style}</span>")
            cells += [
                image(pictures.picture(images[len(LIGHTS) * i + j]), f"{SHOWN}, {light}, {style}, {by}")
                for j, light in enumerate(LIGHTS)
            ]
        tables.append(f'<div><h3>{by}</h3><div class="table">{"".join(cells)}</div></div>\n')
    about = f"<i>{escape(SHOWN[0].upper() + SHOWN[1:])}</i>, in every style and every light."
    return section("Four styles, four lights", about, f'<div class="sides">{"".join(tables)}</div>\n')


def _edited(out: Path, device: torch.device) -> str:
    """A picture file, inverted and edited by words, beside the renders of what it should have become."""
    edits = [change.counterfactual(PHOTO, what) for what in EDITS]
    before, after = change.render_pairs(edits, device=str(device))
    photo = pictures.write(pictures.picture(before[0]), out / "photo.png")
    model = load("stilllife", device=device)
    fitted = fit(open_picture(photo), model.size, model.multiple)
    path = invert(model, fitted.pixels, edits[0].captions[0], Direct(steps=EDIT_STEPS))
    figures = [
        figure(Image.open(photo), "photo.png"),
        figure(pictures.picture(model.decode(path.image)[0]), "found again"),
    ]
    commands = []
    for edit, truth in zip(edits, after, strict=True):
        source, target = edit.captions
        words = [scene.things[0].kind for scene in (edit.before, edit.after)]
        method = PromptToPrompt(blend=LocalBlend(words[0], words[1], threshold=BLEND))
        prompts = {"source": source, "target": target}
        edited = edit_pictures(model, [fitted], path, prompts, methods=[method], guide=EDITING).pictures[0]
        figures.append(figure(edited, f"“{escape(edit.instruction)}”"))
        figures.append(figure(pictures.picture(truth), "as it should be"))
        asked, blend = f'--from "{source}" --to "{target}"', f"--blend {' '.join(words)} {BLEND}"
        commands.append(f"sfumato edit photo.png {asked} --guidance {EDITING:g} prompt-to-prompt {blend}")
    about = "A picture file is inverted, and painted again from other words; its layout is kept, and what lies around."
    return section("A picture edited by words", about, row(*figures) + _code(*commands))


def _ring(seed: int, device: torch.device) -> str:
    """A panorama that closes."""
    model = load("stilllife", device=device)
    options = {"ring": True, "stride": RING_STRIDE, "steps": SET_STEPS, "guide": GUIDANCE}
    (strip,) = panorama(model, RING, [seed], RING_SIZE, **options).pictures
    height, width = RING_SIZE
    about = (
        f"<i>{escape(RING[0].upper() + RING[1:])}</i>, all around: the model sees a square at a time, and the squares "
        "agree where they overlap, also across the seam. It was never shown a picture of this shape, and draws "
        "its cubes into each other."
    )
    command = f'sfumato panorama "{RING}" --size {width}x{height} --ring --stride {RING_STRIDE} --steps {SET_STEPS}'
    return section("A picture without an end", about, page.ring(strip, RING) + _code(command))


def _filmed(out: Path, device: torch.device) -> str:
    """A clip edited by words, beside the render of what it should have become. Frames that are there stay."""
    edit = change.counterfactual(CLIP, EDITS[0])
    before, after = (_clip(scene, device) for scene in (edit.before, edit.after))
    footage = Footage(videos.opened(videos.write(before, out / "clip")))
    source, target = edit.captions
    asked = PictureEdit(source, target, Direct(steps=SET_STEPS), [PromptToPrompt()], EDITING)
    model = load("stilllife", device=device)
    edited = edit_video(model, VideoEdit(footage, asked), out / "clip-edited", settings={"model": "stilllife"})
    sides = {
        "the frames of clip/": before,
        f"“{escape(edit.instruction)}”": list(videos.opened(edited.frames).frames()),
        "as it should be": after,
    }
    body = row(*(page.clip(frames, words, words) for words, frames in sides.items()))
    about = f"{CLIP_FRAMES} frames, each inverted and painted again from other words; what is shared keeps its place."
    asked_of = f'--from "{source}" --to "{target}" --steps {SET_STEPS} --guidance {EDITING:g}'
    command = f"sfumato video clip {asked_of} --invert direct prompt-to-prompt"
    return section("A clip edited by words", about, body + _code(command))


def _clip(scene: Scene, device: torch.device) -> list[Picture]:
    """A scene whose thing moves to the right and turns."""
    (thing,) = scene.things
    scenes = moves.between(scene, replace(scene, things=(replace(thing, x=-thing.x, yaw=50.0),)), CLIP_FRAMES)
    return [pictures.picture(image) for image in render(scenes, device=device).images]


def _code(*commands: str) -> str:
    lines = "\n".join(commands)
    return f"<pre><code>{escape(lines)}\n</code></pre>\n"


def _rendered_only(renders: Tensor, reason: str) -> str:
    figures = [figure(pictures.picture(r), escape(s)) for r, s in zip(renders, SENTENCES, strict=True)]
    about = f"The model's paintings are missing: {escape(reason)}."
    return section("From a sentence", about, row(*figures))


def _truth(device: torch.device) -> str:
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


def _counterfactuals(device: torch.device) -> str:
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


def _orbit(device: torch.device) -> str:
    scenes = moves.orbit(WORLD, 8)
    images = render(scenes, device=device).images
    figures = [
        figure(pictures.picture(x), f"{round(s.camera.azimuth) % 360}°") for x, s in zip(images, scenes, strict=True)
    ]
    return section("Once around", "Eight cameras on a circle, each with its pose and its truth.", row(*figures))


def _foot(clock: Clock, speed: dict[str, float], device: torch.device) -> str:
    facts: dict[str, Any] = {what: f"{seconds:.1f} s" for what, seconds in clock.spent.items()}
    facts |= {k: f"{v:.2f}" if isinstance(v, float) else str(v) for k, v in speed.items()}
    facts |= {"steps, guidance": f"{STEPS}, {GUIDANCE:g}", "device": str(device), "cores": str(os.cpu_count())}
    facts |= {"sfumato": __version__, "torch": torch.__version__.partition("+")[0]}
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    commands = (
        'sfumato generate "a red cube to the left of a blue duck on sand" --n 8\n'
        'sfumato render "two green robots on snow at night" --buffers\n'
        "sfumato describe out/generate/*.png\n"
        "sfumato bench generate --n 20"
    )
    return section(
        "How long it took, and what to try", "", f"<dl>{listed}</dl>\n<pre><code>{escape(commands)}</code></pre>\n"
    )
