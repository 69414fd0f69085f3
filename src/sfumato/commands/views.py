"""``sfumato views``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands import painting
from sfumato.commands.options import (
    Device,
    GuidanceOrOwn,
    Json,
    Memory,
    Model,
    Negative,
    Running,
    Seed,
    Size,
    StepsOrOwn,
    note_guidance,
    painted_size,
    size_of,
    slug,
    written,
)
from sfumato.commands.sampling import Sampling, suited
from sfumato.errors import SfumatoError
from sfumato.io.terminal import quiet
from sfumato.methods.outline import look


def views(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="The thing, in quotes.")],
    *,
    views: Annotated[
        str,
        tyro.conf.arg(metavar="WORD,WORD", help="Its views, an even number, shown two in a row."),
    ] = "front,right,back,left",
    template: Annotated[str, tyro.conf.arg(metavar="TEXT", help="What each view reads.")] = "{view} view of {prompt}",
    contrast: Annotated[
        float,
        tyro.conf.arg(help="How far front, back, left and right are guided away from their opposites' words; 0: not."),
    ] = 0.0,
    grid: Annotated[
        bool,
        tyro.conf.arg(help="Paint the views as tiles of one picture, for models that know pictures of that size."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    negative: Negative = "",
    n: Annotated[int, tyro.conf.arg(help="Sheets; sheet i is painted from seed + i.")] = 1,
    steps: StepsOrOwn = None,
    guidance: GuidanceOrOwn = None,
    size: Size = None,
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/views"),
    json: Json = False,
) -> None:
    """Paint views of one thing that read each other while they are painted, so that they show the same thing.

    Writes each sheet as a PNG, and its views as NAME-1-front.png and so on. --size is that of a view. Each view reads
    its words: of the built-in model's left and right become side, as its captions say.

    Example: sfumato views "a red robot" --views front,right,back,left --seed 2

    Example: sfumato views "a blue house on sand" --views front,back --n 4
    """
    given = dict(locals())
    limit, asked = painting.checked(n, steps, seed, memory, guidance), size_of(size)
    if not 0 <= contrast <= 100:
        raise SfumatoError(f"--contrast is a number from 0 to 100, got {contrast:g}")
    if contrast and grid:
        raise SfumatoError("--contrast is of views that are a set, and --grid paints one picture; leave one out")
    words = [word.strip() for word in views.split(",")]
    look("tasks.views:words_of", None, prompt, words, template)
    place = painting.Place.of("views", out, prompt, one=False)

    quiet()
    from sfumato.media import pictures
    from sfumato.tasks import views as task

    net = loading.load(model, device)
    prompts = task.words_of(net, prompt, words, template)
    height, width = painted_size(net, asked)
    loading.remark(model, *prompts, negative)
    steps, guidance = suited(net, steps, guidance)
    note_guidance(net, guidance, negative)
    how = Sampling()
    paint = task.paint_grid if grid else partial(task.paint_views, contrast=contrast)
    painted = paint(
        net, prompt, words, range(seed, seed + n), template=template, size=(height, width), steps=steps,
        guide=how.guide(net, guidance, negative), stepper=how.made(net), memory=limit,
    )  # fmt: skip
    settings = {
        "prompt": prompt,
        "views": views,
        "template": template,
        **({"grid": True} if grid else {"contrast": contrast} if contrast else {}),
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "size": written(height, width),
        "model": model,
    }
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(place.names(n, seed, given)):
        own = {**settings, "seed": seed + i}
        file = str(pictures.write(painted.painted.pictures[i], out / f"{name}.png", own))
        several = [
            str(pictures.write(tile, out / f"{name}-{k}-{slug(word)}.png", {**own, "prompt": text}))
            for k, (tile, word, text) in enumerate(zip(painted.views[i], words, prompts, strict=True), 1)
        ]
        rows.append({"sheet": file, "images": several, "seed": seed + i})
    painting.tell("sheets", rows, settings, json)
