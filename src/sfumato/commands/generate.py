"""``sfumato generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands import grids, painting, uses
from sfumato.commands.clips import RATE, STEPS, Clips, named, picture_of
from sfumato.commands.fields import sketched
from sfumato.commands.grids import number
from sfumato.commands.options import (
    Boxes,
    Device,
    GuidanceOrOwn,
    Json,
    Memory,
    Model,
    Negative,
    Overwrite,
    Running,
    Seed,
    ShowAttention,
    Size,
    StepsOrOwn,
    check_apart,
    layout_of,
    note_guidance,
    painted_size,
    size_of,
    whole,
    written,
)
from sfumato.commands.sampling import Sampling, suited
from sfumato.commands.steering import Steering
from sfumato.errors import SfumatoError, unknown
from sfumato.io.progress import counted
from sfumato.io.terminal import quiet
from sfumato.tasks import chain as chains
from sfumato.tasks import kept
from sfumato.tasks.chain import Chain


def generate(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What to paint, in quotes.")],
    *,
    negative: Negative = "",
    n: Annotated[
        int | None, tyro.conf.arg(help="Images; image i is painted from seed + i [default: 4, or 1 in a --grid].")
    ] = None,
    in_grid: Annotated[tuple[str, ...], grids.option("guidance, steps, seed")] = (),
    steps: StepsOrOwn = None,
    guidance: GuidanceOrOwn = None,
    size: Size = None,
    frames: Annotated[
        int | None,
        tyro.conf.arg(help="Of clips, by a model with motion [default: at most 16, or Stable Video Diffusion's own]."),
    ] = None,
    clips: tyro.conf.OmitArgPrefixes[Clips],
    sampling: tyro.conf.OmitArgPrefixes[Sampling],
    steering: tyro.conf.OmitArgPrefixes[Steering],
    inpaint: Annotated[
        Path | None,
        tyro.conf.arg(metavar="IMAGE", help="A picture of which an inpainting checkpoint paints a part anew."),
    ] = None,
    mask: Annotated[
        Path | None, tyro.conf.arg(metavar="IMAGE", help="That part: white, or opaque, of the picture's shape.")
    ] = None,
    box: Boxes = (),
    show_attention: ShowAttention = False,
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="A folder, or a .png (with more than one image: their grid).")] = Path(
        "out/generate"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Paint images from a sentence, as PNGs that carry the sentence, the seed and the settings.

    Stable Video Diffusion reads no words: its prompt is the file of a picture, from which a clip goes on.

    Methods come last, joined by +, each with options of its own: see sfumato generate METHOD --help, and sfumato
    methods for what they are.

    Example: sfumato generate "a red cube to the left of a blue duck on sand at sunset" --n 8 --seed 7

    Example: sfumato generate "a red cube and a blue duck" attend-and-excite --words cube,duck

    Example: sfumato generate "a red cube on sand" --grid guidance=2,4,7 steps=10,30

    Example: sfumato generate "things on a beach" --canvas 512 128 --views ring --stepper dpm-solver --not "a duck"

    Example: sfumato generate "a duck that swims" --model sd-1.5 --motion guoyww/animatediff-motion-adapter-v1-5-2

    Example: sfumato generate duck.png --model stabilityai/stable-video-diffusion-img2vid --n 1 --film mp4

    Example: sfumato generate "a duck" --model inpainting.safetensors --inpaint photo.png --mask hole.png
    """
    given = dict(locals())
    n = given["n"] = (1 if in_grid else 4) if n is None else n
    grid = grids.cells(given.pop("in_grid"))
    layout = layout_of(box)

    def by(chain: Chain) -> dict[str, _Asked]:
        every = {label: _Asked(steps, guidance, seed, chain).changed(cell) for label, cell in grid.items()}
        return {
            label: replace(one, chain=one.chain.given(seed=one.seed, layout=layout)) for label, one in every.items()
        }

    cells = by(sketched(chain))  # before methods are imported
    (limit,) = {painting.checked(n, one.steps, one.seed, memory, one.guidance) for one in cells.values()}
    if frames is not None:
        whole("--frames", frames, 1, 4000)
    asked = size_of(size)
    if size is not None and sampling.canvas is not None:
        raise SfumatoError("--size is of an image that is seen whole, --canvas of a panorama; give one of them")
    if (inpaint is None) != (mask is None):
        raise SfumatoError("--inpaint PICTURE and --mask MASK go together: what is painted anew, and where")
    if inpaint is not None and (size is not None or sampling.canvas is not None):
        raise SfumatoError("--inpaint paints at the picture's own size; leave --size and --canvas out")
    if steering.control and sampling.canvas is not None:
        raise SfumatoError("--control is of an image that is seen whole; leave it or --canvas out")
    uses.painted(chain)
    if sampling.canvas is not None:
        uses.regions(loading, "a canvas")
    uses.boxes(layout, [one.chain for one in cells.values()])
    check_apart(out, inpaint, mask, *steering.control)
    cells = by(chain)
    place = painting.Place.of("generate", out, named(prompt))

    quiet()
    from sfumato.tasks import generate as task
    from sfumato.tasks.inpaint import Inpainting

    net = loading.load(model, device)
    picture = picture_of(net, prompt)
    part = None if inpaint is None or mask is None else Inpainting.read(inpaint, mask, net)
    frames = (net.frames if picture else min(16, net.frames)) if frames is None else frames
    clips.check(frames, picture is not None)
    net.check_frames(frames, any(method.lengthens for method in next(iter(cells.values())).chain.methods))
    if show_attention and frames > 1:
        raise SfumatoError("--show-attention is of images, and these are clips; leave it out, or give --frames 1")
    net = net if part is None else part.given(net)
    if picture is not None:
        check_apart(out, picture)
        if in_grid:
            raise SfumatoError("--grid is of what is painted from words; leave it out of a clip from a picture")
        net, height, width = clips.going_on(net, picture, asked, seed)
    else:
        height, width = painted_size(net, part.size if part is not None else asked or steering.size(net))
    if sampling.canvas is not None:
        height, width = painted_size(net, (sampling.canvas[1], sampling.canvas[0]), "--canvas")
    net = steering.steer(net, loading, steering.cropped(height, width), negative)
    loading.remark(model, prompt, negative)
    after = None if part is None else partial(part.restore, model=net)
    films = partial(clips.write, rate=RATE) if picture else clips.write

    def painted(label: str, one: _Asked) -> tuple[dict[str, Any], list[str]]:
        if picture is not None and not negative and sampling.plain:
            steps, guidance = one.steps or STEPS, one.guidance
            guide = net.guided(guidance)
        else:
            steps, guidance = suited(net, one.steps, one.guidance)
            guide = sampling.guide(net, guidance, negative)
        note_guidance(net, guidance, negative)
        chain = one.chain.of(height, width)
        options = {"methods": chain.methods, "guide": guide, "steps": steps}
        options |= {**sampling.options((height, width)), "stepper": sampling.made(net)}
        options |= {"memory": limit, "attention": show_attention, "frames": frames}
        settings = {
            "prompt": prompt,
            "negative": negative,
            "steps": steps,
            "guidance": guidance,
            "size": height if height == width else written(height, width),
            **({"frames": frames, **clips.settings()} if frames > 1 else {}),
            **sampling.settings(),
            **steering.settings(),
            **({} if inpaint is None else {"inpaint": str(inpaint), "mask": str(mask)}),
            "model": model,
            **({"methods": " + ".join(map(repr, chain.items))} if chain.items else {}),
        }
        own = given | {"steps": one.steps, "guidance": one.guidance, "seed": one.seed}
        to = replace(place, stem=grids.stem(place.stem, label), file=None) if label else place
        keeper = None if show_attention or frames > 1 else painting.Finished(to, settings, own, chain, overwrite)
        seeds = range(one.seed, one.seed + n)
        found = task.generate(net, "" if picture else prompt, seeds, keeper=keeper, after=after, **options)
        return to.keep(found, found.pictures, one.seed, settings, own, chain, films)

    with counted("grid", len(cells)):
        made = {label: painted(label, one) for label, one in cells.items()}
    files = [file for _, some in made.values() for file in some]
    if not in_grid:
        ((found, _),) = made.values()
    else:
        found: dict[str, Any] = {"cells": {label: found for label, (found, _) in made.items()}}
        found["sheet"] = str(
            _sheet(place, made, grids.columns(in_grid), {"prompt": prompt, "model": model}, given, chain)
        )
        files.append(found["sheet"])
    painting.say(found, files, json)


