"""``sfumato features``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Seed, Side, chosen_side, seed_of
from sfumato.commands.reading import files_of, finish
from sfumato.errors import SfumatoError
from sfumato.io.files import save_tensors, writable
from sfumato.io.terminal import note, print_json, print_table, quiet
from sfumato.tasks import kept


def features(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="Picture files, or folders.")
    ],
    *,
    what: Annotated[
        Literal["hidden", "residual", "tokens", "queries", "keys"],
        tyro.conf.arg(help="What flows on, what ResNets add, what attention reads, its queries or keys."),
    ] = "hidden",
    layers: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="N", help="Their numbers among such layers [default: six, spread].")
    ] = (),
    times: Annotated[tuple[float, ...], tyro.conf.arg(metavar="T", help="Training steps of the noise.")] = (
        1,
        261,
        521,
    ),
    side: Side = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/features"),
    json: Json = False,
) -> None:
    """Read the network's features of images, and draw their principal components, one PCA for all steps and images.

    Writes features.png, and NAME-features.safetensors for each image, a tensor (t, c, h, w) a layer. The table says how
    much of an image's variance the first three joint components hold, and how much its own three would. An image that
    fails does not stop the others.

    Example: sfumato features view-1.png view-2.png --layers 10 19 23
    """
    given = dict(locals())
    if not times:
        raise SfumatoError("--times are training steps of the noise, such as 1 261, and none is given")
    if wrong := [t for t in times if not 0 <= t <= 1000]:
        raise SfumatoError(f"--times are training steps in thousandths of all, from 0 to 1000, got {wrong[0]:g}")
    files = files_of(images)
    chosen_side(side)
    seed_of(seed)
    writable(out)
    quiet()
    from sfumato.experiments import joint_pca
    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.reading.reader import read

    net = loading.load(model, device)
    asked, failed, readers = files, dict[str, str](), []
    for file in asked:
        try:
            readers.append(read(net, open_picture(file), side))
        except SfumatoError as e:
            failed[str(file)] = str(e)
    files = [file for file in asked if str(file) not in failed]
    if not files:
        finish(asked, failed)
    maps = joint_pca.read_features(readers, what, layers, times, seed)
    found = joint_pca.joint_pca(maps)
    name = kept.named(out, "features", ".png", "features", kept.settings_of(given))
    picture, number = out / f"{name}.png", name.removeprefix("features")
    joint_pca.draw(readers, found, times, picture, f"{pictures.written(model)}, {what}")
    made = [picture]
    for i, file in enumerate(files):
        stem = _stem(file, asked)
        if stem != kept.short(file.stem):
            note(f"of several pictures of one name: {file} is {stem}")
        made.append(out / f"{stem}-features{number}.safetensors")
        save_tensors(made[-1], {name: m[:, i] for name, m in maps.items()}, {"times": str(list(times))})
    rows = [{"layer": name, "joint": round(c.joint, 3), "own": round(c.own, 3)} for name, c in found.items()]
    if json:
        print_json({"files": [str(f) for f in made], "layers": rows, "failed": failed})
    else:
        print_table(rows)
        print("\n".join(map(str, made)))
    finish(asked, failed)


def _stem(file: Path, files: list[Path]) -> str:
    """What an image's features are called: its name; of several of that name also its number."""
    stem = kept.short(file.stem)
    same = [f for f in files if kept.short(f.stem) == stem]
    return stem if len(same) == 1 else f"{stem}-{same.index(file) + 1}"
