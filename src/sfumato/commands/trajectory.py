"""``sfumato trajectory``."""

from __future__ import annotations

import math
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Seed, seed_of, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_text
from sfumato.io.terminal import print_json, print_table, quiet


def trajectory(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="What to paint, in quotes.")],
    *,
    scales: Annotated[
        tuple[float, ...], tyro.conf.arg(metavar="S", help="Scales of classifier-free guidance; 1 is without.")
    ] = (1.0, 3.0, 7.5, 15.0, 30.0),
    steps: Annotated[int, tyro.conf.arg(help="DDIM steps.")] = 100,
    points: Annotated[int, tyro.conf.arg(help="Places in the latents to follow, at random by the seed.")] = 3,
    decode: Annotated[
        Literal["z", "estimate"],
        tyro.conf.arg(help="Pixels of the noisy latents, or of what they are estimated to become."),
    ] = "z",
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the figures and numbers.")] = Path("out/trajectory"),
    json: Json = False,
) -> None:
    """Paint one noise at several guidance scales and draw how it goes: predictions, latents and pixels, step by step.

    Example: sfumato trajectory "a red cube on grass" --scales 1 3 7.5 15 30 --steps 100
    """
    whole("--steps", steps, 2, 1000)
    whole("--points", points, 1, 6)
    seed_of(seed)
    if not 1 <= len(scales) <= 8 or len(set(scales)) < len(scales) or not all(map(math.isfinite, scales)):
        given = " ".join(f"{s:g}" for s in scales) or "none"
        raise SfumatoError(f"--scales are one to eight different numbers, got {given}")
    if not prompt.strip():
        raise SfumatoError("the prompt is empty, so there is no guidance to follow; say what to paint")
    writable(out)
    quiet()
    from sfumato.experiments.trajectory import draw, follow

    net = loading.load(model, device)
    decoded = "x" if decode == "z" else "x0"
    course = follow(net, prompt, scales, steps=steps, seed=seed, many=points, decoded=decoded)
    words = {"prompt": prompt, "scales": scales, "steps": steps, "seed": seed, "model": model, "decode": decode}
    files = draw(course, out, words)
    rows = course.numbers()
    curves = [{name: curve[:, i].tolist() for name, curve in course.similarity.items()} for i in range(len(rows))]
    record = {
        **words,
        "times": course.times,
        "cells": course.cells.tolist(),
        "scales": [{**row, "curves": each} for row, each in zip(rows, curves, strict=True)],
    }
    files["numbers"] = out / "trajectory.json"
    write_text(files["numbers"], dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if json:
        print_json({**{name: str(path) for name, path in files.items()}, "scales": rows})
        return
    print_table([_line(row) for row in rows])
    print("\n".join(map(str, files.values())))


def _line(row: dict[str, Any]) -> dict[str, str]:
    """A record of numbers as a line of a table for a person."""
    return {
        "scale": f"{row['scale']:g}",
        **{name: f"{value:.4f}" for name, value in row["similarity"].items()},
        "range": f"{row['range']:.2f}",
        "at border": f"{row['border']:.1%}",
    }
