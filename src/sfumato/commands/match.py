"""``sfumato match``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Side, chosen_side
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_text
from sfumato.io.terminal import print_json, quiet
from sfumato.tasks import chain as chains
from sfumato.tasks import recipes

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sfumato.reading.reader import Reader

GRID = 6  # points a side, where none are given


def match(
    first: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE", help="Where the points are.")],
    second: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OTHER", help="Where they are looked for.")],
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

    Example: sfumato match red-duck.png blue-duck.png --points 60,40 70,90 dift --preset still-life
    """
    chosen_side(side)
    writable(out)
    asked = [_point(p) for p in points]
    quiet()
    import torch

    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.media.labels import lines, overlay, write_labels
    from sfumato.methods.perceive.dift import DIFT
    from sfumato.reading.reader import pixels, read

    if len(chain.items) > 1:
        raise SfumatoError(f"match takes one method, got {', '.join(chain.names)}")
    method, side = (chain.items[0], side) if chain.items else recipes.suited("dift", model, side)
    if isinstance(method, DIFT) and method.cycle is None and not asked:
        method = replace(method, cycle=0.1)  # a grid has points that the other image does not show
    if (mask or edited) and not isinstance(method, DIFT):
        raise SfumatoError(f"{chain.names[0]} matches points alone; masks and edits are carried by dift")
    if edited and not mask:
        raise SfumatoError("--edited needs --mask, which says where the edit is")
    shown = open_picture(first), open_picture(second)
    net = loading.load(model, device)
    stem = out / f"{first.stem}-to-{second.stem}"
    with read(net, shown[0], side) as one, read(net, shown[1], side) as other:
        found = method(one, other, torch.tensor(asked) if asked else _grid(one))
        drawn = lines(shown[0], shown[1], found.source, found.target, found.sure)
        files = [pictures.write(drawn, Path(f"{stem}.png"))]
        if mask is not None:
            area = _mask(mask, one.size)
            labels = method.masks(one, other, area[None]).labels
            files.append(write_labels(labels, Path(f"{stem}-mask.png")))
            files.append(pictures.write(overlay(shown[1], labels - 1), Path(f"{stem}-mask-overlay.png")))
            if edited is not None:
                carried, _ = method.edit(one, pixels(edited), other, area)
                files.append(pictures.write(pictures.picture(carried), Path(f"{stem}-edited.png")))
    rows: list[dict[str, Any]] = [
        {"source": s, "target": t, "score": c, "sure": bool(u)}
        for s, t, c, u in zip(
            *(v.tolist() for v in (found.source, found.target, found.scores, found.sure)), strict=True
        )
    ]
    record = {"first": str(first), "second": str(second), "model": model, "method": repr(method), "matches": rows}
    numbers = Path(f"{stem}.json")
    write_text(numbers, _dumps(record))
    if json:
        print_json({**record, "shown": str(files[0]), "files": [str(f) for f in files]})
    else:
        print("\n".join(map(str, [*files, numbers])))


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise SfumatoError(f"a point is X,Y in pixels, such as 60,40; got {text!r}") from None
    return x, y


def _mask(path: Path, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    from sfumato.prompts.layout import Mask

    mask = Mask.read(path).pixels
    if tuple(mask.shape) != size:
        h, w = mask.shape
        raise SfumatoError(f"the mask {path} is {w} x {h} pixels, its image is {size[1]} x {size[0]}")
    return mask.float()


def _grid(reader: Reader) -> Float[Tensor, "n 2"]:
    import torch

    h, w = reader.size
    share = (torch.arange(GRID) + 0.5) / GRID
    return torch.cartesian_prod(share * w, share * h)


def _dumps(value: Any) -> str:

    from json import dumps

    return dumps(value, indent=1, allow_nan=False) + "\n"
