"""``sfumato shapes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sfumato.commands.options import Device, Json, Model, Running
from sfumato.errors import SfumatoError, whole
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import print_json, quiet
from sfumato.methods.outline import look
from sfumato.tasks import chain as chains
from sfumato.tasks import kept, recipes


def shapes(
    meshes: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="MESH", help="One to be parted, or two to be matched: OBJ, OFF, PLY or GLB."),
    ],
    *,
    chain: tyro.conf.Suppress[chains.Chain] = chains.NONE,
    parts: Annotated[int, tyro.conf.arg(metavar="N", help="Of one shape alone: how many it is parted into.")] = 6,
    controlnet: Annotated[
        str | None,
        tyro.conf.arg(metavar="PLACE", help="A ControlNet on depth, for --look painted: a folder, an id, a file."),
    ] = None,
    format: Annotated[Literal["glb", "ply"], tyro.conf.arg(help="Of the coloured meshes.")] = "glb",
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/shapes"),
    json: Json = False,
) -> None:
    """Find the vertices of one untextured shape on another, or part a shape, by a network's features of its views.

    Writes the shapes with colours (what was matched has the colour of its match; a part has one), a PNG of them from
    four sides, and a JSON: for each vertex, in the file's order, its match and how alike they are, or its part. It is
    diff3f that reads them. Needs trimesh: pip install 'sfumato[3d]'.

    Example: sfumato shapes man.obj woman.obj diff3f

    Example: sfumato shapes cow.obj --parts 5
    """
    given = dict(locals())
    if not 1 <= len(meshes) <= 2:
        raise SfumatoError(f"shapes takes one mesh, which is parted, or two, which are matched; got {len(meshes)}")
    first, second = meshes[0], meshes[1] if len(meshes) == 2 else None
    whole("--parts", parts, 2, 100)
    if len(chain.names) > 1:
        raise SfumatoError(f"shapes takes one method, got {', '.join(chain.names)}")
    for mesh in meshes:
        look("media.meshes:read_mesh", mesh)
    writable(out)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.meshes import read_mesh, write_mesh
    from sfumato.tasks import shapes as task

    chain, _ = recipes.reading(chain, "diff3f", model, None)
    (method,) = chain.items
    one, two = read_mesh(first), None if second is None else read_mesh(second)
    net = loading.load(model, device)
    steered = None
    if controlnet is not None:
        from sfumato.backbones import controlnets

        steered = controlnets.read(controlnet, net, loading.variant, loading.offline)
    called = first.stem if second is None else f"{first.stem}-to-{second.stem}"
    record: dict[str, Any] = {"first": str(first), "model": model, "method": repr(method)}
    if two is None:
        found, labels = task.part_shape(net, one, method, parts, steered=steered)
        record |= {"parts": labels.tolist(), "seen": float(found.seen.float().mean())}
        shown = [("", one, task.by_part(labels))]
    else:
        done = task.match_shapes(net, one, two, method, steered=steered)
        record |= {
            "second": str(second),
            "matches": done.index.tolist(),
            "scores": [round(v, 5) for v in done.scores.tolist()],
            "seen": float(done.first.seen.float().mean()),
        }
        shown = [("-first", one, done.colours[0]), ("-second", two, done.colours[1])]
    stem = out / kept.named(out, "shapes", ".png", called, kept.settings_of(given, [chain]))
    files = [pictures.write(task.sheet([(mesh, colours) for _, mesh, colours in shown]), Path(f"{stem}.png"))]
    files += [write_mesh(Path(f"{stem}{tail}.{format}"), mesh, colours) for tail, mesh, colours in shown]
    numbers = Path(f"{stem}.json")
    write_json(numbers, record)
    if json:
        print_json({**record, "shown": str(files[0]), "files": [str(f) for f in (*files, numbers)]})
    else:
        print("\n".join(map(str, [*files, numbers])))
