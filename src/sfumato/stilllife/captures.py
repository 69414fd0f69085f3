"""Views of one still life all around, as a capture with its truth; and such a capture as a folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.files import as_json, atomic, read_json, write_text
from sfumato.scene.cameras import looking
from sfumato.scene.capture import Capture, read_capture, write_capture
from sfumato.stilllife.render import Rendering, render
from sfumato.stilllife.scene import Camera, Scene

UNIT = 1e-3
"""Of depth in PNGs of 16 bits, in world units: nerfstudio's own. What is farther than 65.534 is 0, as the sky is."""


def cameras_around(scene: Scene, n: int, elevations: tuple[float, float] = (12.0, 40.0)) -> list[Camera]:
    """Evenly around the scene's target; elevations go up and down between two, in the golden ratio's steps."""
    low, high = elevations
    parts = [(i * 0.618033988749895) % 1 for i in range(n)]
    return [
        replace(scene.camera, azimuth=scene.camera.azimuth + 360 * i / n, elevation=low + part * (high - low))
        for i, part in enumerate(parts)
    ]


def capture(
    scene: Scene, cameras: list[Camera], size: int = 128, device: str | torch.device | None = None
) -> tuple[Capture, Rendering]:
    """Square images of the scene as the cameras see it, and all that is known of them."""
    seen = render([replace(scene, camera=camera) for camera in cameras], size, device=device)
    poses = torch.stack([torch.from_numpy(camera.to_world()) for camera in cameras]).float()
    fov = torch.tensor([camera.fov for camera in cameras])
    names = tuple(f"view-{i:03d}" for i in range(len(cameras)))
    return Capture(seen.images.cpu(), looking(poses, fov, (size, size)), names), seen


def along_rays(seen: Rendering, views: Capture) -> Float[Tensor, "n h w"]:
    """Depth along the rays, as scenes in 3D have it; inf for the sky."""
    return seen.depth * views.cameras.slant().to(seen.depth)


def write_views(
    folder: str | Path, scene: Scene, cameras: list[Camera], size: int = 128, device: str | torch.device | None = None
) -> Path:
    """Write a capture as a folder that this and other programs read, with its truth beside.

    ``images/``, ``transforms.json``; ``depth/``: along the axis, PNGs of 16 bits in thousandths of a unit, 0 for the
    sky; ``things/``: PNGs with 0 where no thing is, and its number in the scene, counted from 1; ``scene.json``: the
    scene and its cameras, from which ``capture`` makes all that is known of it again.
    """
    folder = Path(folder).expanduser()
    views, seen = capture(scene, cameras, size, device)
    deep = (seen.depth / UNIT).round()
    deep = torch.where(deep < 2**16, deep, 0).cpu().numpy().astype(np.uint16)
    things = (seen.thing + 1).cpu().numpy().astype(np.uint8)
    for what, values in (("depth", deep), ("things", things)):
        for i, each in enumerate(values):
            with atomic(folder / what / f"{i:04d}.png") as part:
                Image.fromarray(each).save(part, format="PNG")
    about = {"scene": scene.to_dict(), "cameras": [asdict(camera) for camera in cameras], "size": size}
    write_text(folder / "scene.json", as_json(about, indent=1) + "\n")
    return write_capture(folder, views, {"depth_file_path": "depth/{}.png", "thing_file_path": "things/{}.png"})


def read_views(folder: str | Path) -> tuple[Capture, Scene, list[Camera]]:
    """A folder that ``write_views`` wrote: its images and cameras, the scene, and the scene's cameras.

    Raises ``SfumatoError`` for a folder without a ``scene.json``, or with one of other images.
    """
    folder = Path(folder).expanduser()
    path = folder / "scene.json"
    if not path.is_file():
        raise SfumatoError(f"there is no {path}: what is in {folder} is not known; sfumato render --views writes it")
    views = read_capture(folder, side=None)
    about = read_json(path, dict)
    try:
        scene = Scene.from_dict(about["scene"])
        cameras = [Camera(**camera) for camera in about["cameras"]]
    except (ValueError, KeyError, TypeError) as e:
        raise SfumatoError(f"{path} is not the scene of a capture ({e}); sfumato render --views writes it") from e
    if len(cameras) != len(views):
        raise SfumatoError(f"{path} has {len(cameras)} cameras, and {folder} has {len(views)} images")
    return views, scene, cameras
