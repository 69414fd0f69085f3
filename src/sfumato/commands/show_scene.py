"""``sfumato show scene``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, whole
from sfumato.errors import SfumatoError
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods.outline import look


def scene(
    file: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="SCENE", help="A scene's file (.safetensors), of reconstruct, lift or edit-scene."),
    ],
    *,
    host: Annotated[str, tyro.conf.arg(help="Who may look: this machine alone, or 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, tyro.conf.arg(help="Of the page.")] = 8080,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Show a scene in a browser, where one walks around it, until Ctrl-C: small while it moves, then fine.

    Example: sfumato show scene out/lift/robot.safetensors
    """
    whole("--port", port, 1, 65535)
    if not file.is_file():
        raise SfumatoError(f"there is no file {file}; a scene is made by sfumato reconstruct, lift or edit-scene")
    look("scene.store:load_scene", file)
    quiet()
    from sfumato.io.device import choose
    from sfumato.scene.store import load_scene
    from sfumato.studio.scenes import serve

    made, _ = load_scene(file)
    server = serve(made.to(choose(device)), host, port)
    address = f"http://{host}:{server.get_port()}"
    if json:
        print_json({"scene": str(file), "url": address})
    else:
        print(address, flush=True)
    note("Ctrl-C ends it")
    try:
        while True:
            time.sleep(3600)
    finally:
        server.stop()
