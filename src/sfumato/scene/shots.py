"""Photographs before they are read: a file, a pose and a lens each; and the world that their cameras come into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.terminal import note
from sfumato.scene.lenses import Lens

FEWEST = 2
"""Images of a capture."""
RIGID = 1e-2
"""How far a pose's axes may be from right angles and one length; what is nearer is put right."""
Z_UP = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""From a world whose y is up to one whose z is: Blender's and nerfstudio's."""


@dataclass(frozen=True)
class Shot:
    """A photograph of a capture."""

    name: str
    file: Path
    pose: Float[Tensor, "4 4"]
    """Camera to the capture's own world, OpenGL's axes, in float64."""
    lens: Lens
    mask: Path | None = None
    """Black where pixels do not count."""


@dataclass(frozen=True)
class Shots:
    """What a capture's files say."""

    shots: tuple[Shot, ...]
    points: Float[Tensor, "p 3"] | None = None
    """Sparse points of the scene, in its own world."""
    colours: Float[Tensor, "p 3"] | None = None
    """Theirs, in [0, 1]."""
    upright: Float[Tensor, "4 4"] = field(default_factory=lambda: Z_UP)
    """From a world whose y is up to the capture's own, by what its format says is up."""
    world: Float[Tensor, "4 4"] | None = None
    """Where a capture was written here: from the world that it had to its own; it is brought into that one again."""


def rigid(pose: object, name: str, flip: bool = False) -> Float[Tensor, "4 4"]:
    """A pose as a file has it, checked, its axes of length 1 and at right angles; ``flip``: from OpenCV's axes.

    Raises ``SfumatoError`` for one that is no matrix of 3 or 4 rows, not finite, mirrored, skewed or flat.
    """
    try:
        rows = np.array(pose, dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.zeros(0)
    if rows.shape not in ((4, 4), (3, 4)):
        raise SfumatoError(f"the pose of {name} is no matrix of 4 x 4 or 3 x 4 numbers")
    if not np.isfinite(rows).all():
        raise SfumatoError(f"the pose of {name} is not finite; leave that image out, or find its pose again")
    if rows.shape == (4, 4) and np.abs(rows[3] - (0, 0, 0, 1)).max() > RIGID:
        raise SfumatoError(f"the last row of a pose is 0 0 0 1, and that of {name} is {_row(rows[3])}")
    axes = rows[:3, :3]
    length = float(np.abs(np.linalg.det(axes)) ** (1 / 3))
    if length < 1e-8:
        raise SfumatoError(f"the pose of {name} has a scale of 0: its axes lie in a plane")
    if np.abs(axes.T @ axes / length**2 - np.eye(3)).max() > RIGID:
        raise SfumatoError(f"the pose of {name} is not rigid: its axes {_row(axes.T.ravel())} are skewed or stretched")
    if np.linalg.det(axes) < 0:
        raise SfumatoError(f"the pose of {name} is left-handed (mirrored): its axes {_row(axes.T.ravel())}; negate one")
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-6:  # what is right in float32 stays as it is
        u, _, v = np.linalg.svd(axes)
        axes = u @ v
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = axes * ((1, -1, -1) if flip else (1, 1, 1)), rows[:3, 3]
    return torch.from_numpy(out)


def _row(values: np.ndarray) -> str:
    return " ".join(f"{v:.3g}" for v in values)


def focus(poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, " 3"] | None:
    """The point that is nearest to all cameras' axes; None where they are all but parallel, or meet behind cameras."""
    eyes, ways = poses[:, :3, 3], -poses[:, :3, 2]
    across = torch.eye(3).to(ways) - ways[:, :, None] * ways[:, None]
    matrix = across.mean(0)
    if float(torch.linalg.eigvalsh(matrix)[0]) < 1e-3:
        return None
    point = torch.linalg.solve(matrix, (across @ eyes[:, :, None]).mean(0)[:, 0])
    ahead = ((point - eyes) * ways).sum(-1) > 0
    return point if float(ahead.double().mean()) >= 0.75 else None


def upwards(poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, " 3"]:
    """What is up, by cameras that were held level: where none of their right hands points; see nerfstudio's "vertical".

    By cameras that all look one way only their own up is known, at a right angle to their right hands. Cameras that
    were not held level say up by the mean of theirs.
    """
    right, mean = poses[:, :3, 0], poses[:, :3, 1].mean(0)
    if float(mean.norm()) < 1e-3:
        return torch.tensor([0.0, 0.0, 1.0]).to(poses)
    mean = mean / mean.norm()
    values, vectors = torch.linalg.eigh(right.T @ right / len(right))
    if float(values[1]) > 0.17**2:
        up = vectors[:, 0] * torch.sign(vectors[:, 0] @ mean)
    else:
        most = vectors[:, 2]
        up = mean - (mean @ most) * most
        up = up / up.norm().clamp_min(1e-12)
    return up if float(up @ mean) > 0.7 else mean


def placed(poses: Float[Tensor, "n 4 4"]) -> Float[Tensor, "4 4"]:
    """From a capture's own world to ours: y up, what the cameras look at in the middle, the farthest camera at 1.

    Where their axes do not meet ahead of them, their own mean is in the middle. Its 3 x 3 has the scale in it. Raises
    ``SfumatoError`` where all stand at one place.
    """
    up, eyes = upwards(poses), poses[:, :3, 3]
    spread = float((eyes - eyes.mean(0)).norm(dim=-1).max())
    if spread <= 1e-7 * float(eyes.abs().max()) or spread < 1e-12:
        raise SfumatoError(
            f"all {len(poses)} cameras stand at one place; what is how far is seen only by cameras that moved"
        )
    middle = focus(poses)
    middle = eyes.mean(0) if middle is None else middle
    back = poses[0, :3, 2]  # the first camera comes to stand at azimuth 0
    back = back - (back @ up) * up
    if float(back.norm()) < 1e-6:
        back = -poses[0, :3, 1]
        back = back - (back @ up) * up
    back = back / back.norm()
    turn = torch.stack([torch.linalg.cross(up, back), up, back])
    out = torch.eye(4).to(poses)
    out[:3, :3] = turn / (eyes - middle).norm(dim=-1).max()
    out[:3, 3] = -out[:3, :3] @ middle
    return out


def moved(poses: Float[Tensor, "n 4 4"], by: Float[Tensor, "4 4"]) -> Float[Tensor, "n 4 4"]:
    """Poses in another world; ``by`` may scale, and poses do not."""
    out = by @ poses
    scale = torch.linalg.det(by[:3, :3]) ** (1 / 3)
    out[:, :3, :3] = out[:, :3, :3] / scale
    return out


def report_missing(missing: Sequence[str], of: int, path: Path) -> None:
    """Say which images are not there. Raises ``SfumatoError`` where under two are."""
    names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    if of < FEWEST:
        raise SfumatoError(f"{path} has {of} image{'s' * (not of)}; a scene is found from {FEWEST} or more, better 20")
    if of - len(missing) < FEWEST:
        raise SfumatoError(f"{len(missing)} of {of} images of {path} are not there ({names})")
    if missing:
        note(f"{len(missing)} of {of} images of {path} are not there ({names}); the rest is read")
