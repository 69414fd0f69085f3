"""``sfumato show plan``."""

from __future__ import annotations

from typing import Annotated

import tyro

from sfumato.commands import uses
from sfumato.commands.fields import sketched
from sfumato.commands.options import (
    Boxes,
    Json,
    Loading,
    Memory,
    Model,
    Size,
    bytes_of,
    guidance_of,
    layout_of,
    painted_size,
    size_of,
    whole,
)
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json, print_table, quiet
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks.chain import Chain


def plan(
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the picture shows.")] = "a red cube",
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")] = "a blue cube",
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 50,
    guidance: Annotated[
        float | None, tyro.conf.arg(help="Classifier-free guidance [default: the method's, or 7.5].")
    ] = None,
    box: Boxes = (),
    size: Size = None,
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Loading],
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Say what an edit would read and write, in which steps, and what it would cost, without running it.

    Example: sfumato show plan prompt-to-prompt --cross 0.5 --blend cube cube
    """
    whole("--steps", steps, 1, 1000)
    limit = bytes_of(memory)
    guidance_of(guidance)
    asked, layout = size_of(size), layout_of(box)
    uses.boxes(layout, [sketched(chain).given(layout=layout)])
    if not chain.names:
        raise SfumatoError(f"plan takes methods, joined by +; they are: {', '.join(index.words())}")
    chain = chain.given(layout=layout)
    quiet()
    from sfumato.core import denoising
    from sfumato.tasks.edit import PictureEdit

    net = loading.load(model)
    seen = painted_size(net, asked)
    chain = chain.of(*seen)
    edit = PictureEdit.of(chain, source, target, "direct", steps, guidance)
    planned = denoising.plan(
        net,
        edit.prompts,
        methods=edit.methods,
        guide=edit.guide(net),
        steps=steps,
        size=seen,
        memory=limit,
    )
    rows = planned.table()
    if json:
        print_json(rows)
    elif rows:
        print_table([{**row, "bytes": f"{row['bytes'] / 2**20:.1f} MiB"} if "bytes" in row else row for row in rows])
    else:
        print("nothing is tapped: the network runs as it is")
