"""Views of one still life all around, as a capture with its truth."""

from __future__ import annotations

from dataclasses import replace

import torch

from sfumato.scene.cameras import looking
from sfumato.scene.capture import Capture
from sfumato.stilllife.render import Rendering, render
from sfumato.stilllife.scene import Camera, Scene


def cameras_around(scene: Scene, n: int, elevations: tuple[float, float] = (12.0, 40.0)) -> list[Camera]:
    """Evenly around the scene's target; elevations go up and down between two, in the golden ratio's steps."""
    low, high = elevations
    parts = [(i * 0.618033988749895) % 1 for i in range(n)]
    return [
        replace(scene.camera, azimuth=scene.camera.azimuth + 360 * i / n, elevation=low + part * (high - low))
        for i, part in enumerate(parts)
    ]


def capture(scene: Scene, cameras: list[Camera], size: int = 128) -> tuple[Capture, Rendering]:
    """Square images of the scene as the cameras see it, and all that is known of them."""
    seen = render([replace(scene, camera=camera) for camera in cameras], size)
    poses = torch.stack([torch.from_numpy(camera.to_world()) for camera in cameras]).float()
    fov = torch.tensor([camera.fov for camera in cameras])
    names = tuple(f"view-{i:03d}" for i in range(len(cameras)))
    return Capture(seen.images, looking(poses, fov, (size, size)), names), seen
