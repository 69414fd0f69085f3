"""A scene in a browser, by ``viser`` (the ``studio`` extra): drawn small while the camera moves, then fine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Pinholes, looking
from sfumato.scene.export import seen, stand

SIDES = (48, 96, 192, 384)
"""Heights in pixels, one after the other while a camera stands still."""
WIDEST = 2.5
"""A picture is at most so many times as wide as high."""


def pinhole(wxyz: Any, position: Any, fov: float, aspect: float, height: int) -> Pinholes:
    """A camera of viser's: OpenCV's axes, the vertical field of view in radians."""
    w, x, y, z = (float(v) for v in wxyz)
    turn = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = torch.eye(4)
    pose[:3, :3] = turn * torch.tensor([1.0, -1.0, -1.0])
    pose[:3, 3] = torch.tensor([float(v) for v in position])
    width = max(1, round(height * min(max(aspect, 1 / WIDEST), WIDEST)))
    return looking(pose[None], float(np.degrees(fov)), (height, width))


@dataclass
class Drawing:
    """What one visitor sees: ``moved`` is called when the camera has moved, ``step`` draws the next picture, if any.

    A picture that was begun is finished; then the newest camera is drawn, small first.
    """

    scene: Generator
    camera: Callable[[int], Pinholes]
    """The visitor's, of a height in pixels."""
    show: Callable[[np.ndarray], None]
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of the scene: visitors take turns."""
    sides: tuple[int, ...] = SIDES
    changed: threading.Event = field(default_factory=threading.Event)
    gone: bool = False
    at: int = 0

    def moved(self) -> None:
        self.at = 0
        self.changed.set()

    def step(self) -> bool:
        """Draw; is there more to draw?"""
        at = self.at
        if at >= len(self.sides):
            return False
        with self.lock:
            picture = seen(self.scene, self.camera(self.sides[at]))[0]
        self.show((picture.permute(1, 2, 0) * 255).round().byte().numpy())
        if self.at == at and not self.changed.is_set():
            self.at = at + 1
        return not self.gone and self.at < len(self.sides)

    def run(self) -> None:
        """Until the visitor has gone."""
        while not self.gone:
            self.changed.wait()
            self.changed.clear()
            self.at = 0
            while not self.gone and self.step():
                if self.changed.is_set():
                    self.changed.clear()
                    self.at = 0

    def leave(self) -> None:
        self.gone = True
        self.changed.set()


def serve(scene: Generator, host: str = "127.0.0.1", port: int = 8080) -> Any:
    """A server with the scene, which goes on until it is stopped. Raises ``SfumatoError`` where it cannot be."""
    try:
        import viser  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SfumatoError(
            "scenes are shown in a browser by viser: pip install 'sfumato[studio]', or write a film: "
            "sfumato export-scene SCENE --out turn.mp4"
        ) from None
    if scene.space == "latent":
        raise SfumatoError("the scene shows a model's latents, which are no pictures; write a mesh of it (.glb)")
    try:
        server = viser.ViserServer(host=host, port=port, verbose=False)
    except OSError as e:
        raise SfumatoError(f"cannot serve at {host}:{port}: {e.strerror or e}; take another --port") from e
    server.scene.set_up_direction("+y")
    place, lock, drawings = stand(scene), threading.Lock(), {}
    target = np.array(place.get("target", (0.0, 0.0, 0.0)))
    distance = float(place.get("distance", 3.0))

    @server.on_client_connect
    def _(client: Any) -> None:
        client.camera.position = target + distance * np.array([0.0, 0.3, 0.95])
        client.camera.look_at = target
        client.camera.up_direction = (0.0, 1.0, 0.0)

        def camera(height: int) -> Pinholes:
            now = client.camera
            return pinhole(now.wxyz, now.position, now.fov, now.aspect, height)

        drawing = Drawing(
            scene, camera, lambda picture: client.scene.set_background_image(picture, format="jpeg"), lock
        )
        drawings[client.client_id] = drawing
        client.camera.on_update(lambda _: drawing.moved())
        threading.Thread(target=drawing.run, daemon=True).start()
        drawing.moved()

    @server.on_client_disconnect
    def _(client: Any) -> None:
        if (drawing := drawings.pop(client.client_id, None)) is not None:
            drawing.leave()

    return server
