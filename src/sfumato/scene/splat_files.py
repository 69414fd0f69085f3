"""Splats as PLY files, in the layout of 3D Gaussian Splatting's authors, which gsplat and viewers read and write.

One vertex a Gaussian, all of it float32: ``x y z``, ``nx ny nz`` (zeros), ``f_dc_0..2``, ``f_rest_*`` (all harmonics of
red, then of green, then of blue), ``opacity`` (a logit), ``scale_0..2`` (logarithms), ``rot_0..3`` (w, x, y, z). The
layout says nothing of the world. This package's has y up; most viewers take files for COLMAP's, whose y goes down.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError, finite
from sfumato.io.files import atomic, unread
from sfumato.scene import harmonics
from sfumato.scene.backgrounds import Background
from sfumato.scene.gaussians import KERBL, Y0, Gaussians, Recipe

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
HEADER = 2**16
"""Bytes in which a header ends."""


def write_splats(path: str | Path, gaussians: Gaussians, *, down: bool = False) -> Path:
    """Write a PLY file of splats; what is behind them is not part of it.

    ``down``: in a world whose y goes down and z away, as viewers for COLMAP's take it. Raises ``SfumatoError`` for
    latents and for values that are not finite.
    """
    path = Path(path)
    if gaussians.latent or gaussians.base.shape[1] != 3:
        raise SfumatoError(
            f"splats have colours, and these {gaussians.base.shape[1]} channels are not; decode them first"
        )
    parts = {name: p.detach().float().cpu() for name, p in gaussians._parts().items()}
    for name, values in parts.items():
        finite(values, f"{name} of Gaussians that are to be written to {path}")
    if down:
        parts = _turned(parts)
    g, k = len(parts["means"]), parts["rest"].shape[1]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(3 * k))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    rest = parts["rest"].mT.reshape(g, -1)
    columns = (parts["means"], torch.zeros(g, 3), parts["base"], rest, parts["opacities"][:, None], parts["scales"],
               parts["quaternions"])  # fmt: skip
    rows = torch.cat(columns, 1).numpy().astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {g}"]
    lines += [*(f"property float {name}" for name in names), "end_header"]
    with atomic(path) as part, part.open("wb") as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))
        file.write(rows.tobytes())
    return path


def read_splats(
    path: str | Path, *, down: bool = False, background: Background | None = None, recipe: Recipe = KERBL
) -> Gaussians:
    """Gaussians of a PLY file of splats, of any degree of harmonics up to 3; ``down``: the file's y goes down.

    Raises ``SfumatoError`` for what is no such file, or is damaged.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise SfumatoError(unread(path, e)) from e
    columns = _columns(data, path)
    needed = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3))]
    needed += [f"rot_{i}" for i in range(4)]
    if missing := [name for name in needed if name not in columns]:
        raise SfumatoError(f"{path} is a PLY file, but of no splats: its vertices have no {', '.join(missing)}")

    def of(*names: str) -> Float[Tensor, "g k"]:
        return torch.from_numpy(np.stack([columns[name].astype(np.float32) for name in names], 1))

    k = sum(name.startswith("f_rest_") for name in columns)
    degree = {3 * (harmonics.count(d) - 1): d for d in range(harmonics.MOST + 1)}.get(k)
    if degree is None or any(f"f_rest_{i}" not in columns for i in range(k)):
        raise SfumatoError(f"{path} has {k} f_rest values a splat; 0, 9, 24 or 45 are those of whole degrees")
    g = len(columns["x"])
    rest = of(*(f"f_rest_{i}" for i in range(k))).view(g, 3, k // 3).mT if k else torch.zeros(g, 0, 3)
    parts = {
        "means": of("x", "y", "z"), "scales": of("scale_0", "scale_1", "scale_2"),
        "quaternions": of("rot_0", "rot_1", "rot_2", "rot_3"), "opacities": of("opacity")[:, 0],
        "base": of("f_dc_0", "f_dc_1", "f_dc_2"), "rest": rest,
    }  # fmt: skip
    for name, values in parts.items():
        if not bool(values.isfinite().all()):
            raise SfumatoError(f"{path} has {name} that are not finite; write it again")
    if not bool(parts["quaternions"].norm(dim=1).min() > 0):
        raise SfumatoError(f"{path} has a splat without an orientation (rot_* are 0); write it again")
    parts = _turned(parts) if down else parts
    away = (parts["means"] - parts["means"].mean(0)).norm(dim=1).median()
    made = Gaussians(parts["means"], 0.5 + Y0 * parts["base"], scales=parts["scales"].exp(), degree=degree,
                     extent=max(float(away), 1e-3), background=background, recipe=recipe)  # fmt: skip
    with torch.no_grad():
        for name, values in parts.items():
            getattr(made, name).copy_(values)
        made.bands.fill_(degree)
    return made


def _turned(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """By half a turn about x: y up is y down, and back again. Each harmonic stays, or changes its sign."""
    flip = torch.tensor([1.0, -1, -1])
    w, x, y, z = parts["quaternions"].unbind(1)
    way = torch.nn.functional.normalize(torch.tensor([0.3, 0.5, 0.7]), dim=0)
    degree = {harmonics.count(d) - 1: d for d in range(harmonics.MOST + 1)}[parts["rest"].shape[1]]
    signs = (harmonics.basis(flip * way, degree) * harmonics.basis(way, degree)).sign()[1:]
    return {**parts, "means": parts["means"] * flip, "quaternions": torch.stack([-x, w, -z, y], 1),
            "rest": parts["rest"] * signs[:, None]}  # fmt: skip


def _columns(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """The vertices' properties of a binary PLY file."""
    end = data.find(b"end_header\n", 0, HEADER)
    if not data.startswith(b"ply") or end < 0:
        raise SfumatoError(
            f"{path} is no PLY file; sfumato lift --field gaussians writes one, as gsplat and many others do"
        )
    lines = data[:end].decode("ascii", "replace").replace("\r", "").split("\n")
    words = [line.split() for line in lines if line and not line.startswith(("comment", "obj_info"))]
    if ["format", "binary_little_endian", "1.0"] not in words:
        raise SfumatoError(f"{path} is a PLY file, but not binary and little-endian; write it again so")
    elements = [line for line in words if line[0] == "element"]
    if not elements or elements[0][1:2] != ["vertex"] or len(elements[0]) != 3 or not elements[0][2].isdigit():
        raise SfumatoError(f"{path} is a PLY file that does not begin with vertices; splats are vertices")
    first = words.index(elements[0])
    last = words.index(elements[1]) if len(elements) > 1 else len(words)
    mine = [line for line in words[first + 1 : last] if line[0] == "property"]
    if any(len(line) != 3 or line[1] not in TYPES for line in mine) or len({line[-1] for line in mine}) != len(mine):
        raise SfumatoError(f"{path} has vertices with lists or unknown types; splats have numbers alone")
    layout = np.dtype([(name, TYPES[kind]) for _, kind, name in mine])
    g, rows = int(elements[0][2]), data[end + len(b"end_header\n") :]
    if not g or len(rows) < g * layout.itemsize:
        raise SfumatoError(f"{path} promises {g} splats and has {len(rows) // max(layout.itemsize, 1)}; it was cut off")
    table = np.frombuffer(rows, layout, count=g)
    return {name: table[name] for name in layout.names or ()}
