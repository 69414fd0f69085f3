"""``sfumato render``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.commands.options import Device, Json, Seed, is_image, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json
from sfumato.tasks import kept

if TYPE_CHECKING:
    from sfumato.stilllife.scene import Scene


def render(
    caption: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="CAPTION", help="A sentence; what it leaves open is drawn."),
    ] = None,
    *,
    scene: Annotated[
        str, tyro.conf.arg(metavar="FILE|random", help="A scene's JSON file instead of a caption, or a random scene.")
    ] = "random",
    size: Annotated[int, tyro.conf.arg(help="Side in pixels.")] = 128,
    buffers: Annotated[
        bool,
        tyro.conf.arg(help="Write depth, normals, things, parts and coordinates as well (PNG and one npz)."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    views: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Instead of one picture so many views all around it, as a capture's folder."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="A folder, or a .png.")] = Path("out/render"),
    json: Json = False,
) -> None:
    """Render a still life exactly, from a sentence, a scene file or chance, and write its scene beside it.

    Example: sfumato render "a red cube to the left of a blue duck on sand" --buffers

    Example: sfumato render --scene out/render/a-red-cube.json --size 512

    Example: sfumato render "a red cube on grass" --views 24
    """
    import numpy as np

    from sfumato.io.files import read_text, writable, write_text
    from sfumato.stilllife import captions, compose
    from sfumato.stilllife.scene import Scene, sample_scene

    whole("--size", size, 16, 2048)
    if seed and scene != "random":
        raise SfumatoError("--seed is of what is drawn, and a scene file leaves nothing open; leave --seed out")
    rng = np.random.default_rng(seed_of(seed))
    if caption is not None:
        if scene != "random":
            raise SfumatoError("render takes a CAPTION or --scene FILE, not both")
        drawn = compose.scene_of(captions.parse(caption), rng)
    elif scene == "random":
        drawn = sample_scene(rng)
    else:
        text = read_text(scene)
        try:
            drawn = Scene.from_json(text)
        except SfumatoError as e:
            raise SfumatoError(f"{scene}: {e}") from e
    words = captions.plain(drawn)
    if views is not None:
        whole("--views", views, 2, 500)
        if buffers or is_image(out):
            raise SfumatoError("--views writes a folder of pictures with depth and things beside; leave --buffers out")
    if is_image(out):
        folder, stem = out.parent, out.stem
    else:
        folder = out
        stem = slug(caption or (words if scene == "random" else Path(scene).stem)) + (
            "" if scene != "random" else f"-{seed}"
        )
    writable(folder)
    if folder == out:
        settings = {"scene": drawn.to_json(), "size": size} | ({} if views is None else {"views": views})
        stem = kept.named(folder, "render", ".png" if views is None else "", stem, settings)

    from sfumato.io.device import choose

    if views is not None:
        from sfumato.stilllife.captures import cameras_around, write_views

        path = write_views(folder / stem, drawn, cameras_around(drawn, views), size, choose(device))
        files = {"capture": path.parent, "transforms": path, "scene": path.parent / "scene.json"}
        return _print(json, words, drawn, files)
    from sfumato.media import pictures
    from sfumato.stilllife.render import render as draw
    from sfumato.stilllife.sketches import write_buffers

    rendering = draw([drawn], size=size, device=choose(device))
    files = {"image": pictures.write(pictures.picture(rendering.images[0]), folder / f"{stem}.png", {"caption": words})}
    files["scene"] = folder / f"{stem}.json"
    write_text(files["scene"], drawn.to_json() + "\n")
    if buffers:
        files |= write_buffers(rendering, folder, stem)
    _print(json, words, drawn, files)


def _print(json: bool, words: str, drawn: Scene, files: Mapping[str, Path]) -> None:
    """Say what was written where."""
    if json:
        print_json({"caption": words, "scene": drawn.to_dict(), "files": {k: str(v) for k, v in files.items()}})
    else:
        print("\n".join(str(path) for path in files.values()))
