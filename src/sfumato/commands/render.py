"""``sfumato render``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, Seed, is_image, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json
from sfumato.tasks import kept


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
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="A folder, or a .png.")] = Path("out/render"),
    json: Json = False,
) -> None:
    """Render a still life exactly, from a sentence, a scene file or chance, and write its scene beside it.

    Example: sfumato render "a red cube to the left of a blue duck on sand" --buffers

    Example: sfumato render --scene out/render/a-red-cube.json --size 512
    """
    import numpy as np

    from sfumato.io.files import writable, write_text
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
        try:
            drawn = Scene.from_json(Path(scene).read_text(encoding="utf-8"))
        except OSError as e:
            raise SfumatoError(f"cannot read {scene}: {e.strerror or e}") from e
        except UnicodeDecodeError:
            raise SfumatoError(f"{scene} is not a scene: it is no text") from None
    words = captions.plain(drawn)
    if is_image(out):
        folder, stem = out.parent, out.stem
    else:
        folder = out
        stem = slug(caption or (words if scene == "random" else Path(scene).stem)) + (
            "" if scene != "random" else f"-{seed}"
        )
    writable(folder)
    if folder == out:
        stem = kept.named(folder, "render", ".png", stem, {"scene": drawn.to_json(), "size": size})

    from sfumato.io.device import choose
    from sfumato.media import pictures
    from sfumato.stilllife.render import render as draw
    from sfumato.stilllife.sketches import write_buffers

    rendering = draw([drawn], size=size, device=choose(device))
    files = {"image": pictures.write(pictures.picture(rendering.images[0]), folder / f"{stem}.png", {"caption": words})}
    files["scene"] = folder / f"{stem}.json"
    write_text(files["scene"], drawn.to_json() + "\n")
    if buffers:
        files |= write_buffers(rendering, folder, stem)
    if json:
        print_json({"caption": words, "scene": drawn.to_dict(), "files": {k: str(v) for k, v in files.items()}})
    else:
        print("\n".join(str(path) for path in files.values()))
