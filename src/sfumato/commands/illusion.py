"""``sfumato illusion``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands import painting, uses
from sfumato.commands.options import (
    Device,
    Json,
    Memory,
    Model,
    Negative,
    Overwrite,
    Running,
    Seed,
    Size,
    StepsOrOwn,
    note_guidance,
    painted_size,
    size_of,
    written,
)
from sfumato.commands.sampling import Sampling, suited
from sfumato.io.terminal import quiet
from sfumato.methods.outline import look
from sfumato.tasks import chain as chains
from sfumato.tasks.chain import Chain


def illusion(
    prompt: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What it is as it stands, in quotes.")
    ],
    other: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="OTHER", help="What it is in the other view, in quotes.")
    ],
    *,
    view: Annotated[
        str,
        tyro.conf.arg(
            metavar="VIEW",
            help="flip (upside down), mirror, turn or turn:90, circle:DEGREES (a disc in the middle turned by any "
            "angle), or cylinder (what a mirror on its middle shows).",
        ),
    ] = "turn",
    fuse: Annotated[
        Literal["auto", "eps", "x0", "x_prev", "pixels"],
        tyro.conf.arg(
            help="What both views agree on in each step; auto is the noise, of a mirror pixels. Pixels take longer and "
            "leave fewer traces of a latent that is turned though its picture is not."
        ),
    ] = "auto",
    negative: Negative = "",
    n: Annotated[int, tyro.conf.arg(help="Images; image i is painted from seed + i.")] = 4,
    steps: StepsOrOwn = None,
    guidance: Annotated[
        float | None,
        tyro.conf.arg(help="How closely to follow the words [default: 7.5, or what the model was distilled for]."),
    ] = None,
    size: Size = None,
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/illusion"),
    overwrite: Overwrite = False,
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Paint pictures that are one thing as they stand and another seen in another way (visual anagrams).

    Writes each as a PNG, what it is in the other view as NAME-other.png, and a NAME.gif on the way from one to the
    other. Things of one colour on one ground come out best. Methods come last, as in generate.

    Example: sfumato illusion "a green robot on sand" "a green house on sand" --view turn --seed 7

    Example: sfumato illusion "a red cube" "a red duck" --view circle:135 --n 8
    """
    given = dict(locals())
    limit, asked = painting.checked(n, steps, seed, memory, guidance), size_of(size)
    uses.painted(chain)
    uses.regions(loading, "an illusion")
    look("tasks.illusion:view_of", view)
    place = painting.Place.of("illusion", out, f"{prompt} {view} {other}", one=False)

    quiet()
    from sfumato.media import pictures
    from sfumato.tasks import illusion as task

    looked = task.view_of(view)
    net = loading.load(model, device)
    height, width = painted_size(net, asked)
    loading.remark(model, prompt, other, negative)
    steps, guidance = suited(net, steps, 7.5 if guidance is None and net.distilled is None else guidance)
    note_guidance(net, guidance, negative)
    how = Sampling()
    settings = {
        "prompt": prompt,
        "other": other,
        "view": view,
        "fuse": fuse,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "size": written(height, width),
        "model": model,
        **({"methods": " + ".join(map(repr, chain.items))} if chain.items else {}),
    }
    painted = task.illusion(
        net, (prompt, other), looked, range(seed, seed + n), fuse=None if fuse == "auto" else fuse,
        methods=chain.given(seed=seed).of(height, width).methods, guide=how.guide(net, guidance, negative),
        steps=steps, size=(height, width), stepper=how.made(net), memory=limit,
        keeper=painting.Finished(place, settings, given, chain, overwrite),
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(place.names(n, seed, given, chain)):
        own = {**settings, "seed": seed + i}
        rows.append(
            {
                "image": str(pictures.write(painted.painted.pictures[i], out / f"{name}.png", own)),
                "other": str(pictures.write(painted.others[i], out / f"{name}-other.png", own)),
                "film": str(pictures.write_film(painted.film(i), out / f"{name}.gif")),
                "seed": seed + i,
            }
        )
    painting.tell("images", rows, settings, json)
