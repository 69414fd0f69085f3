"""COLMAP's models, text and binary: ``cameras``, ``images`` and ``points3D``, with nothing but ``struct``.

COLMAP has world to camera, OpenCV's axes, quaternions with the real part first and pixel centres at halves. The world's
axes are the reconstruction's own; most often y is down in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.terminal import note
from sfumato.scene.lenses import Lens
from sfumato.scene.shots import Shot, Shots, report_missing, rigid

Y_DOWN = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64).diag()
"""From a world whose y is up to one whose y is down and z ahead."""
KINDS = (
    *(("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8)),
    *(("OPENCV_FISHEYE", 8), ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5)),
    *(("THIN_PRISM_FISHEYE", 12), ("RAD_TAN_THIN_PRISM_FISHEYE", 16)),
)
"""Kinds of cameras by their numbers in binary files, and how many parameters each has."""
READ = tuple(name for name, _ in KINDS if name not in ("FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"))
"""Those that are known here."""
PLACES = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "")
"""Where models lie in a capture's folder."""


def model_of(folder: Path) -> Path | None:
    """The folder of a COLMAP model in a capture's folder, or None."""
    return next((folder / p for p in PLACES if _file(folder / p, "cameras") and _file(folder / p, "images")), None)


def _file(folder: Path, name: str) -> Path | None:
    """A model's file, of which the binary one is exact."""
    return next((f for ending in (".bin", ".txt") if (f := folder / f"{name}{ending}").is_file()), None)


def read_colmap(model: Path, root: Path | None = None, images: Path | None = None) -> Shots:
    """A COLMAP model; ``root``: the capture's folder, ``images``: where its pictures are [default: beside the model].

    Masks are ``masks/NAME.png`` beside the pictures' folder, if they are there. Raises ``SfumatoError`` for a file that
    is cut short or broken, for kinds of cameras that are not known here, and where under two images are there.
    """
    cameras, poses, root = _cameras(model), _images(model), root or model
    more = [p for p in model.parent.glob("[0-9]*") if p != model and _file(p, "images")] if model.name == "0" else []
    if more:
        note(f"{model} is one of {len(more) + 1} models of its capture; the others have images that it has not")
    places = [images] if images else [p / "images" for p in (root, *list(model.parents)[:3])]
    place = next((p for p in places if p.is_dir()), None)
    if place is None:
        raise SfumatoError(f"there is no folder {places[0]} with the images of {model}")
    shots, missing = [], []
    for name, camera, rows in sorted(poses):
        if camera not in cameras:
            raise SfumatoError(f"{name} is of camera {camera} in {model}, and there is none of that number")
        file = place / name
        if not file.is_file():
            missing.append(name)
            continue
        masks = (place.parent / "masks" / f"{name}.png", (place.parent / "masks" / name).with_suffix(".png"))
        mask = next((m for m in masks if m.is_file()), None)
        shots.append(Shot(name, file, _pose(rows, name), cameras[camera], mask))
    report_missing(missing, len(poses), model)
    points, colours = _points(model)
    return Shots(tuple(shots), points, colours, upright=Y_DOWN)


def _pose(rows: tuple[float, ...], name: str) -> Float[Tensor, "4 4"]:
    """Camera to world with OpenGL's axes, of a quaternion and a translation from the world."""
    q, move = torch.tensor(rows[:4], dtype=torch.float64), torch.tensor(rows[4:], dtype=torch.float64)
    if not bool(q.isfinite().all()) or not 0.5 < float(q.norm()) < 2:
        raise SfumatoError(f"the pose of {name} has the quaternion {tuple(rows[:4])}, whose length is not 1")
    w, x, y, z = (q / q.norm()).tolist()
    turn = torch.tensor([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ], dtype=torch.float64)  # fmt: skip
    return rigid(torch.cat([turn.T, -(turn.T @ move)[:, None]], 1).numpy(), name, flip=True)


def _lens(kind: str, size: tuple[int, int], p: tuple[float, ...], path: Path) -> Lens:
    """A camera's parameters, in COLMAP's order."""
    width, height = size
    if width < 1 or height < 1 or not all(map(lambda x: abs(x) < float("inf"), p)):
        raise SfumatoError(f"a camera of {path} has {width} x {height} pixels and the parameters {p}")
    one = kind in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
    fx, fy, cx, cy, *rest = (p[0], *p) if one else p
    if not (fx > 0 and fy > 0):
        raise SfumatoError(f"a focal length is above 0, got {fx:g} and {fy:g} in {path}")
    radial, tangential = tuple(rest), (0.0, 0.0)
    if kind in ("OPENCV", "FULL_OPENCV"):  # k1 k2 p1 p2 k3 k4 k5 k6
        radial, tangential = (*rest[:2], *rest[4:]), (rest[2], rest[3])
    return Lens((height, width), (fx, fy), (cx, cy), radial, tangential, "FISHEYE" in kind)


