"""``sfumato attribute``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Side, chosen_side, slug
from sfumato.commands.reading import files_of, finish, page
from sfumato.errors import SfumatoError
from sfumato.io.files import writable
from sfumato.io.terminal import print_json, quiet
from sfumato.tasks import recipes
from sfumato.tasks.batch import Batch


def attribute(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="Picture files, or folders.")
    ],
    *,
    words: Annotated[str, tyro.conf.arg(metavar="WORD,WORD", help="Words, or phrases, to look for.")],
    prompt: Annotated[
        str | None, tyro.conf.arg(metavar="PROMPT", help="What the image shows, with these words [default: the words].")
    ] = None,
    preset: Annotated[str | None, tyro.conf.arg(help="Other settings of text-attribution, such as still-life.")] = None,
    side: Side = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/attribute"),
    json: Json = False,
) -> None:
    """Show where each word looks in an image: its cross-attention, over several levels of noise.

    Writes NAME-WORD.png for each word, dark where it does not look, NAME-attribution.safetensors with the maps, and
    index.html.

    Example: sfumato attribute photo.png --words cube,grass --prompt "a red cube on grass" --preset still-life
    """
    asked = tuple(w.strip() for w in words.split(",") if w.strip())
    if not asked:
        raise SfumatoError("--words names no word; such as --words cube,grass")
    files = files_of(images)
    chosen_side(side)
    writable(out)
    quiet()
    from safetensors.torch import save_file

    from sfumato.io.files import atomic
    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.media.overlays import heatmap
    from sfumato.reading.reader import read

    method = recipes.default(f"text-attribution:{preset}" if preset else "text-attribution")
    method = replace(method, words=asked, prompt=prompt)
    net = loading.load(model, device)
    batch = Batch(files, out, {"method": repr(method), "model": model, "side": side, **vars(loading)})

    def work(file: Path) -> dict[str, Any]:
        picture, stem = open_picture(file), out / batch.stem(file)
        with read(net, picture, side) as reader:
            maps = method.heat_maps(reader)
        made = [
            pictures.write(heatmap(picture, m), Path(f"{stem}-{slug(w)}.png")) for w, m in zip(asked, maps, strict=True)
        ]
        sheet = pictures.labelled([picture, *map(open_picture, made)], ["", *asked])
        made.append(pictures.write(sheet, Path(f"{stem}-attribution.png")))
        tensors = Path(f"{stem}-attribution.safetensors")
        with atomic(tensors) as part:
            save_file({w: m.contiguous() for w, m in zip(asked, maps, strict=True)}, part)
        return {"files": [*map(str, made), str(tensors)], "shown": str(made[-1])}

    done = batch.run("looking", work)
    rows = done.rows
    shown = [
        (row["image"], [("as it is", Path(row["image"])), *zip(asked, map(Path, row["files"]), strict=False)])
        for row in rows
    ]
    report = page("Where words look", prompt or ", ".join(asked), shown, out / "index.html")
    if json:
        print_json({"images": rows, "page": str(report), "failed": done.failed})
    else:
        print("\n".join([*(f for row in rows for f in row["files"]), str(report)]))
    finish(batch, done.failed)
