"""``transforms.json``: cameras as nerfstudio, instant-ngp and Blender's synthetic scenes have them.

Poses are camera to world with OpenGL's axes, in a world whose z is up; pixel centres lie at halves. What a frame says
itself comes before what is said for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import SfumatoError
from sfumato.io.files import read_json
from sfumato.media.images import size_of
from sfumato.scene.clouds import read_points
from sfumato.scene.lenses import Lens
from sfumato.scene.shots import Shot, Shots, report_missing, rigid

ENDINGS = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp", ".tif", ".tiff", ".exr")
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")
BENT = ("OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")
FISHEYES = ("OPENCV_FISHEYE", "FISHEYE")


def read_transforms(path: Path, flip: bool = False) -> Shots:
    """A ``transforms.json``; ``flip``: its poses have OpenCV's axes.

    Raises ``SfumatoError`` for what is no such file, for a pose that is none, and where under two images are there;
    where some are missing, the rest is read, with a note.
    """
    about = _document(path)
    frames = about["frames"]
    shots, missing = [], []
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise SfumatoError(f"frame {i} of {path} has no file_path")
        name = frame["file_path"].replace("\\", "/")
        file = found(path.parent / name)
        if file is None:
            missing.append(name)
            continue
        pose = rigid(frame.get("transform_matrix"), name, flip)
        mask = frame.get("mask_path")
        masked = None if not mask else path.parent / str(mask).replace("\\", "/")
        if masked is not None and not masked.is_file():
            raise SfumatoError(f"there is no mask {masked}, which {path} names for {name}")
        seen = lens({**about, **_focal_of_own(frame)}, file, path)
        shots.append((name, Shot(str(frame.get("name") or name), file, pose, seen, masked)))
    report_missing(missing, len(frames), path)
    shots = [shot for _, shot in sorted(shots, key=lambda each: each[0])]  # as nerfstudio, so that every eighth is too
    ours = about.get("sfumato")
    world = None if not isinstance(ours, dict) else _world(ours.get("world"), path)
    points, colours = None, None
    if about.get("ply_file_path"):
        points, colours = read_points(path.parent / str(about["ply_file_path"]))
    return Shots(tuple(shots), points, colours, world=world)


def _document(path: Path) -> dict[str, Any]:
    about = read_json(path, dict)
    if not isinstance(about.get("frames"), list) or not about["frames"]:
        raise SfumatoError(f"{path} has no frames; a transforms.json lists them with file_path and transform_matrix")
    return about


def _world(rows: object, path: Path) -> torch.Tensor:
    try:
        out = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        out = torch.zeros(0)
    if out.shape != (4, 4) or not bool(out.isfinite().all()) or float(torch.linalg.det(out)) <= 0:
        raise SfumatoError(f"the world under sfumato in {path} is no matrix of 4 x 4 numbers; take the entry out")
    return out


def found(file: Path) -> Path | None:
    """A file as it is named, or with the ending of a picture where the name has none."""
    if file.is_file():
        return file
    return next((e for ending in ENDINGS if (e := file.with_name(file.name + ending)).is_file()), None)


_FOCAL = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")


def _focal_of_own(frame: Mapping[str, Any]) -> dict[str, Any]:
    """A frame's own settings; with one focal length of its own, none of those for all counts."""
    own = {k: v for k, v in frame.items() if v is not None}
    return {**dict.fromkeys(_FOCAL), **own} if any(k in own for k in _FOCAL) else own


def lens(about: Mapping[str, Any], file: Path, path: Path) -> Lens:
    """The lens that settings speak of. Raises ``SfumatoError`` for what is no such lens."""

    def number(key: str) -> float | None:
        value = about.get(key)
        if value is None:
            return None
        try:
            value = float(value)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise SfumatoError(f"{key} of {file.name} in {path} is no finite number: {about[key]!r}")
        return value

    def focal(side: int, direct: str, angle: str) -> float | None:
        value = number(direct)
        if value is None and (turn := number(angle)) is not None:
            if not 0 < turn < math.pi:
                raise SfumatoError(f"{angle} of {file.name} in {path} lies between 0 and pi (radians), got {turn:g}")
            value = side / 2 / math.tan(turn / 2)
        return value

    kind = str(about.get("camera_model") or "OPENCV").upper()
    if kind not in (*PINHOLES, *BENT, *FISHEYES):
        raise SfumatoError(
            f"{path} has cameras of the kind {kind}; known: {', '.join((*PINHOLES, *BENT, *FISHEYES))}; undistort the "
            "images before"
        )
    w, h = number("w"), number("h")
    if w is None or h is None:
        w, h = size_of(file)
    if not (w >= 1 and h >= 1):
        raise SfumatoError(f"images of {path} have {w:g} x {h:g} pixels")
    w, h = round(w), round(h)
    fx, fy = focal(w, "fl_x", "camera_angle_x"), focal(h, "fl_y", "camera_angle_y")
    fx, fy = fy if fx is None else fx, fx if fy is None else fy
    if fx is None or fy is None:
        raise SfumatoError(f"{path} has no focal length for {file.name}: fl_x in pixels, or camera_angle_x in radians")
    if not (fx > 0 and fy > 0):
        raise SfumatoError(f"a focal length is above 0, got {fx:g} and {fy:g} of {file.name} in {path}")
    cx, cy = number("cx"), number("cy")
    size, centre = (h, w), (w / 2 if cx is None else cx, h / 2 if cy is None else cy)
    if kind in PINHOLES:
        return Lens(size, (fx, fy), centre)
    fisheye = kind in FISHEYES or bool(about.get("is_fisheye"))
    terms = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "k3", "k4", "k5", "k6")
    radial = tuple(number(k) or 0.0 for k in terms)
    if any(radial[3:]) and not fisheye and kind != "FULL_OPENCV":
        raise SfumatoError(f"k4 in {path} means one thing to a fisheye and others elsewhere; set camera_model there")
    tangential = (0.0, 0.0) if fisheye else (number("p1") or 0.0, number("p2") or 0.0)
    return Lens(size, (fx, fy), centre, radial, tangential, fisheye)