def _sheet(
    place: painting.Place,
    made: Mapping[str, tuple[Mapping[str, Any], Any]],
    columns: int,
    about: Mapping[str, Any],
    given: Mapping[str, Any],
    chain: Chain,
) -> Path:
    """What cells show, each with its settings: an image, or the grid of several."""
    from sfumato.media import images, pictures

    shown = [images.open_picture(found["grid"] or found["images"][0]["image"]) for found, _ in made.values()]
    name = kept.named(
        place.folder, "grid", "-grid.png", place.stem, {**kept.settings_of(given, [chain]), "cells": [*made]}
    )
    sheet = pictures.labelled(shown, [label.replace(", ", "\n") for label in made], columns)
    return pictures.write(sheet, place.file or place.folder / f"{name}-grid.png", {**about, "grid": "; ".join(made)})


@dataclass(frozen=True)
class _Asked:
    """What a picture is painted by, and cells of a grid differ in."""

    steps: int | None
    guidance: float | None
    seed: int
    chain: Chain

    def changed(self, cell: Sequence[tuple[str, str]]) -> _Asked:
        """With other settings: the run's seed, of which methods draw as well, methods' own, or the run's."""
        given = self
        for name, text in cell:
            field = name.replace("-", "_")
            if field == "seed":
                given = replace(given, seed=number(name, text, int))
            elif (chain := grids.in_methods(given.chain, field, text, "sfumato generate")) is not None:
                given = replace(given, chain=chain)
            elif field in ("steps", "guidance"):
                given = replace(given, **{field: number(name, text, int if field == "steps" else float)})
            else:
                raise unknown("setting of --grid", name, [*grids.settings(given.chain), "guidance", "steps", "seed"])
        return given
