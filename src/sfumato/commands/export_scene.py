"""``sfumato export-scene``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods.outline import look


def export_scene(
    scene: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="SCENE", help="A scene's file (.safetensors), of reconstruct, lift or edit-scene."),
    ],
    *,
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="Its name says what it is: .glb, .obj or .ply, .mp4, .gif or .webp, or a sheet, .png "
            "[default: the scene's name and .glb; of Gaussians .ply].",
        ),
    ] = None,
    resolution: Annotated[int, tyro.conf.arg(help="Cells a side in which the surface is looked for.")] = 128,
    threshold: Annotated[
        float | None, tyro.conf.arg(help="Density at which the surface lies [default: what shows the scene best].")
    ] = None,
    faces: Annotated[
        int | None, tyro.conf.arg(metavar="N", help="Of a mesh, at most; the others are decimated [default: all stay].")
    ] = None,
    texture: Annotated[bool, tyro.conf.arg(help="A picture of the colours, or else a colour for each vertex.")] = True,
    texture_size: Annotated[int, tyro.conf.arg(metavar="PIXELS", help="Side of the texture.")] = 1024,
    refine: Annotated[
        int, tyro.conf.arg(metavar="STEPS", help="Bring colours nearer to what the scene shows; 0 leaves that out.")
    ] = 40,
    frames: Annotated[int, tyro.conf.arg(help="Of a film, 24 a second.")] = 48,
    size: Annotated[int, tyro.conf.arg(metavar="PIXELS", help="Side of a film's frames and a sheet's pictures.")] = 256,
    elevation: Annotated[float, tyro.conf.arg(help="Of the cameras of films and sheets, in degrees.")] = 15.0,
    distance: Annotated[
        float | None, tyro.conf.arg(help="Of those cameras, in the scene's units [default: all is seen].")
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write a scene for other programs: a mesh with a texture, splats, a film that goes around it, a sheet of views.

    The surface is checked: what is empty or full is refused, and what is open, cut off or left out is said on stderr.

    Example: sfumato export-scene out/lift/robot.safetensors --out robot.glb

    Example: sfumato export-scene out/lift/robot.safetensors --out small.glb --faces 5000

    Example: sfumato export-scene out/lift/robot.safetensors --out robot.mp4 --size 384 --elevation 20
    """
    given = dict(locals())
    whole("--resolution", resolution, 8, 512)
    if faces is not None:
        whole("--faces", faces, 4, 2_000_000)
    whole("--texture-size", texture_size, 16, 8192)
    whole("--refine", refine, 0, 10_000)
    whole("--frames", frames, 2, 1000)
    whole("--size", size, 16, 2048)
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise SfumatoError(f"--threshold is a density above 0, got {threshold:g}")
    if not -89 <= elevation <= 89:
        raise SfumatoError(f"--elevation lies between -89 and 89 degrees, got {elevation:g}")
    if distance is not None and not (math.isfinite(distance) and distance > 0):
        raise SfumatoError(f"--distance is a number above 0, got {distance:g}")
    if not scene.is_file():
        raise SfumatoError(f"there is no file {scene}; a scene is made by sfumato reconstruct, lift or edit-scene")
    if out is not None:
        look("scene.export:kind_of", out)
    look("scene.store:load_scene", scene)
    quiet()
    from sfumato.io.device import choose
    from sfumato.scene.export import export, kind_of
    from sfumato.scene.gaussians import Gaussians
    from sfumato.scene.store import load_scene
    from sfumato.tasks import kept

    if out is not None:
        kind_of(out)
    made, _ = load_scene(scene)
    if out is None:
        tail = ".ply" if isinstance(made, Gaussians) else ".glb"
        stem = kept.named(scene.parent, "export-scene", tail, scene.stem, kept.settings_of(given))
        out = scene.with_name(f"{stem}{tail}")
    kind_of(out, made)
    writable(out.parent)
    done = export(
        made.to(choose(device)), out, resolution=resolution, level=threshold, faces=faces,
        texture=texture_size if texture else None, refine=refine, frames=frames, size=size, elevation=elevation,
        distance=distance,
    )  # fmt: skip
    for line in done.notes:
        note(line)
    if json:
        files = [str(file) for file in done.files]
        print_json({"files": files, "bytes": done.bytes, "notes": list(done.notes), **done.about})
    else:
        print("\n".join(map(str, done.files)))
