"""Buffers of a rendering as pictures and files, and pictures as the squares that Still Life's networks see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from PIL.Image import Image as Picture
from torch import Tensor

from sfumato.io.files import atomic
from sfumato.media.images import open_picture, tensor
from sfumato.media.pictures import picture, write
from sfumato.stilllife.render import Rendering


def read(path: str | Path, size: int = 128) -> Float[Tensor, "3 size size"]:
    """An image file as its centre square, in [0, 1]; see ``images.open_picture`` for what is read and what refused."""
    return tensor(ImageOps.fit(open_picture(path), (size, size), Image.Resampling.LANCZOS))


def sketch_depth(depth: Float[Tensor, "h w"]) -> Picture:
    """Depth for the eye, by its inverse: the nearest is white, the sky black."""
    grey = depth.min() / depth
    return Image.fromarray((grey * 255).round().byte().cpu().numpy())


def sketch_labels(label: Int[Tensor, "h w"]) -> Picture:
    """Labels for the eye: a colour each, -1 in pale grey."""
    hue = (torch.arange(int(label.max()) + 2) * 0.381966) % 1.0  # the golden section keeps neighbours apart
    palette = torch.stack([0.5 + 0.38 * torch.cos(2 * torch.pi * (hue + k / 3)) for k in range(3)], 1)
    palette[0] = 0.93
    return picture(palette.to(label.device)[label.long() + 1].permute(2, 0, 1))


def sketch_vectors(values: Float[Tensor, "h w 3"]) -> Picture:
    """Vectors in [-1, 1] as colours, the usual way; what is not a number in pale grey."""
    colours = torch.where(values.isnan(), 0.93, values.clamp(-1, 1) / 2 + 0.5)
    return picture(colours.permute(2, 0, 1))


def sketches(rendering: Rendering, index: int = 0) -> dict[str, Picture]:
    """The buffers of one image of a rendering as pictures: depth, normal, thing, part, canonical."""
    canonical = rendering.canonical[index]
    inside = canonical[~canonical.isnan().any(-1)]
    if len(inside):  # the thing's own box to [-1, 1]
        low, high = inside.amin(0), inside.amax(0)
        canonical = (canonical - low) / (high - low).clamp(min=1e-6) * 2 - 1
    return {
        "depth": sketch_depth(rendering.depth[index]),
        "normal": sketch_vectors(rendering.normal[index]),
        "thing": sketch_labels(rendering.thing[index]),
        "part": sketch_labels(rendering.part[index]),
        "canonical": sketch_vectors(canonical),
    }


def write_buffers(rendering: Rendering, place: Path, stem: str) -> dict[str, Path]:
    """The buffers of the first image: a PNG each for the eye, and all in full precision in one npz."""
    files = {name: write(image, place / f"{stem}.{name}.png") for name, image in sketches(rendering).items()}
    fields = ("thing", "part", "ground", "depth", "normal", "position", "canonical")
    camera = rendering.scenes[0].camera
    files["buffers"] = place / f"{stem}.npz"
    with atomic(files["buffers"]) as part:
        np.savez_compressed(
            part,
            **{name: getattr(rendering, name)[0].cpu().numpy() for name in fields},
            intrinsics=camera.intrinsics(rendering.depth.shape[-1]),
            camera_to_world=camera.to_world(),
        )
    return files
