"""``sfumato plan``."""

from __future__ import annotations

from typing import Annotated

import tyro

from sfumato.commands.editing import EditMethod, prepared
from sfumato.commands.options import Json, Loading, Model, check_size, whole
from sfumato.terminal import print_json, print_table, quiet


def plan(
    method: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[EditMethod]],
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the picture shows.")] = "a red cube",
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")] = "a blue cube",
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 50,
    guidance: Annotated[float, tyro.conf.arg(help="Classifier-free guidance.")] = 7.5,
    size: Annotated[int | None, tyro.conf.arg(help="Side of the image in pixels [default: the model's].")] = None,
    memory: Annotated[float, tyro.conf.arg(help="GiB that attention maps may take.")] = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Loading],
    json: Json = False,
) -> None:
    """Say what an edit would read and write, in which steps, and what it would cost, without running it.

    Example: sfumato plan prompt-to-prompt --cross 0.5 --blend cube cube
    """
    whole("--steps", steps, 1, 1000)
    if size is not None:
        check_size(size)
    quiet()
    from sfumato import denoising

    net = loading.load(model)
    _, guide, methods = prepared(method, steps, guidance, 0)
    prompts = {"source": source, "target": target}
    planned = denoising.plan(
        net, prompts, methods=methods, guide=guide, steps=steps, size=size, memory=int(memory * 2**30)
    )
    rows = planned.table()
    if json:
        print_json(rows)
    elif rows:
        print_table([{**row, "bytes": f"{row['bytes'] / 2**20:.1f} MiB"} if "bytes" in row else row for row in rows])
    else:
        print("nothing is tapped: the network runs as it is")
