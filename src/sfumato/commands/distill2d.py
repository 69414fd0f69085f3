"""``sfumato distill2d``."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.commands import uses
from sfumato.commands.fields import sketched
from sfumato.commands.options import (
    Device,
    Json,
    Model,
    Running,
    Seed,
    Size,
    painted_size,
    seed_of,
    size_of,
    slug,
    whole,
)
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.progress import counted
from sfumato.io.terminal import note, print_json, quiet
from sfumato.learning.annealing import Ramp
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks import kept
from sfumato.tasks.chain import Chain

MOST = 64  # images at once
FRAMES, MOST_FRAMES = 40, 400  # of a preview


def distill2d(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What to paint, in quotes.")],
    *,
    negative: Annotated[str, tyro.conf.arg(help="What the picture should not be [default: the method's].")] = "",
    space: Annotated[
        Literal["latent", "pixel", "coordinates"],
        tyro.conf.arg(help="What is moved: latents, pixels in [0, 1], or a small network from places to colours."),
    ] = "latent",
    n: Annotated[int, tyro.conf.arg(help="Images, of one set; image i starts from seed + i.")] = 4,
    steps: Annotated[int, tyro.conf.arg(help="Steps of the run.")] = 300,
    optimiser: Annotated[Literal["adam", "sgd"], tyro.conf.arg(help="What moves them.")] = "adam",
    rate: Annotated[float | None, tyro.conf.arg(help="Learning rate [default: one that suits the space].")] = None,
    sweep: Annotated[
        str, tyro.conf.arg(metavar="SCALE,SCALE", help="Guidance scales: a run each, and a sheet of them all.")
    ] = "",
    init: Annotated[Path | None, tyro.conf.arg(metavar="IMAGE", help="A picture to start from.")] = None,
    turn: Annotated[float, tyro.conf.arg(help="Look at images turned by up to so many degrees.")] = 0.0,
    zoom: Annotated[
        tuple[float, float], tyro.conf.arg(metavar="LEAST MOST", help="Look at images so many times as large.")
    ] = (1.0, 1.0),
    saturation: Annotated[float, tyro.conf.arg(help="Weight of a loss on saturation beyond the reference's.")] = 0.0,
    hue: Annotated[float, tyro.conf.arg(help="Weight of a loss on hues other than the reference's.")] = 0.0,
    histogram: Annotated[float, tyro.conf.arg(help="Weight of a loss on other histograms than the reference's.")] = 0.0,
    reference: Annotated[
        Path | None,
        tyro.conf.arg(metavar="IMAGE", help="Of those losses [default: --init, or what the model paints of PROMPT]."),
    ] = None,
    clip: Annotated[
        str, tyro.conf.arg(metavar="RAMP", help="Largest value of a gradient, such as 2, or 0.5>2 to let it grow.")
    ] = "",
    size: Size = None,
    every: Annotated[
        int | None, tyro.conf.arg(help="Steps between two frames of the preview [default: 40 frames in all].")
    ] = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the pictures, the preview and the record.")] = Path(
        "out/distill2d"
    ),
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Distil a model into images: score distillation without a scene. A run that was stopped goes on where it was.

    The method comes last, with options of its own: see sfumato distill2d METHOD --help. Writes NAME-SEED.png, the grid
    NAME.png, the preview NAME.gif (of what was run since the last stop) and NAME.json.

    Example: sfumato distill2d "a red cube on grass" score-distillation --guidance 30

    Example: sfumato distill2d "a red cube on grass" --space pixel --turn 30 --zoom 0.6 1.2 --sweep 7.5,30,100 sds
    """
    given = dict(locals())
    scales = _scales(sweep)
    if not prompt.strip():
        raise SfumatoError("the prompt is empty, so there is nothing to distil; say what to paint")
    whole("--n", n, 1, MOST)
    whole("--steps", steps, 1, 1_000_000)
    every = max(1, steps // FRAMES) if every is None else every
    whole("--every", every, max(1, steps // MOST_FRAMES), 1_000_000)
    seed_of(seed)
    asked = size_of(size)
    if len(chain.names) != 1:
        raise SfumatoError(f"distill2d takes one method; they are: {', '.join(index.words(index.DISTILLING))}")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise SfumatoError(f"--rate is a number above 0, got {rate:g}")
    if not (0 <= turn <= 180 and 0.1 <= zoom[0] <= zoom[1] <= 10):
        raise SfumatoError(f"--turn lies in 0 to 180, --zoom in 0.1 to 10, got {turn:g} and {zoom[0]:g} {zoom[1]:g}")
    if not all(math.isfinite(w) and w >= 0 for w in (saturation, hue, histogram)):
        raise SfumatoError("--saturation, --hue and --histogram are numbers from 0")
    weights = {"saturation": saturation, "hue": hue, "histogram": histogram}
    uses.beside("--reference", reference, "--saturation, --hue or --histogram", any(weights.values()))
    (sketch,) = sketched(chain).items
    has = {f.name for f in fields(sketch)}
    if negative and "negative" not in has:
        raise SfumatoError(f"{chain.names[0]} has no empty prompt whose place a negative one could take")
    if scales and "guidance" not in has:
        raise SfumatoError(f"{chain.names[0]} has no guidance to sweep")
    if scales and sketch.guidance != type(sketch).guidance:
        note(f"--sweep takes the place of the guidance of {chain.names[0]}, {sketch.guidance:g}")
    limit = Ramp.read(clip) if clip else None
    if limit is not None and any(value <= 0 for _, value in limit.points):
        raise SfumatoError(f"--clip is the largest value of a gradient, above 0, got {clip}")
    method = chain.items[0]
    method = replace(method, negative=negative) if negative else method
    writable(out)
    quiet()
    from sfumato.distill import RandomViews
    from sfumato.media import pictures
    from sfumato.media.images import read_image
    from sfumato.tasks.distill import distill_images, regularised

    net = loading.load(model, device)
    loading.remark(model, prompt, negative)
    begin = None if init is None else read_image(init, net)
    size_asked = None if asked is None else painted_size(net, asked)
    if begin is not None and size_asked is not None and begin.shape[-2:] != size_asked:
        raise SfumatoError("--init brings its own size; leave --size out")
    like = begin if reference is None else read_image(reference, net)
    options = {
        "n": n, "space": space, "size": size_asked, "image": begin,
        "optimiser": optimiser, "rate": rate, "clip": limit, "seed": seed, "frame_every": every,
        "viewpoints": RandomViews(n, turn, zoom) if turn or zoom != (1.0, 1.0) else None,
        "regularisers": regularised(net, prompt, **weights, reference=like, seed=seed),
    }  # fmt: skip
    settings = {"prompt": prompt, "space": space, "steps": steps, "optimiser": optimiser, "seed": seed, "model": model}
    stem, rows, results = f"{slug(prompt)}-{chain.names[0]}", [], []
    every_setting, name = kept.settings_of(given, [chain]), ""
    with counted("sweep", len(scales)):
        for scale in scales or [None]:
            how = method if scale is None else replace(method, guidance=scale)
            own = {**every_setting, "sweep": None, "methods": how}
            name = stem if scale is None else f"{stem}-{scale:g}"
            name = kept.named(out, "distill2d", ".gif", name, own)
            so_far = out / f".{name}.{kept.digest(own)[:8]}.safetensors"
            done = distill_images(net, prompt, how, steps, keep=so_far, **options)
            about = {**settings, "method": repr(how)}
            files = [
                pictures.write(pictures.picture(image), out / f"{name}-{seed + i}.png", about)
                for i, image in enumerate(done.images)
            ]
            sheet = done.frames[-1]
            files += [pictures.write(sheet, out / f"{name}.png", about)] if n > 1 else []
            files.append(pictures.write_film(done.frames, out / f"{name}.gif"))
            so_far.unlink(missing_ok=True)
            results.append(sheet)
            rows.append({**about, "guidance": scale, "files": [str(f) for f in files], "strength": done.strength})
    grid = out / f"{name}.png" if n > 1 else out / f"{name}-{seed}.png"
    if scales:
        name = kept.named(out, "sweep", ".png", f"{stem}-sweep", every_setting)
        labels, grid = [f"{scale:g}" for scale in scales], out / f"{name}.png"
        rows[-1]["files"].append(str(pictures.write(pictures.labelled(results, labels), grid, settings)))
    document = out / f"{name}.json"
    write_json(document, {"runs": rows}, indent=1)
    if json:
        print_json({"runs": rows, "grid": str(grid), "record": str(document)})
    else:
        print("\n".join([*(f for row in rows for f in row["files"]), str(document)]))


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        scales = [math.nan]
    if not all(map(math.isfinite, scales)) or len(set(scales)) < len(scales):
        raise SfumatoError(f"--sweep are different numbers with commas, such as 7.5,30,100, got {text!r}")
    return scales
