"""Captures whose every pixel is known: cameras inside a painted ball, photographed by formulas of their own."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

BALL = 6.0
MIDDLE = np.array([3.0, -2.0, 0.5])
NUMBERS = {"OPENCV": 4, "PINHOLE": 1, "SIMPLE_PINHOLE": 0, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV_FISHEYE": 5,
           "FULL_OPENCV": 6, "FOV": 7, "SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9}  # fmt: skip
LENS = {"fl_x": 61.0, "fl_y": 55.0, "cx": 37.5, "cy": 22.25, "w": 68, "h": 44}
"""Of pixels that are not square, off the middle, in a picture that is none either."""
BENT = {**LENS, "k1": 0.11, "k2": -0.07, "p1": 0.006, "p2": -0.009}


def ring(n: int = 6, seed: int = 0) -> np.ndarray:
    """Camera to world with OpenGL's axes, z up: all around the middle, looking at it, held level but for a little."""
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        a, e = 2 * np.pi * (i + 0.2 * rng.random()) / n, np.radians(10 + 25 * rng.random())
        eye = (2.0 + 0.4 * rng.random()) * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        back = (eye - 0.1 * rng.standard_normal(3)) / np.linalg.norm(eye)
        back /= np.linalg.norm(back)
        right = np.cross([0, 0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(back, right), back], 1)
        pose[:3, 3] = eye + MIDDLE  # the middle of things is not the middle of the world
        out.append(pose)
    return np.stack(out)


