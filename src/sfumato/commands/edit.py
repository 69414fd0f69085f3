"""``sfumato edit``."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.commands.editing import EditMethod, prepared
from sfumato.commands.options import Device, Fit, Json, Model, Photo, Running, Seed, Steps, seed_of, whole
from sfumato.files import writable
from sfumato.terminal import print_json, quiet

if TYPE_CHECKING:
    from sfumato.plan import Plan


def edit(
    image: Photo,
    method: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[EditMethod]],
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the picture shows.")],
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")],
    steps: Steps = 50,
    guidance: Annotated[float, tyro.conf.arg(help="Classifier-free guidance of the edit.")] = 7.5,
    fit: Fit = "whole",
    memory: Annotated[float, tyro.conf.arg(help="GiB that attention maps may take.")] = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the result, a side-by-side and the plan.")] = Path("out/edit"),
    json: Json = False,
) -> None:
    """Edit an image file by words: it is inverted, painted again, and written at its own size.

    Where an edit left the source as it is (outside of --blend), the picture keeps its own pixels.

    Example: sfumato edit photo.png --from "a red cube on grass" --to "a blue cube on grass" prompt-to-prompt
    """
    whole("--steps", steps, 1, 1000)
    seed_of(seed)
    writable(out)
    quiet()
    from sfumato import images
    from sfumato.denoising import denoise, plan
    from sfumato.files import write_text
    from sfumato.inversion import invert
    from sfumato.stilllife import pictures

    net = loading.load(model, device)
    fitted = images.fit(images.open_picture(image), net.size, net.multiple, fit)
    how, guide, methods = prepared(method, steps, guidance, seed)
    prompts = {"source": source, "target": target} if methods else {"target": target}
    height, width = fitted.pixels.shape[-2:]

    def planned(steps: int) -> Plan:
        return plan(
            net, prompts, methods=methods, guide=guide, steps=steps, size=(height, width), memory=int(memory * 2**30)
        )

    planned(steps)  # what cannot be run is refused before the inversion
    path = invert(net, fitted.pixels, source, how)
    painted = denoise(net, prompts, start=path, methods=methods, guide=guide, seed=seed)
    changed = painted["target"].differs(painted["source"])[0] if methods else None
    result = fitted.restore(pictures.picture(painted["target"].images[0]), changed)
    words = {"source": source, "target": target, "method": method, "steps": steps, "guidance": guidance, "seed": seed}
    file = pictures.write(result, out / f"{image.stem}-edited.png", words)
    beside = pictures.write(pictures.grid([fitted.original, result]), out / f"{image.stem}-beside.png", words)
    lines = out / f"{image.stem}-plan.json"
    write_text(lines, dumps(planned(len(path.levels)).table(), indent=2) + "\n")
    files = {"image": str(file), "beside": str(beside), "plan": str(lines)}
    print_json(files) if json else print("\n".join(files.values()))
