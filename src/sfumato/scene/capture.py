"""Captures: images of a scene, each with the camera that saw it; read from what other programs write, and written.

A capture's cameras are brought into a world whose y is up, what they look at in its middle, the farthest of them at 1
(``shots.placed``); ``Capture.world`` is the way back. Images are undistorted, and have one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError
from sfumato.io.files import write_json
from sfumato.io.terminal import note
from sfumato.media import pictures
from sfumato.media.images import off_white
from sfumato.scene import photographs
from sfumato.scene.cameras import Pinholes
from sfumato.scene.clouds import write_points
from sfumato.scene.colmap import model_of, read_colmap
from sfumato.scene.photographs import SIDE
from sfumato.scene.shots import Z_UP, Shot, Shots, focus, moved, placed
from sfumato.scene.transforms import read_transforms

BEYOND = 2.0
"""How far a scene goes on behind its middle, in distances of the farthest camera, where no points say it."""
NEAR = 0.3
"""Nothing is nearer, in distances of the nearest camera to the middle: what one camera sees alone becomes no mist."""

STRAY = 8.0
"""How many times as far out as most a camera stands whose pose is doubted."""


@dataclass(frozen=True)
class Capture(Brief):
    """Images of one size and their cameras, undistorted, in a world whose y is up."""

    images: Float[Tensor, "n 3 h w"]
    """In [0, 1]."""
    cameras: Pinholes
    names: tuple[str, ...]
    """Of the files, or what they are called."""
    masks: Bool[Tensor, "n h w"] | None = None
    """Pixels that count; None for all."""
    alphas: Float[Tensor, "n h w"] | None = None
    """How much of each pixel is the thing, of images with transparency; behind it they are white."""
    points: Float[Tensor, "p 3"] | None = None
    """Sparse points of the scene, if any are known."""
    colours: Float[Tensor, "p 3"] | None = None
    """Of the points, in [0, 1]."""
    world: Float[Tensor, "4 4"] | None = None
    """From this world to the capture's own, in float64, with its scale; None where they are the same."""

    def __post_init__(self) -> None:
        n, h, w = len(self.images), *self.images.shape[-2:]
        if len(self.cameras) != n or len(self.names) != n or self.cameras.size != (h, w):
            raise SfumatoError(
                f"a capture has a camera and a name an image, got {n} images of {h} x {w}, {len(self.cameras)} cameras "
                f"of {self.cameras.size}, {len(self.names)} names"
            )
        for what, values in (("masks", self.masks), ("alphas", self.alphas)):
            if values is not None and values.shape != (n, h, w):
                raise SfumatoError(f"a capture's {what} are {n} of {h} x {w}, got {tuple(values.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, some: Sequence[int] | Int[Tensor, " m"]) -> Capture:
        some = torch.as_tensor(some)
        masks, alphas = (None if x is None else x[some] for x in (self.masks, self.alphas))
        names = tuple(self.names[int(i)] for i in some)
        return replace(
            self, images=self.images[some], cameras=self.cameras[some], names=names, masks=masks, alphas=alphas
        )

    def split(self, every: int = 8) -> tuple[Capture, Capture]:
        """What is learned from, and what is held out: every so many-th, the first among them (as nerfstudio does)."""
        held = [i for i in range(len(self)) if i % every == 0]
        rest = [i for i in range(len(self)) if i % every]
        if not held or not rest:
            raise SfumatoError(
                f"a capture of {len(self)} images leaves none to learn from with one in {every} held out"
            )
        return self[rest], self[held]

    def resized(self, height: int, width: int) -> Capture:
        """The same with fewer or more pixels, each the mean of what it covers."""

        def to(x: Tensor) -> Tensor:
            return F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)

        masks = None if self.masks is None else to(self.masks[:, None].float())[:, 0] > 0.999
        alphas = None if self.alphas is None else to(self.alphas[:, None])[:, 0].clamp(0, 1)
        cameras = self.cameras.resized(height, width)
        return replace(self, images=to(self.images).clamp(0, 1), cameras=cameras, masks=masks, alphas=alphas)

    @property
    def middle(self) -> Float[Tensor, " 3"]:
        """What the cameras look at; their own mean where they look nowhere together."""
        found = focus(self.cameras.poses.double())
        return (self.cameras.eyes.mean(0) if found is None else found).to(self.cameras.poses)

    @property
    def span(self) -> tuple[float, float]:
        """Near and far: between which distances along its rays the scene lies, for all cameras.

        By sparse points that cameras see: the range of all but the nearest and farthest thousandth, and a fifth more
        each way. Else by the cameras' distances to the middle: from a tenth of the least (a hundredth of the greatest,
        if that is more) to ``1 + BEYOND`` times the greatest.
        """
        if self.points is not None and len(self.points) >= 16:
            h, w = self.cameras.size
            seen = self.cameras.seen(self.points)
            inside = (seen[..., 2] > 0) & (seen[..., :2] >= 0).all(-1) & (seen[..., 0] < w) & (seen[..., 1] < h)
            away = (self.points.to(self.cameras.eyes) - self.cameras.eyes[:, None]).norm(dim=-1)[inside]
            if len(away) >= 16:
                away = away.sort().values
                near, far = (float(away[round(part * (len(away) - 1))]) for part in (0.001, 0.999))
                return near / 1.2, far * 1.2
        away = (self.cameras.eyes - self.middle).norm(dim=-1)
        far = float(away.max())
        return max(0.1 * float(away.min()), 0.01 * far), (1 + BEYOND) * far

    @property
    def near_plane(self) -> float:
        """Nothing of the scene is nearer to a camera: a bit before the nearest of sparse points, else ``NEAR``."""
        if self.points is not None:
            return 0.8 * self.span[0]
        return NEAR * float((self.cameras.eyes - self.middle).norm(dim=-1).min())

    def own(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Points of this world in the capture's own."""
        if self.world is None:
            return points
        by = self.world.to(points.device)
        return (points.double() @ by[:3, :3].T + by[:3, 3]).to(points)


def read_capture(
    path: str | Path, side: int | None = SIDE, *, keep_world: bool = False, opencv: bool = False
) -> Capture:
    """A capture: its folder, its ``transforms.json``, or a folder of a COLMAP model with images beside.

    ``side``: of the longer side of images at most, larger ones are made smaller (None: they are left as they are).
    ``keep_world``: the capture's own world turned so that y is up, neither moved nor scaled. ``opencv``: poses in
    ``transforms.json`` have OpenCV's axes (y down, z ahead).

    Images of several sizes are brought to the commonest, whole, and what that leaves empty is masked; so is what a lens
    has not seen. What is transparent becomes white. Raises ``SfumatoError`` for what cannot be read, in one line.
    """
    path = Path(path).expanduser()
    if side is not None and side < 16:
        raise SfumatoError(f"images have 16 pixels a side or more, got {side}")
    found = _found(path, opencv)
    shots = found.shots
    poses = torch.stack([shot.pose for shot in shots])
    by = placed(poses)
    _doubt(path, shots, poses)
    if found.world is not None or keep_world:
        by = found.upright.T
    ours = moved(poses, by)
    points = None if found.points is None else (found.points.double() @ by[:3, :3].T + by[:3, 3]).float()
    images, masks, alphas, lenses = photographs.read(shots, side)
    focal, centre = torch.tensor([lens.focal for lens in lenses]), torch.tensor([lens.centre for lens in lenses])
    cameras = Pinholes(ours.float(), focal, centre, (int(images.shape[-2]), int(images.shape[-1])))
    world = torch.linalg.inv(by) if found.world is None else found.world
    return Capture(images, cameras, tuple(shot.name for shot in shots), masks, alphas, points, found.colours, world)


def _doubt(path: Path, shots: Sequence[Shot], poses: Float[Tensor, "n 4 4"]) -> None:
    """Say what of the cameras looks wrong, before anything is made of them."""
    if focus(poses) is None and focus(poses * torch.tensor([1.0, -1, -1, 1])) is not None:
        note(f"the cameras of {path} look away from where their axes meet; are its poses OpenCV's?")
    away = (poses[:, :3, 3] - poses[:, :3, 3].median(0).values).norm(dim=-1)
    if float(away.max()) > STRAY * float(away.median()) > 0:
        stray, times = shots[int(away.argmax())].name, float(away.max() / away.median())
        note(f"the camera of {stray} stands {times:.0f} times as far out as most; is its pose right?")


def _found(path: Path, opencv: bool) -> Shots:
    """What lies at a path."""
    if path.is_file():
        if path.suffix.lower() == ".json":
            return read_transforms(path, opencv)
        raise SfumatoError(f"{path} is no capture; give its folder or its transforms.json")
    if not path.is_dir():
        raise SfumatoError(f"there is no capture {path}")
    if (path / "transforms.json").is_file():
        return read_transforms(path / "transforms.json", opencv)
    if (path / "transforms_train.json").is_file():
        others = [n for n in ("transforms_val.json", "transforms_test.json") if (path / n).is_file()]
        if others:
            note(f"of {path} transforms_train.json is read; {' and '.join(others)} by name, with their own world kept")
        return read_transforms(path / "transforms_train.json", opencv)
    model = model_of(path)
    if model is not None:
        if opencv:
            raise SfumatoError(f"{model} is COLMAP's, whose axes are OpenCV's in any case; that is of transforms.json")
        return read_colmap(model, path)
    below = _below(path)
    raise SfumatoError(
        f"{path} has no transforms.json and no COLMAP model (sparse/0/cameras.bin, ...); "
        + (
            f"there is one in {below[0]}"
            if len(below) == 1
            else "COLMAP or nerfstudio's ns-process-data find the cameras of photographs"
        )
    )


def _below(path: Path) -> list[Path]:
    """Folders in a folder in which captures seem to lie; none where they cannot be looked into."""
    names = ("transforms.json", "transforms_train.json")
    try:
        return [
            folder
            for folder in sorted(path.iterdir())
            if any((folder / name).is_file() for name in names) or model_of(folder) is not None
        ]
    except OSError:
        return []


def write_capture(folder: str | Path, capture: Capture, beside: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write PNGs and, at last, a ``transforms.json`` that this and other programs read; ``read_capture`` reads it back.

    The file has this world with its z up, and under ``sfumato`` the way to the capture's own. ``beside``: further
    entries of frames, names of files with ``{}`` for the image's.
    """
    folder = Path(folder).expanduser()
    poses = Z_UP @ capture.cameras.poses.double().cpu()
    names = [f"{i:04d}" for i in range(len(capture))]
    h, w = capture.cameras.size
    frames = []
    for i, name in enumerate(names):
        image = pictures.picture(capture.images[i])
        if capture.alphas is not None:
            clear = Image.fromarray((capture.alphas[i] * 255).round().byte().cpu().numpy())
            image = off_white(image, clear)
            image.putalpha(clear)
        pictures.write(image, folder / "images" / f"{name}.png")
        (fx, fy), (cx, cy) = capture.cameras.focal[i].tolist(), capture.cameras.centre[i].tolist()
        frame = {"file_path": f"images/{name}.png", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        if capture.masks is not None:
            mask = folder / "masks" / f"{name}.png"
            pictures.write(pictures.picture(capture.masks[i].float().expand(3, h, w)), mask)
            frame["mask_path"] = f"masks/{name}.png"
        frame |= {key: file.format(name) for key, file in beside.items()}
        frames.append({**frame, "name": capture.names[i], "transform_matrix": poses[i].tolist()})
    world = torch.eye(4, dtype=torch.float64) if capture.world is None else capture.world
    about = {"camera_model": "PINHOLE", "w": w, "h": h, "sfumato": {"world": world.tolist()}, "frames": frames}
    if capture.points is not None:
        about["ply_file_path"] = "points.ply"
        up = capture.points.cpu() @ Z_UP[:3, :3].T.float()
        write_points(folder / "points.ply", up, capture.colours)
    path = folder / "transforms.json"
    write_json(path, about, private=True, indent=1)
    return path