def colour(eyes: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Of the painted ball around the middle, where rays in its world meet it, in [0, 1]."""
    start = eyes - MIDDLE
    way = ways / np.linalg.norm(ways, axis=-1, keepdims=True)
    b, c = (start * way).sum(-1), (start**2).sum(-1) - BALL**2
    at = (start + (-b + np.sqrt(b**2 - c))[..., None] * way) / BALL
    x, y, z = np.moveaxis(at, -1, 0)
    return 0.5 + 0.45 * np.stack([np.sin(5 * x + 2 * y), np.cos(4 * y - 3 * z), np.sin(6 * z + x)], -1)


def bend(x: np.ndarray, y: np.ndarray, lens: dict) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's formulas, written out."""
    k1, k2, k3, k4, k5, k6, p1, p2 = (lens.get(k, 0.0) for k in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2"))
    r = np.hypot(x, y)
    if lens.get("camera_model") == "OPENCV_FISHEYE":
        a = np.arctan(r)
        s = np.where(r > 1e-9, (a + k1 * a**3 + k2 * a**5 + k3 * a**7 + k4 * a**9) / np.maximum(r, 1e-9), 1.0)
        return x * s, y * s
    s = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    return x * s + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2), y * s + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y


def photograph(pose: np.ndarray, lens: dict) -> np.ndarray:
    """What a camera with a lens sees, (h, w, 3); the lens is undone by going to and fro."""
    px, py = np.meshgrid(np.arange(lens["w"]) + 0.5, np.arange(lens["h"]) + 0.5)
    bx, by = (px - lens["cx"]) / lens["fl_x"], (py - lens["cy"]) / lens["fl_y"]
    x, y = bx, by
    for _ in range(200 if any(k in lens for k in ("k1", "p1", "camera_model")) else 1):
        gx, gy = bend(x, y, lens)
        x, y = x + 0.7 * (bx - gx), y + 0.7 * (by - gy)
    assert max(np.abs(bx - gx).max(), np.abs(by - gy).max()) < 1e-9
    local = np.stack([x, -y, -np.ones_like(x)], -1)
    return colour(np.broadcast_to(pose[:3, 3], local.shape), local @ pose[:3, :3].T)


def save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(file)


def folder(place: Path, lens: dict = LENS, n: int = 6, seed: int = 0, **about: object) -> Path:
    """A capture with a ``transforms.json``; further settings for all frames by ``about``."""
    frames = []
    for i, pose in enumerate(ring(n, seed)):
        save(photograph(pose, lens), place / "images" / f"{i:02d}.png")
        frames.append({"file_path": f"images/{i:02d}.png", "transform_matrix": pose.tolist()})
    return rewrite(place, {**lens, **about, "frames": frames})


def rewrite(place: Path, about: object) -> Path:
    """Write a ``transforms.json``."""
    (place / "transforms.json").write_text(about if isinstance(about, str) else json.dumps(about))
    return place


def settings(place: Path) -> dict:
    return json.loads((place / "transforms.json").read_text())


def colmap_rows(poses: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Quaternions (real part first) and translations of cameras from the world, OpenCV's axes."""
    rows = []
    for pose in poses:
        turn = Rotation.from_matrix(np.diag([1, -1, -1]) @ pose[:3, :3].T)
        rows.append((turn.as_quat()[[3, 0, 1, 2]], -turn.apply(pose[:3, 3])))
    return rows


def colmap(
    place: Path, kind: str, params: Sequence[float], lens: dict, binary: bool, n: int = 6, seed: int = 0,
    points: np.ndarray | None = None,
) -> Path:  # fmt: skip
    """The same as a COLMAP model; names have a space, images keypoints, points tracks."""
    model, poses = place / "sparse" / "0", ring(n, seed)
    model.mkdir(parents=True)
    names = [f"photo {i:02d}.png" for i in range(n)]
    for name, pose in zip(names, poses, strict=True):
        save(photograph(pose, lens), place / "images" / name)
    points = np.zeros((0, 3)) if points is None else points
    order = np.random.default_rng(1).permutation(n)  # files need not be sorted
    rows = colmap_rows(poses)
    if binary:
        (model / "cameras.bin").write_bytes(
            struct.pack("<QiiQQ", 1, 7, NUMBERS[kind], lens["w"], lens["h"]) + struct.pack(f"<{len(params)}d", *params)
        )
        out = struct.pack("<Q", n)
        for i in order:
            out += struct.pack("<i7di", i + 1, *rows[i][0], *rows[i][1], 7) + names[i].encode() + b"\0"
            out += struct.pack("<Q", i) + b"".join(struct.pack("<2dq", 1.5, 2.5, -1) for _ in range(i))
        (model / "images.bin").write_bytes(out)
        out = struct.pack("<Q", len(points))
        for i, p in enumerate(points):
            out += struct.pack("<Q3d3Bd", i, *p, 255, 51, i % 256, 0.5) + struct.pack("<Q", i % 3)
            out += b"".join(struct.pack("<ii", 1, 0) for _ in range(i % 3))
        (model / "points3D.bin").write_bytes(out)
        return place
    (model / "cameras.txt").write_text(
        f"# Camera list\n7 {kind} {lens['w']} {lens['h']} {' '.join(map(repr, map(float, params)))}\n"
    )
    out = "# Image list with two lines of data per image:\n"
    for i in order:
        numbers = " ".join(repr(float(x)) for x in (*rows[i][0], *rows[i][1]))
        out += f"{i + 1} {numbers} 7 {names[i]}\n" + " ".join(["1.5 2.5 -1"] * i) + "\n"  # of image 0 an empty line
    (model / "images.txt").write_text(out)
    (model / "points3D.txt").write_text("# 3D point list\n" + "".join(
        f"{i} {p[0]!r} {p[1]!r} {p[2]!r} 255 51 {i % 256} 0.5 1 0\n" for i, p in enumerate(points.tolist())
    ))  # fmt: skip
    return place


def errors(capture: object) -> np.ndarray:
    """Of each pixel of a capture that counts: how far its colour is from the ball's where its own ray meets it."""
    rays = capture.cameras.to(capture.world).rays()  # type: ignore[attr-defined]
    by = capture.world.numpy()  # type: ignore[attr-defined]
    eyes = rays.origins.numpy() @ by[:3, :3].T + by[:3, 3]
    true = colour(eyes, rays.directions.numpy() @ by[:3, :3].T)
    off = np.abs(capture.images.permute(0, 2, 3, 1).numpy() - true).max(-1)  # type: ignore[attr-defined]
    return off if capture.masks is None else off[capture.masks.numpy()]  # type: ignore[attr-defined]
