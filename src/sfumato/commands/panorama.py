"""``sfumato panorama``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands import painting, uses
from sfumato.commands.fields import sketched
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
    StepsOrOwn,
    layout_of,
    note_guidance,
    painted_size,
    size_of,
    written,
)
from sfumato.commands.sampling import Stepping, suited
from sfumato.errors import SfumatoError
from sfumato.io.terminal import note, quiet
from sfumato.tasks import chain as chains
from sfumato.tasks.chain import Chain


def panorama(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What to paint, in quotes.")],
    *,
    size: Annotated[str, tyro.conf.arg(metavar="WxH", help="Width and height in pixels.")],
    ring: Annotated[
        bool,
        tyro.conf.arg(help="Let the right border go on at the left: 360 degrees, closed from noise to pixels."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    sphere: Annotated[
        bool,
        tyro.conf.arg(help="All that lies around, 360 by 180 degrees, twice as wide as it is high."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    stride: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="CELLS",
            help="From window to window, in cells of the latents [default: the method's, or an eighth of a window].",
        ),
    ] = None,
    feather: Annotated[
        bool,
        tyro.conf.arg(help="Let windows count less towards their borders: no bands at large strides."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    negative: Negative = "",
    n: Annotated[int, tyro.conf.arg(help="Panoramas; number i is painted from seed + i.")] = 1,
    steps: StepsOrOwn = None,
    guidance: GuidanceOrOwn = None,
    sampling: tyro.conf.OmitArgPrefixes[Stepping],
    box: Boxes = (),
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="A folder, or a .png (with more than one panorama: their grid).")] = Path(
        "out/panorama"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Paint panoramas from a sentence: canvases that the model sees in windows of its own size, which agree in overlaps
    (MultiDiffusion), or as a method has it.

    Methods come last, joined by +; of panoramas: sync-diffusion, merge-attend-diffuse, spot-diffusion, sync-tweedies,
    and multi-diffusion with what is to be where.

    Example: sfumato panorama "ducks on sand at sunset" --size 1024x128 sync-diffusion --until 0.2

    Example: sfumato panorama "grass" --size 512x128 --box "a red cube on grass" 320,20,460,128 multi-diffusion

    Example: sfumato panorama "cubes on grass" --size 768x128 --ring

    Example: sfumato panorama "a beach" --size 512x256 --sphere
    """
    given = dict(locals())
    limit = painting.checked(n, steps, seed, memory, guidance)
    asked = size_of(size)
    if "x" not in size.lower().replace("×", "x"):
        raise SfumatoError(f"--size of a panorama is WIDTHxHEIGHT, such as 1024x128, got {size!r}")
    uses.painted(chain)
    uses.regions(loading, "a panorama")
    layout = layout_of(box)
    uses.boxes(layout, [sketched(chain).given(layout=layout)])
    chain = chain.given(seed=seed, layout=layout)
    place = painting.Place.of("panorama", out, prompt)

    quiet()
    from sfumato.tasks import panorama as task

    net = loading.load(model, device)
    height, width = painted_size(net, asked)
    seen = task.canvas(net, (height, width), ring, stride, sphere, feather)
    loading.remark(model, prompt, negative)
    steps, guidance = suited(net, steps, guidance)
    note_guidance(net, guidance, negative)
    chain = chain.of(height, width)
    options = {"methods": chain.methods, "guide": sampling.guide(net, guidance, negative), "steps": steps}
    options |= {"stepper": sampling.made(net), "memory": limit}
    price = task.cost(net, prompt, seen, **options)
    note(str(price))
    kind = {"ring": ring, "stride": stride, "sphere": sphere, "feather": feather}
    settings = {
        "prompt": prompt,
        "negative": negative,
        "steps": steps,
        "guidance": guidance,
        "size": written(height, width),
        **{name: value for name, value in kind.items() if value not in (False, None)},
        **sampling.settings(),
        "model": model,
        **({"methods": " + ".join(map(repr, chain.items))} if chain.items else {}),
    }
    keeper = painting.Finished(place, settings, given, chain, overwrite)
    painted = task.panorama(net, prompt, range(seed, seed + n), (height, width), keeper=keeper, **kind, **options)
    found, files = place.keep(painted, painted.pictures, seed, settings, given, chain)
    painting.say({**found, "cost": {**vars(price), "times": price.times}}, files, json)
