"""``sfumato lift``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands import uses
from sfumato.commands.options import Device, Json, Model, Running, Seed, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.learning.annealing import Ramp
from sfumato.methods import index
from sfumato.methods.outline import constant
from sfumato.tasks import chain as chains
from sfumato.tasks import kept, recipes
from sfumato.tasks.chain import Chain

MESHES = (".glb", ".obj", ".ply")


def lift(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT", help="The thing, in quotes.")],
    *,
    image: Annotated[
        Path | None, tyro.conf.arg(metavar="IMAGE", help="A picture that it looks like from where that was taken.")
    ] = None,
    seen_from: Annotated[
        tuple[float, float],
        tyro.conf.arg(metavar="AZIMUTH ELEVATION", help="Where that was, in degrees; 0 sees the front."),
    ] = (0.0, 20.0),
    mask: Annotated[Path | None, tyro.conf.arg(metavar="IMAGE", help="White where --image shows the thing.")] = None,
    recipe: Annotated[
        Literal["suited", "published"],
        tyro.conf.arg(help="What suits the model where that is known, or the paper's own numbers and sizes."),
    ] = "suited",
    steps: Annotated[int | None, tyro.conf.arg(help="Steps of the run [default: the recipe's].")] = None,
    views: Annotated[int | None, tyro.conf.arg(help="Cameras of a step [default: the recipe's].")] = None,
    space: Annotated[
        Literal["pixel", "latent"] | None,
        tyro.conf.arg(help="Does the scene have colours, or the model's latents? [default: the recipe's]"),
    ] = None,
    field: Annotated[
        Literal["voxels", "hash", "gaussians"] | None,
        tyro.conf.arg(help="What the scene is made of [default: the recipe's, on the built-in model voxels]."),
    ] = None,
    words: Annotated[
        Literal["off", "word", "between", "perp-neg"] | None,
        tyro.conf.arg(help="How a view is told: not, by a word, between words, or away from others' as well."),
    ] = None,
    shading: Annotated[
        Literal["off", "lit"] | None,
        tyro.conf.arg(
            help="Are things lit by random lights in most steps behind a fifth of the run, as in DreamFusion? "
            "[default: the recipe's; those of the built-in model are not]"
        ),
    ] = None,
    loss: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="NAME=WEIGHT", help="Losses beside, such as opaque=0.01, or convexity=1>0 to change it."),
    ] = (),
    every: Annotated[int | None, tyro.conf.arg(help="Steps between two frames [default: 40 frames in all].")] = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path, tyro.conf.arg(help="Folder for the results; or a mesh to write there, such as robot.glb.")
    ] = Path("out/lift"),
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Lift a prompt to a scene in three dimensions, by what a model knows of images. A run that was stopped goes on.

    The method comes last, with options of its own: see sfumato lift METHOD --help; without one it is sir, which paints
    views and fits them. Says what it will take before it starts. Writes NAME.safetensors (the scene, which
    export-scene opens), NAME.png (eight views), NAME.gif (the way there), NAME.json, and a mesh where
    --out names one.

    Example: sfumato lift "a red robot on grass"

    Example: sfumato lift "a blue house" --words perp-neg --out house.glb sdi
    """
    given = dict(locals())
    if not prompt.strip():
        raise SfumatoError("the prompt is empty, so there is nothing to lift; say what the thing is")
    if steps is not None:
        whole("--steps", steps, 1, 1_000_000)
    if views is not None:
        whole("--views", views, 1, 64)
    if every is not None:
        whole("--every", every, 1, 1_000_000)
    seed_of(seed)
    if len(chain.names) > 1:
        raise SfumatoError(f"lift takes one method; they are: {', '.join(index.words(index.DISTILLING))}")
    uses.beside("--mask", mask, "--image", image is not None)
    uses.beside("--seen-from", seen_from != (0.0, 20.0) or None, "--image", image is not None)
    if not all(map(math.isfinite, seen_from)) or not -90 < seen_from[1] < 90:
        raise SfumatoError(f"--seen-from is an azimuth and an elevation between -90 and 90, got {seen_from}")
    mesh = out if out.suffix.lower() in MESHES else None
    if field == "gaussians" and (image is not None or (mesh is not None and mesh.suffix.lower() != ".ply")):
        raise SfumatoError(
            "Gaussians have no surface: write .ply, which viewers of splats read, and leave --image out; or take "
            "--field voxels"
        )
    losses = _losses(loss)
    folder = out.parent if mesh is not None else out
    writable(folder)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.images import read_image
    from sfumato.scene.export import export
    from sfumato.scene.store import save_scene
    from sfumato.tasks import lift as task
    from sfumato.tasks import lift_recipes

    name = chain.names[0] if chain.names else "sir"
    found = lift_recipes.recipe(name, "published" if recipe == "published" else model)
    light = {None: found.shading, "off": None, "lit": found.shading or lift_recipes.DREAMFUSION_LIGHT}[shading]
    if light is not None and ((field or found.kind) == "gaussians" or (space or found.space) == "latent"):
        note("light falls on fields of colours alone, so this scene is not shaded")
        light = None
    found = replace(found, shading=light)
    found = found if field in (None, found.kind) else found.of(field)
    changed: dict[str, Any] = {"losses": {**found.losses, **losses}}
    if space == "latent" and found.space == "pixel":
        changed |= lift_recipes.IN_LATENTS
    elif space is not None:
        changed["space"] = space
    found = replace(found, **changed)
    found = found if words is None else found.by_way(words)
    found = found if views is None else found.of_views(views)
    method: Any = found.method
    if chain.items:  # what was said of the method counts, what was not is the recipe's
        method = recipes.filled(chain.items[0], method, chain.named[0])
    count = found.steps if steps is None else steps
    net = loading.load(model, device)
    loading.remark(model, prompt)
    picture = None if image is None else read_image(image, net)
    about = None
    if picture is not None:
        shape = None if mask is None else read_image(mask, net).mean(0)
        about = task.Given(picture, *seen_from, mask=shape)
    settings = {"prompt": prompt, "method": repr(method), "recipe": f"{found.preset}: {found.source}", "steps": count,
                "seed": seed, "model": model}  # fmt: skip
    expected = task.cost(net, prompt, found, method, count, about)
    note(f"{count} steps of {name}, {expected}")
    stem = mesh.stem if mesh is not None else f"{slug(prompt)}-{name}"
    marked = {**kept.settings_of(given), "methods": method}
    stem = kept.named(folder, "lift", ".safetensors", stem, marked)
    so_far = folder / f".{stem}.{kept.digest(marked)[:8]}.safetensors"
    every = max(1, count // 40) if every is None else every
    done = task.lift(net, prompt, found, method=method, steps=count, given=about, seed=seed, keep=so_far,
                     frame_every=every)  # fmt: skip
    for remark in done.remarks:
        note(remark)
    files = [
        save_scene(folder / f"{stem}.safetensors", done.scene, settings),
        pictures.write(pictures.sheet(done.views, 8), folder / f"{stem}.png", settings),
        pictures.write_film(done.frames, folder / f"{stem}.gif"),
    ]
    if mesh is not None:
        written = export(done.scene, folder / f"{stem}{mesh.suffix.lower()}", resolution=96, texture=512)
        files += written.files
        for remark in written.notes:
            note(remark)
    so_far.unlink(missing_ok=True)
    row = {**settings, "expected": {"seconds": expected.seconds, "megabytes": expected.megabytes},
           "remarks": done.remarks, "strength": done.strength, "files": [str(f) for f in files]}  # fmt: skip
    document = folder / f"{stem}.json"
    write_json(document, row, indent=1)
    if json:
        print_json({**row, "record": str(document)})
    else:
        print("\n".join([*row["files"], str(document)]))


def _losses(texts: Sequence[str]) -> dict[str, Ramp]:
    """Weights of losses by their names."""
    found, names = dict[str, Ramp](), ", ".join(known := constant("tasks.lift:LOSSES"))
    for text in texts:
        word, _, ramp = text.partition("=")
        if word not in known or not ramp:
            raise SfumatoError(f"--loss is a name and a weight, got {text!r}; names: {names}")
        found[word] = Ramp.read(ramp)
    return found