def _known(kind: str, path: Path) -> None:
    if kind not in READ:
        raise SfumatoError(f"{path} has cameras of the kind {kind}; undistort by COLMAP before, or: {', '.join(READ)}")


class _Bytes:
    """A binary file, read from its beginning."""

    def __init__(self, path: Path):
        self.path, self.data, self.at = path, _read(path), 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values, little-endian."""
        try:
            out = struct.unpack_from("<" + form, self.data, self.at)
        except struct.error:
            raise self.short() from None
        self.at += struct.calcsize("<" + form)
        return out

    def skip(self, n: int) -> None:
        self.at += n
        if self.at > len(self.data):
            raise self.short()

    def text(self) -> str:
        """Up to a zero."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise self.short()
        out, self.at = self.data[self.at : end], end + 1
        return out.decode("utf-8", "surrogateescape")

    def short(self) -> SfumatoError:
        return SfumatoError(f"{self.path} is cut short: it ends after {len(self.data)} bytes, in the midst of an entry")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise SfumatoError(f"cannot read {path}: {e.strerror or e}") from e


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file that are no comments, by their numbers; empty ones, too."""
    for i, line in enumerate(_read(path).decode("utf-8", "surrogateescape").splitlines(), 1):
        if not line.startswith("#"):
            yield i, line.strip()


def _wrong(path: Path, line: int, what: str) -> SfumatoError:
    return SfumatoError(f"line {line} of {path} is no {what} as COLMAP writes them")


def _found(model: Path, name: str) -> Path:
    file = _file(model, name)
    if file is None:
        raise SfumatoError(f"{model} has no {name}.bin and no {name}.txt")
    return file


def _cameras(model: Path) -> Mapping[int, Lens]:
    path, out = _found(model, "cameras"), {}
    if path.suffix == ".bin":
        data = _Bytes(path)
        for _ in range(*data.take("Q")):
            number, kind, width, height = data.take("iiQQ")
            name, n = KINDS[kind] if 0 <= kind < len(KINDS) else (f"number {kind}", 0)
            _known(name, path)
            out[number] = _lens(name, (width, height), data.take(f"{n}d"), path)
        return out
    for i, line in _lines(path):
        if line:
            words = line.split()
            try:
                number, (width, height), values = int(words[0]), map(int, words[2:4]), tuple(map(float, words[4:]))
            except (ValueError, IndexError):
                raise _wrong(path, i, "camera") from None
            _known(words[1], path)
            if len(values) != dict(KINDS)[words[1]]:
                raise _wrong(path, i, f"{words[1]} camera")
            out[number] = _lens(words[1], (width, height), values, path)
    return out


def _images(model: Path) -> list[tuple[str, int, tuple[float, ...]]]:
    """Names, cameras, and quaternions with translations."""
    path, out = _found(model, "images"), []
    if path.suffix == ".bin":
        data = _Bytes(path)
        for _ in range(*data.take("Q")):
            _, *rows, camera = data.take("i7di")
            out.append((data.text(), camera, tuple(rows)))
            data.skip(24 * data.take("Q")[0])  # of each keypoint: x, y, its point
        return out
    lines = _lines(path)
    for i, line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)  # a name may have spaces in it
        try:
            out.append((words[9], int(words[8]), tuple(map(float, words[1:8]))))
        except (ValueError, IndexError):
            raise _wrong(path, i, "image") from None
        next(lines, None)  # its keypoints, none of which is an empty line
    return out


def _points(model: Path) -> tuple[Float[Tensor, "p 3"] | None, Float[Tensor, "p 3"] | None]:
    """Places and colours of the sparse points; None where there are none."""
    path, rows = _file(model, "points3D"), []
    if path is None:
        return None, None
    if path.suffix == ".bin":
        data = _Bytes(path)
        for _ in range(*data.take("Q")):
            _, *row, _, track = data.take("Q3d3BdQ")
            rows.append(row)
            data.skip(8 * track)  # of each image that sees it: its number, and the keypoint's
    else:
        for i, line in _lines(path):
            if line:
                try:
                    rows.append([float(word) for word in line.split()[1:7]])
                except ValueError:
                    raise _wrong(path, i, "point") from None
                if len(rows[-1]) != 6:
                    raise _wrong(path, i, "point")
    if not rows:
        return None, None
    values = torch.tensor(rows, dtype=torch.float64)
    values = values[values.isfinite().all(1)]
    return values[:, :3], (values[:, 3:] / 255).float()
