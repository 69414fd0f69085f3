"""``sfumato keypoints``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Side, chosen_side
from sfumato.commands.reading import files_of, finish, page
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods import index
from sfumato.methods.outline import look
from sfumato.tasks import chain as chains
from sfumato.tasks import recipes
from sfumato.tasks.batch import Batch, contents
from sfumato.tasks.kept import Kept


def keypoints(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="Picture files, or folders.")
    ],
    *,
    chain: tyro.conf.Suppress[chains.Chain] = chains.NONE,
    learned: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="Keypoints that were learned before [default: learn them now].")
    ] = None,
    head: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="A head of landmark-regression, of sfumato train-head, in their place."),
    ] = None,
    side: Side = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/keypoints"),
    json: Json = False,
) -> None:
    """Learn keypoints of images that show things of one kind, without labels, and find them in each.

    Writes keypoints.safetensors (for --learned), keypoints.json, NAME-keypoints.png and index.html. Learning that was
    stopped goes on where it was.

    Example: sfumato keypoints ducks/ unsupervised-keypoints

    Example: sfumato keypoints more-ducks/ --learned out/keypoints/keypoints.safetensors

    Example: sfumato keypoints more-ducks/ --head landmarks.safetensors
    """
    files = files_of(images, "keypoints")
    chosen_side(side)
    if len(chain.names) > 1 or {index.find(name).word for name in chain.names} - {"unsupervised-keypoints"}:
        raise SfumatoError(f"keypoints are learned by unsupervised-keypoints, not by {' + '.join(chain.names)}")
    if head is not None and (learned is not None or chain.names):
        raise SfumatoError("--head has landmarks of its own; leave --learned and the method out")
    if learned is not None and chain.names:
        raise SfumatoError("--learned has its own settings; leave the method out, or learn anew without --learned")
    for file, load in ((head, "methods.heads:load"), (learned, "learning.checkpoint:read")):
        if file is not None:
            look(load, file)
    writable(out)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.media.labels import points
    from sfumato.methods import heads
    from sfumato.methods.perceive.landmark_regression import LandmarkRegression
    from sfumato.methods.perceive.unsupervised_keypoints import Keypoints
    from sfumato.reading.reader import read

    if head is None and learned is None:
        chain, side = recipes.reading(chain, "unsupervised-keypoints", model, side)
    net = loading.load(model, device)
    if head is not None:
        learned, landmarks = head, heads.load(head, net.device)
        if not isinstance(landmarks.method, LandmarkRegression):
            raise SfumatoError(
                f"a head of {type(landmarks.method).__name__} gives no landmarks; sfumato segment --head"
            )
        landmarks.check(net)
        locate, side, names = landmarks, landmarks.side, landmarks.names
    elif learned is None:
        method: Any = next(iter(chain.items))
        learned = out / "keypoints.safetensors"
        found = method.fit(net, [open_picture(f) for f in files], out / ".learning.safetensors", side=side)
        if learned.exists():
            note(f"{learned} is learned anew, in place of the earlier one")
        found.save(learned)
        locate, names = found.locate, found.chosen
    else:
        found = Keypoints.load(learned)
        locate, names = found.locate, found.chosen
    named = {} if head is None else {"names": list(names)}
    settings = {"learned": contents(learned), "model": model, "side": side, **asdict(loading)}
    batch = Batch(files, Kept(out, "keypoints", "-keypoints.png"), settings)

    def work(file: Path, stem: Path) -> dict[str, Any]:
        picture = open_picture(file)
        with read(net, picture, side) as reader:
            at = locate(reader).cpu()
        made = pictures.write(points(picture, at), Path(f"{stem}-keypoints.png"))
        return {"files": [str(made)], "shown": str(made), "points": at.tolist(), **named}

    done = batch.run("locating", work)
    rows = done.rows
    document, report = out / "keypoints.json", out / "index.html"

    def write(lying: list[dict[str, Any]]) -> None:
        write_json(document, lying, indent=1)
        shown = [(row["image"], [("", Path(row["files"][0]))]) for row in lying]
        page("Keypoints", f"{len(names)} on {pictures.written(model)}, {len(lying)} images", shown, report)

    if rows:
        batch.lying(write)
    if json:
        made = {"page": str(report)} if rows else {}
        print_json({"learned": str(learned), "images": rows, **made, "failed": done.failed})
    elif rows:
        print("\n".join([*done.files, str(learned), str(document), str(report)]))
    finish(files, done.failed)
