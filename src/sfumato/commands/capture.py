"""``sfumato capture``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Json, whole
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json
from sfumato.methods.outline import look


def capture(
    place: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(
            metavar="CAPTURE", help="A folder with a transforms.json or a COLMAP model, or a transforms.json itself."
        ),
    ],
    *,
    side: Annotated[
        int, tyro.conf.arg(metavar="PIXELS", help="Of images' longer side at most; 0 leaves them as they are.")
    ] = 1024,
    opencv: Annotated[
        bool,
        tyro.conf.arg(help="The transforms.json has OpenCV's axes: y down, z ahead."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    keep_world: Annotated[
        bool,
        tyro.conf.arg(help="Neither move nor scale the capture's world; only turn it upright."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help="A new or an empty folder to write it to, as it was read.")
    ] = None,
    json: Json = False,
) -> None:
    """Look at photographs with their cameras before a scene is made of them: what is there, and what is wrong.

    With --out it is written as it was read: undistorted, of one size, in an upright world, with a transforms.json.

    Example: sfumato capture photos/

    Example: sfumato capture colmap/ --side 512 --out out/photos
    """
    if side:
        whole("--side", side, 16, 16384)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SfumatoError(f"--out {out} is not empty; give a new folder, so that no photograph is written over")
    look("scene.capture:read_capture", place, side or None, opencv=opencv, keep_world=keep_world)
    from sfumato.io.files import writable
    from sfumato.scene.capture import read_capture, write_capture

    if out is not None:
        writable(out)
    read = read_capture(place, side or None, opencv=opencv, keep_world=keep_world)
    (h, w), (near, far) = read.cameras.size, read.span
    fov = (h / 2 / read.cameras.focal[:, 1]).atan().rad2deg() * 2
    found = {
        "images": len(read),
        "size": [w, h],
        "fov": [round(float(fov.min()), 2), round(float(fov.max()), 2)],
        "masked": 0.0 if read.masks is None else round(1 - float(read.masks.float().mean()), 4),
        "transparent": 0.0 if read.alphas is None else round(1 - float(read.alphas.mean()), 4),
        "points": 0 if read.points is None else len(read.points),
        "near": round(near, 4),
        "far": round(far, 4),
        "file": None if out is None else str(write_capture(out, read)),
    }
    if json:
        return print_json(found)
    low, high = found["fov"]
    print(f"{len(read)} images of {w} x {h}, {low:g}{f' to {high:g}' * (low != high)} degrees high")
    for what in ("masked", "transparent"):
        if found[what]:
            print(f"{found[what]:.1%} of the pixels are {what}")
    print(f"what is seen lies between {near:.3g} and {far:.3g} ({found['points'] or 'no'} sparse points)")
    if out is not None:
        print(found["file"])
