"""``sfumato segment-scene``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.edit_scene import scene_of, shows
from sfumato.commands.options import Device, Json, Model, Running, Seed, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import print_json, quiet
from sfumato.methods.outline import look
from sfumato.tasks import kept


def segment_scene(
    capture: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="CAPTURE", help="A folder of views with their cameras, or its transforms.json."),
    ],
    *,
    words: Annotated[
        str, tyro.conf.arg(metavar="WORD,WORD", help="What to find: each word's thing has a colour of its own.")
    ] = "",
    click: Annotated[
        tuple[int, float, float] | None,
        tyro.conf.arg(metavar="VIEW X Y", help="In place of words: a view's number from 0, and a point in its pixels."),
    ] = None,
    prompt: Annotated[
        str, tyro.conf.arg(metavar="TEXT", help='The sentence that has the words [default: the words with "and"].')
    ] = "",
    scene: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="The scene of this capture [default: one is fitted to it first]."),
    ] = None,
    threshold: Annotated[
        float | None,
        tyro.conf.arg(help="Part of a word's greatest value in a view, or a click's cosine [default: 0.55, 0.7]."),
    ] = None,
    steps: Annotated[int, tyro.conf.arg(help="Steps in which maps are lifted.")] = 300,
    fit_steps: Annotated[int, tyro.conf.arg(help="Steps of the first fit, where there is no --scene.")] = 800,
    frames: Annotated[int, tyro.conf.arg(help="Of the turntable.")] = 24,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the masks and the turntable.")] = Path("out/segment-scene"),
    json: Json = False,
) -> None:
    """Find things of a scene by words or by a click: what is read of all views is lifted and seen from anywhere.

    Writes for each view NAME/VIEW-labels.png (a palette; 0 is no thing, then the words in their order), NAME.png (the
    views tinted), NAME.gif (a turntable, tinted), NAME.safetensors (what is lifted) and NAME.json.

    Example: sfumato segment-scene capture/ --words robot,grass

    Example: sfumato segment-scene capture/ --click 0 64 80
    """
    given = dict(locals())
    found = tuple(w.strip() for w in words.split(",") if w.strip())
    if bool(found) == (click is not None):
        raise SfumatoError("segment-scene looks for --words such as robot,grass, or for what is like a --click")
    whole("--steps", steps, 1, 1_000_000)
    whole("--fit-steps", fit_steps, 1, 1_000_000)
    whole("--frames", frames, 2, 720)
    if threshold is not None and not 0 <= threshold <= 1:
        raise SfumatoError(f"--threshold is from 0 to 1, got {threshold:g}")
    seed_of(seed)
    look("scene.capture:read_capture", capture)
    if scene is not None:
        look("scene.store:load_scene", scene)
    writable(out)
    quiet()
    from dataclasses import replace

    import torch

    from sfumato.media import pictures
    from sfumato.media.labels import overlay, write_labels
    from sfumato.scene.capture import read_capture
    from sfumato.scene.features import save_features
    from sfumato.tasks import recipes
    from sfumato.tasks import segment_scene as task

    shots = read_capture(capture)
    if len(shots) < 2:
        raise SfumatoError(f"{capture} has one view, and a scene is seen from several; see sfumato segment")
    if click is not None and not 0 <= click[0] < len(shots):
        raise SfumatoError(f"--click names a view from 0 to {len(shots) - 1}, got {click[0]}")
    net = loading.load(model, device)
    settings = {**kept.settings_of(given), "capture": kept.digest([shots.images, shots.cameras.poses])}
    name = kept.named(out, "segment-scene", ".json", slug(words) if found else "click", settings)
    own = scene_of(shots, scene, out, settings["capture"], fit_steps, seed)
    shows(own, shots, scene or capture)
    part = out / f".{name}.{kept.digest(settings)[:8]}.safetensors"
    turn = task.turntable(shots, frames)

    if found:
        method, side = task.word_reader(model, found, prompt)
        method = method if threshold is None else replace(method, threshold=threshold)
        cut = task.cutter(model)
        parts = task.segment_scene(net, shots, own, method, side=side, cut=cut, steps=steps, seed=seed, keep=part)
        features, masks = parts.features, parts.masks
        turned = task.parted(features, turn)[1]
    else:
        assert click is not None
        method, side = recipes.suited("dift", model, None)
        maps = task.deep(net, shots.images, method, side)
        features = task.lift(own, shots.cameras, maps, steps=steps, seed=seed, keep=part, about=repr(method))
        view, at = shots.cameras[[click[0]]], (click[1], click[2])
        limit = 0.7 if threshold is None else threshold
        masks = task.clicked(features, view, at, shots.cameras, limit)[0][:, None]
        turned = task.clicked(features, view, at, turn, limit)[0][:, None]

    def labels(of: torch.Tensor) -> torch.Tensor:
        number = torch.arange(1, of.shape[1] + 1)[None, :, None, None]
        return (of.cpu() * number).amax(1)

    folder, files, tinted = writable(out / name), [], []
    for view, image, label in zip(shots.names, shots.images, labels(masks), strict=True):
        files.append(write_labels(label, folder / f"{Path(view).stem}-labels.png", {"words": words or "click"}))
        tinted.append(overlay(pictures.picture(image), label - 1))
    files.append(pictures.write(pictures.grid(tinted), out / f"{name}.png"))
    seen = own.view(turn).images.clamp(0, 1).cpu()
    film = [overlay(pictures.picture(x), label - 1) for x, label in zip(seen, labels(turned), strict=True)]
    files.append(pictures.write_film(film, out / f"{name}.gif"))
    files.append(save_features(out / f"{name}.safetensors", features, {"words": list(found)}))
    part.unlink(missing_ok=True)
    share = masks.float().mean((0, 2, 3)).tolist()
    names = list(found) or ["click"]
    record = {
        "words": names, "share": [round(s, 4) for s in share], "method": repr(method), "model": model, "seed": seed,
        "files": [str(f) for f in files],
    }  # fmt: skip
    write_json(out / f"{name}.json", record, indent=1)
    if json:
        print_json({**record, "record": str(out / f"{name}.json")})
    else:
        print("\n".join([*record["files"], str(out / f"{name}.json")]))
