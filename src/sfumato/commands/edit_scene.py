"""``sfumato edit-scene``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands.options import Device, Json, Running, Seed, guidance_of, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods.outline import constant, look
from sfumato.tasks import kept

BUILT_IN = "stilllife"


def edit_scene(
    capture: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="CAPTURE", help="A folder of views with their cameras, or its transforms.json."),
    ],
    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(
            metavar="[INSTRUCTION] METHOD",
            help="What to do, in quotes, and how: per-view, instruct-nerf2nerf, csd-edit, dds or sdi.",
        ),
    ],
    *,
    source: Annotated[
        str, tyro.conf.arg(name="from", metavar="TEXT", help="What the scene shows, in place of an instruction.")
    ] = "",
    target: Annotated[str, tyro.conf.arg(name="to", metavar="TEXT", help="What it should show.")] = "",
    scene: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="The scene of this capture [default: one is fitted to it first]."),
    ] = None,
    field: Annotated[
        Literal["gaussians", "voxels"],
        tyro.conf.arg(help="What is fitted, where there is no --scene; Gaussians are sharper, and sooner."),
    ] = "gaussians",
    only: Annotated[
        str,
        tyro.conf.arg(metavar="WORD", help="Change this thing alone, found by where the word looks in all views."),
    ] = "",
    steps: Annotated[int, tyro.conf.arg(help="Steps of the scene while it is edited.")] = 600,
    fit_steps: Annotated[
        int | None,
        tyro.conf.arg(help="Steps of the first fit, where there is no --scene [default: 600, of voxels 800]."),
    ] = None,
    edit_steps: Annotated[int | None, tyro.conf.arg(help="Steps of a view's edit [default: the method's].")] = None,
    together: Annotated[int, tyro.conf.arg(help="Views of a set that csd-edit edits together.")] = 16,
    between: Annotated[
        int | None,
        tyro.conf.arg(metavar="STEPS", help="Steps between two edits [default: 10; of csd-edit, each view once]."),
    ] = None,
    guidance: Annotated[float | None, tyro.conf.arg(help="To the text [default: what suits the model].")] = None,
    image_scale: Annotated[
        float | None, tyro.conf.arg(help="Guidance to the photograph [default: what suits the model].")
    ] = None,
    every: Annotated[int, tyro.conf.arg(help="Steps between two frames of the preview.")] = 50,
    model: Annotated[
        str,
        tyro.conf.arg(
            help="As of other commands [default: stilllife-instruct for instructions, stilllife for --from and --to]."
        ),
    ] = "",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the scene, its views and the preview.")] = Path(
        "out/edit-scene"
    ),
    json: Json = False,
) -> None:
    """Edit a scene by words: its views are edited, and the scene follows them. What was stopped goes on where it was.

    Writes NAME.safetensors (the scene), NAME-views/ (what its views became), NAME.png (views before, edited, and as
    the scene shows them), NAME.gif (the preview) and NAME.json.

    Example: sfumato edit-scene capture/ "make the cube blue" instruct-nerf2nerf

    Example: sfumato edit-scene capture/ csd-edit --from "a red cube on grass" --to "a blue cube on grass" --only cube
    """
    given = dict(locals())
    if not 1 <= len(words) <= 2:
        known = ", ".join(constant("tasks.edit_scene:METHODS"))
        raise SfumatoError(f"after the capture come what to do, in quotes, and how: {known}")
    *said_first, method = words
    instruction = said_first[0].strip() if said_first else ""
    if instruction and (source or target):
        raise SfumatoError("an edit goes by an instruction, or by --from and --to, not by both")
    if bool(source) != bool(target):
        raise SfumatoError("--from and --to belong together: what the scene shows, and what it should show")
    whole("--steps", steps, 1, 1_000_000)
    whole("--together", together, 1, 1024)
    whole("--every", every, 1, 1_000_000)
    for name, value in (("--edit-steps", edit_steps), ("--between", between), ("--fit-steps", fit_steps)):
        if value is not None:
            whole(name, value, 1, 1_000_000)
    seed_of(seed)
    guidance_of(guidance)
    model = model or (f"{BUILT_IN}-instruct" if instruction else BUILT_IN)
    asked: dict[str, Any] = {
        "instruction": instruction, "source": source, "target": target, "model": model, "guidance": guidance,
        "image_scale": image_scale, "together": together, "every": between, "steps": steps, "edit_steps": edit_steps,
    }  # fmt: skip
    look("tasks.edit_scene:scene_edit", method, **asked)
    if only and method in ("dds", "sdi"):
        raise SfumatoError(f"{method} moves the scene itself and knows no --only; csd-edit and others edit views")
    look("scene.capture:read_capture", capture)
    if scene is not None:
        look("scene.store:load_scene", scene)
    writable(out)
    quiet()
    from sfumato.media import pictures
    from sfumato.scene.capture import read_capture
    from sfumato.scene.store import save_scene
    from sfumato.tasks.edit_scene import edit_scene as run
    from sfumato.tasks.edit_scene import scene_edit

    how = scene_edit(method, **asked)
    shots = read_capture(capture)
    if len(shots) < 2:
        raise SfumatoError(f"{capture} has one view, and a scene is seen from several; edit a picture by sfumato edit")
    net = loading.load(model, device)
    settings = {**kept.settings_of(given), "model": model, "capture": kept.digest([shots.images, shots.cameras.poses])}
    own = kept.digest(settings)
    name = kept.named(out, "edit-scene", ".safetensors", f"{slug(instruction or target)}-{method}", settings)
    so_far = out / f".{name}.{own[:8]}.safetensors"
    before = scene_of(shots, scene, out, settings["capture"], fit_steps, seed, field)
    shows(before, shots, scene or capture)
    masks = None
    if only:
        from sfumato.tasks.segment_scene import thing_masks

        reads = net if model == BUILT_IN or not model.startswith(BUILT_IN) else loading.load(BUILT_IN, device)
        where = before if hasattr(before, "trace") else scene_of(shots, None, out, settings["capture"], fit_steps, seed)
        masks = thing_masks(reads, shots, where, only, model.removesuffix("-instruct"), seed=seed)
    first = shots.images
    done = run(net, shots, before, how, masks=masks, seed=seed, keep=so_far, about=own, frame_every=every)
    some = list(range(0, len(shots), max(1, len(shots) // 4)))
    now = done.scene.view(shots.cameras[some]).images.cpu()  # pyright: ignore
    about = {"instruction": instruction, "from": source, "to": target, "method": repr(how), "seed": seed}
    files = [save_scene(out / f"{name}.safetensors", done.scene, {**about, "model": model})]  # pyright: ignore
    folder = writable(out / f"{name}-views")
    for view, image in zip(shots.names, done.views, strict=True):
        files.append(pictures.write(pictures.picture(image.clamp(0, 1)), folder / f"{Path(view).stem}.png"))
    shown = [pictures.picture(x) for row in (first[some], done.views[some].cpu(), now) for x in row.clamp(0, 1)]
    files.append(pictures.write(pictures.grid(shown, len(some)), out / f"{name}.png", about))
    if done.frames:
        files.append(pictures.write_film(done.frames, out / f"{name}.gif"))
    so_far.unlink(missing_ok=True)
    record = {**about, "model": model, "edited": done.edited, "seconds": round(done.seconds, 1), "files": files}
    record["files"] = [str(f) for f in files]
    write_json(out / f"{name}.json", record, indent=1)
    if json:
        print_json({**record, "record": str(out / f"{name}.json")})
    else:
        print("\n".join([*record["files"], str(out / f"{name}.json")]))


def scene_of(
    shots: Any, scene: Path | None, out: Path, capture: str, steps: int | None, seed: int, field: str = "voxels"
) -> Any:
    """A scene's file, or one that is fitted to a capture, and kept in ``out`` for the next time."""
    from sfumato.scene.store import load_scene, save_scene
    from sfumato.tasks.edit_scene import first_gaussians, first_scene

    if scene is not None:
        return load_scene(scene)[0]
    first = first_gaussians if field == "gaussians" else first_scene
    fit = out / f".fit.{kept.digest([capture, steps, seed, field])}.safetensors"
    if not fit.exists():
        part = fit.with_suffix(".part.safetensors")
        own: dict[str, Any] = {} if steps is None else {"steps": steps}
        save_scene(fit, first(shots, **own, seed=seed, keep=part))
        part.unlink(missing_ok=True)
    return load_scene(fit)[0]


FAR = 12.0
"""dB; a scene that is farther from a capture's views than this is of another one."""


def shows(scene: Any, shots: Any, what: Path) -> None:
    """Say where a scene is of another capture."""
    from sfumato.metrics.image import psnr

    at = [0, len(shots) // 2]
    found = float(psnr(scene.view(shots.cameras[at]).images.clamp(0, 1).cpu(), shots.images[at]).mean())
    if found < FAR:
        note(f"{what} shows this capture's views at {found:.1f} dB only; is it of another capture, or hardly fitted?")
