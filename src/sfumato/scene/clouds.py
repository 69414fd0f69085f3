"""Points with colours as PLY: read whatever their entries are, and written; faces and all else are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.files import atomic, unread

KINDS = {
    **dict.fromkeys(("char", "int8"), "i1"), **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"), **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"), **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"), **dict.fromkeys(("double", "float64"), "f8"),
}  # fmt: skip
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


def read_points(path: str | Path) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"] | None]:
    """Places in float64, and colours in [0, 1] where there are some. ``SfumatoError`` for what is no PLY of points."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise SfumatoError(unread(path, e)) from e
    head, _, body = data.partition(b"end_header")
    lines = [line.split() for line in head.decode("latin-1").splitlines()]
    try:
        form, number, entries = _header(lines)
        body = body[body.index(b"\n") + 1 :]
        if form == "ascii":
            rows = [line.split()[: len(entries)] for line in body.decode("latin-1").splitlines()[:number]]
            values = np.array(rows, np.float64).reshape(number, len(entries))
            table = {name: values[:, i] for i, (name, _) in enumerate(entries)}
        else:
            kind = np.dtype([(name, ORDERS[form] + KINDS[k]) for name, k in entries])
            read = np.frombuffer(body, kind, number)
            table = {name: read[name] for name, _ in entries}
        places = np.stack([table[k].astype(np.float64) for k in "xyz"], 1)
    except (ValueError, KeyError, IndexError) as e:
        raise SfumatoError(f"{path} is no PLY of points, or is cut short") from e
    whole = np.isfinite(places).all(1)
    colours = None
    if {"red", "green", "blue"} <= table.keys():
        top = 1 if dict(entries)["red"] in ("float", "float32", "double", "float64") else 255
        colours = torch.from_numpy(np.stack([table[k] for k in ("red", "green", "blue")], 1)[whole] / top).float()
    return torch.from_numpy(places[whole]), colours


def _header(lines: list[list[str]]) -> tuple[str, int, list[tuple[str, str]]]:
    """Format, number of points and their entries, names and kinds; points come first in a file."""
    if lines[0] != ["ply"]:
        raise ValueError
    form = next((line[1] for line in lines if line[:1] == ["format"]), None)
    at = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    if form is None or form not in ("ascii", *ORDERS) or not at or lines[at[0]][1] != "vertex":
        raise ValueError
    own = lines[at[0] + 1 : at[1] if len(at) > 1 else None]
    return form, int(lines[at[0]][2]), [(line[2], line[1]) for line in own if line[:1] == ["property"]]


def write_points(path: Path, points: Float[Tensor, "p 3"], colours: Float[Tensor, "p 3"] | None = None) -> Path:
    """Write points in float32, their colours in bytes; grey where there are none."""
    kind = np.dtype([(k, "<f4") for k in "xyz"] + [(k, "u1") for k in ("red", "green", "blue")])
    table = np.zeros(len(points), kind)
    shades = torch.full((len(points), 3), 0.5) if colours is None else colours
    for i, (place, shade) in enumerate((("x", "red"), ("y", "green"), ("z", "blue"))):
        table[place] = points[:, i].cpu().numpy()
        table[shade] = (shades[:, i].clamp(0, 1) * 255).round().byte().cpu().numpy()
    entries = "".join(f"property float {k}\n" for k in "xyz")
    entries += "".join(f"property uchar {k}\n" for k in ("red", "green", "blue"))
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{entries}end_header\n"
    with atomic(path) as part:
        part.write_bytes(head.encode() + table.tobytes())
    return path
