"""``sfumato match``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Side, chosen_side
from sfumato.commands.reading import no_meshes
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.media import opening
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks import kept, recipes


def match(
    first: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE", help="Where the points are.")],
    second: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(metavar="OTHER-IMAGE", help="Where they are looked for.")
    ],
    *,
    chain: tyro.conf.Suppress[chains.Chain] = chains.NONE,
    points: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="X,Y", help="In pixels of the first image [default: a grid, of which the sure are drawn]."
        ),
    ] = (),
    mask: Annotated[
        Path | None, tyro.conf.arg(metavar="PNG", help="A mask of the first image, to be carried over to the other.")
    ] = None,
    edited: Annotated[
        Path | None,
        tyro.conf.arg(metavar="IMAGE", help="The first image edited inside --mask; the edit is carried over."),
    ] = None,
    side: Side = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/match"),
    json: Json = False,
) -> None:
    """Find points of one image in another: dift unless another method is named.

    Writes a picture of both with a line from each point to its match, and a JSON of them. With --mask also the
    mask, and with --edited the edit, as the other image has them.

    Example: sfumato match red-duck.png blue-duck.png --points 60,40 70,90 dift
    """
    given = dict(locals())
    chosen_side(side)
    asked = [_point(p) for p in points]
    no_meshes([first, second])
    if len(chain.names) > 1:
        raise SfumatoError(f"match takes one method, got {', '.join(chain.names)}")
    for word in chain.names:
        index.check("match", word)
    if edited and not mask:
        raise SfumatoError("--edited needs --mask, which says where the edit is")
    for file in filter(None, (second, mask, edited)):
        opening.checked(file)
    writable(out)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.images import Fitted, coloured, open_picture, opened
    from sfumato.media.labels import lines, overlay, write_labels
    from sfumato.prompts.layout import Mask
    from sfumato.reading.reader import pixels
    from sfumato.tasks import match as task

    chain, side = recipes.reading(chain, "dift", model, side)
    (method,) = chain.items
    shown = open_picture(first), open_picture(second)
    area = None if mask is None else Mask.read(mask).of(shown[0].height, shown[0].width).pixels.float()
    changed = None if edited is None else pixels(edited)
    net = loading.load(model, device)
    done = task.match(net, *shown, method, points=asked, mask=area, edited=changed, side=side)
    name = kept.named(out, "match", ".png", f"{first.stem}-to-{second.stem}", kept.settings_of(given, [chain]))
    stem, found = out / name, done.matches
    drawn = lines(shown[0], shown[1], found.source, found.target, found.sure)
    files = [pictures.write(drawn, Path(f"{stem}.png"))]
    if done.mask is not None:
        files.append(write_labels(done.mask, Path(f"{stem}-mask.png")))
        files.append(pictures.write(overlay(shown[1], done.mask - 1), Path(f"{stem}-mask-overlay.png")))
    if done.edited is not None:
        own = Fitted(done.edited, coloured(opened(second)), (0, 0, *shown[1].size))
        files.append(pictures.write(own.restore(pictures.picture(done.edited)), Path(f"{stem}-edited.png")))
    rows: list[dict[str, Any]] = [
        {"source": s, "target": t, "score": c, "sure": bool(u)}
        for s, t, c, u in zip(
            *(v.tolist() for v in (found.source, found.target, found.scores, found.sure)), strict=True
        )
    ]
    record = {"first": str(first), "second": str(second), "model": model, "method": repr(done.method), "matches": rows}
    numbers = Path(f"{stem}.json")
    write_json(numbers, record, indent=1)
    if json:
        print_json({**record, "shown": str(files[0]), "files": [str(f) for f in files]})
    else:
        if asked:
            scores = ", ".join(f"{score:.2f}" for score in found.scores.tolist())
            note(f"scores of the points: {scores}; more is more alike")
        print("\n".join(map(str, [*files, numbers])))


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise SfumatoError(f"a point is X,Y in pixels, such as 60,40; got {text!r}") from None
    return x, y
