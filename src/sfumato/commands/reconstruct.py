"""``sfumato reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands.options import Device, Json, Seed, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.progress import lasting
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods.outline import look
from sfumato.tasks import kept


def reconstruct(
    capture: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="CAPTURE", help="A folder of images with their cameras, or its transforms.json."),
    ],
    *,
    field: Annotated[
        Literal["voxels", "hash", "nerf", "residual", "gaussians"],
        tyro.conf.arg(help="What learns; voxels are fastest on a CPU."),
    ] = "voxels",
    steps: Annotated[int | None, tyro.conf.arg(help="Steps of the run [default: 2000, of Gaussians 600].")] = None,
    rays: Annotated[int, tyro.conf.arg(help="Rays of a step.")] = 2048,
    cells: Annotated[int, tyro.conf.arg(help="Of voxels, a side.")] = 128,
    gaussians: Annotated[int, tyro.conf.arg(help="How many there are at first, of --field gaussians.")] = 5000,
    side: Annotated[int, tyro.conf.arg(metavar="PIXELS", help="Longer side of images, at most.")] = 480,
    held_out: Annotated[int, tyro.conf.arg(metavar="N", help="Learn without every N-th view, and judge by those.")] = 8,
    turntable: Annotated[
        Literal["gif", "mp4", "none"], tyro.conf.arg(help="Film of the scene as a camera goes around.")
    ] = "gif",
    frames: Annotated[int, tyro.conf.arg(help="Of the film.")] = 48,
    plan: Annotated[
        bool, tyro.conf.arg(help="Say how long it would take, and do not do it."), tyro.conf.FlagCreatePairsOff
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the scene, its views, film and figures.")] = Path(
        "out/reconstruct"
    ),
    json: Json = False,
) -> None:
    """Learn a scene in 3D, a field or Gaussians, from images whose cameras are known. A run that was stopped goes on.

    Writes NAME.safetensors, the scene, which all other commands open; NAME.png, what was held out above what the scene
    shows of it; NAME.gif, a turn around it; and NAME.json, with PSNR, SSIM and perceptual distance of each held out
    view; of Gaussians also NAME.ply, which viewers of splats read. How long it will take is said before it begins.

    Example: sfumato reconstruct photos/ --steps 4000

    Example: sfumato reconstruct photos/transforms.json --cells 160 --turntable mp4
    """
    splats = field == "gaussians"
    steps = (600 if splats else 2000) if steps is None else steps
    given = dict(locals())
    for name, value, low, high in (
        ("--steps", steps, 1, 10_000_000), ("--rays", rays, 1, 2**20), ("--cells", cells, 8, 1024),
        ("--gaussians", gaussians, 1, 10_000_000),
        ("--side", side, 16, 8192), ("--held-out", held_out, 2, 10_000), ("--frames", frames, 1, 10_000),
    ):  # fmt: skip
        whole(name, value, low, high)
    seed_of(seed)
    look("scene.capture:read_capture", capture, side)
    if not plan:
        writable(out)
    quiet()
    from sfumato.io.device import choose
    from sfumato.media import pictures, video
    from sfumato.scene.capture import read_capture
    from sfumato.scene.gaussians import Gaussians
    from sfumato.scene.reconstruct import Recipe
    from sfumato.scene.splat_files import write_splats
    from sfumato.scene.store import save_scene
    from sfumato.tasks import reconstruct as task

    if turntable == "mp4":
        video.av()
    found = read_capture(capture, side)
    if len(found) < held_out:
        raise SfumatoError(
            f"{capture} has {len(found)} images; --held-out takes fewer, such as {max(2, len(found) // 2)}"
        )
    recipe = Recipe(field="voxels" if splats else field, cells=cells, rays=rays)
    place = choose(device)
    train, _ = found.split(held_out)
    ahead = task.seconds_of_gaussians(train, gaussians, steps, place) if splats else None
    seconds = task.seconds_of(train, recipe, steps, place) if ahead is None else ahead.seconds
    if plan:
        print_json({"seconds": round(seconds, 1)}) if json else print(_told(seconds))
        return
    note(_told(seconds))
    name = slug((capture if capture.is_dir() else capture.parent).resolve().name)
    settings = {**kept.settings_of(given), "capture": task.digest(found), "turntable": None, "frames": None}
    name = kept.named(out, "reconstruct", ".safetensors", f"{name}-{field}", settings)
    so_far = out / f".{name}.{kept.digest(settings)[:8]}.safetensors"
    options: dict[str, Any] = {"steps": steps, "held_out": held_out, "seed": seed, "device": place, "keep": so_far}
    done = (
        task.reconstruct_by_gaussians(found, gaussians, ahead=ahead, **options)
        if splats
        else task.reconstruct(found, recipe, **options)
    )
    about = task.about(found, done, source=str(capture), field=field, steps=steps, seed=seed)
    files = [save_scene(out / f"{name}.safetensors", done.scene, about)]
    so_far.unlink(missing_ok=True)
    if isinstance(done.scene, Gaussians):
        files.append(write_splats(out / f"{name}.ply", done.scene))
    files.append(pictures.write(task.beside(done), out / f"{name}.png", {"capture": capture, "field": field}))
    if turntable != "none":
        film = task.frames(done.scene, task.turning(found, frames))
        files.append(video.write(film, out / f"{name}.{turntable}"))
    each = done.figures
    views = [
        {"name": n, "psnr": p, "ssim": s, "perceptual": d}
        for n, p, s, d in zip(each.names, each.psnr, each.ssim, each.perceptual, strict=True)
    ]
    record = {**about, "seconds": round(done.seconds, 1), "held_out": views, "files": [str(f) for f in files]}
    document = out / f"{name}.json"
    write_json(document, record, indent=1)
    if json:
        print_json({**record, "record": str(document)})
        return
    print("\n".join([*record["files"], str(document)]))
    means = each.means()
    note(
        f"{len(views)} views held out: {means['psnr']:.2f} dB, SSIM {means['ssim']:.3f}, perceptual distance "
        f"{means['perceptual']:.3f}, learned in {lasting(done.seconds)}"
    )


def _told(seconds: float) -> str:
    return f"learning takes about {lasting(max(1.0, seconds))} here"
