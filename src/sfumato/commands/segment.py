"""``sfumato segment``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Side, chosen_side
from sfumato.commands.reading import Batch, contents, files_of, page
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_text
from sfumato.io.terminal import print_json, quiet
from sfumato.tasks import chain as chains
from sfumato.tasks import recipes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sfumato.core.backbone import Backbone
    from sfumato.reading.reader import Reader
    from sfumato.reading.results import Segments


def segment(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="Picture files, or folders.")
    ],
    *,
    chain: tyro.conf.Suppress[chains.Chain] = chains.NONE,
    labelled: Annotated[
        Path | None,
        tyro.conf.arg(
            help="Folder of examples for few-shot and label-efficient: NAME.png and its labels NAME-labels.png (a mask "
            "for few-shot)."
        ),
    ] = None,
    learned: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="What label-efficient has learned: written with --labelled, else read."),
    ] = None,
    names: Annotated[
        str, tyro.conf.arg(metavar="WORD,WORD", help="Give each segment one of these names, by where the words look.")
    ] = "",
    side: Side = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the results.")] = Path("out/segment"),
    json: Json = False,
) -> None:
    """Part images into segments: diff-seg unless another method is named; + graph-cut moves edges to the image's.

    Writes for each image NAME-labels.png (a palette; a pixel's value is its segment) and NAME-overlay.png, and for
    all of them segments.json (COCO, run lengths) and index.html. Images that were done under the same settings are not
    done again; one that fails does not stop the others.

    Example: sfumato segment photo.png diff-seg --preset still-life + graph-cut

    Example: sfumato segment photos/ text-attribution --words cube,grass
    """
    files = files_of(images)
    chosen_side(side)
    writable(out)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.media.labels import Coco, overlay, read_labels, write_labels
    from sfumato.methods.perceive.dift import DIFT
    from sfumato.methods.perceive.graph_cut import GraphCut
    from sfumato.methods.perceive.open_vocabulary import label
    from sfumato.methods.perceive.prompt_embeddings import PromptEmbeddings
    from sfumato.methods.perceive.text_attribution import TextAttribution
    from sfumato.methods.perceive.unsupervised_keypoints import UnsupervisedKeypoints
    from sfumato.reading.reader import read

    items = list(chain.items)
    if not items:
        method, side = recipes.suited("diff-seg", model, side)
        items = [method]
    first, later = items[0], items[1:]
    chained, vocabulary = chain.names or ("diff-seg",), tuple(w.strip() for w in names.split(",") if w.strip())
    if isinstance(first, GraphCut) or not all(isinstance(item, GraphCut) for item in later):
        raise SfumatoError(
            f"{' + '.join(chained)}: one method segments, and graph-cut may follow: diff-seg + graph-cut"
        )
    if isinstance(first, DIFT | PromptEmbeddings | UnsupervisedKeypoints):
        raise SfumatoError(f"{chained[0]} does not segment; see sfumato match and sfumato keypoints")
    net = loading.load(model, device)
    segmented = _ready(first, net, labelled, learned, side)
    settings = {
        "chain": repr(items),
        "model": model,
        "side": side,
        **vars(loading),
        "labelled": contents(labelled),
        "learned": contents(learned),
        "names": vocabulary,
    }
    batch = Batch(files, out, settings)

    def work(file: Path) -> dict[str, Any]:
        picture = open_picture(file)
        with read(net, picture, side) as reader:
            found = segmented(reader)
            for item in later:
                found = item.refine(found, reader.pixels)
            if vocabulary:
                found = label(found, TextAttribution(vocabulary).heat_maps(reader), vocabulary)
        labels, stem = found.labels.cpu(), out / batch.stem(file)
        words = {"image": file.name, "model": model, "method": repr(first), "names": ", ".join(found.names)}
        made = write_labels(labels, Path(f"{stem}-labels.png"), words)
        over = Path(f"{stem}-overlay.png")
        pictures.write(overlay(picture, labels), over)
        sizes = labels.flatten().bincount().tolist()
        return {
            "files": [str(made), str(over)],
            "shown": str(over),
            "segments": sum(n > 0 for n in sizes),
            "names": list(found.names),
        }

    rows = batch.run("segmenting", work)
    document = Coco()
    for row in rows:
        document.add(row["image"], read_labels(row["files"][0]), tuple(row["names"]))
    coco = out / "segments.json"
    write_text(coco, _dumps(document.document()))
    shown = [(row["image"], [("as it is", Path(row["image"])), (_said(row), Path(row["files"][1]))]) for row in rows]
    report = page("Segments", f"{type(first).__name__} on {model}: {len(rows)} images.", shown, out / "index.html")
    if json:
        print_json({"images": rows, "coco": str(coco), "page": str(report), "failed": batch.failed})
    else:
        print("\n".join([*(f for row in rows for f in row["files"]), str(coco), str(report)]))
    batch.finish()


def _ready(
    method: Any, model: Backbone, labelled: Path | None, learned: Path | None, side: int | None
) -> Callable[[Reader], Segments]:
    """A method that is ready: one that needs examples has them."""
    from sfumato.media.labels import read_labels
    from sfumato.methods.perceive.few_shot import Supported
    from sfumato.methods.perceive.label_efficient import Classifier, LabelEfficient
    from sfumato.reading.reader import pixels, read

    if learned is not None and not isinstance(method, LabelEfficient):
        raise SfumatoError(f"{type(method).__name__} learns nothing that could be kept; leave --learned out")
    if learned is not None and labelled is None:
        return Classifier.load(learned).segments
    if not isinstance(method, Supported | LabelEfficient):
        if labelled is not None:
            raise SfumatoError(f"{type(method).__name__} takes no examples; leave --labelled out")
        return method
    if labelled is None:
        raise SfumatoError(f"{type(method).__name__} learns from examples; give a folder of them: --labelled FOLDER")
    images, labels = [], []
    for file in files_of([labelled]):
        beside = file.with_name(f"{file.stem}-labels.png")
        if beside.exists():
            images.append(pixels(file))
            labels.append(read_labels(beside, (images[-1].shape[-2], images[-1].shape[-1])))
    if not images:
        raise SfumatoError(f"{labelled} holds no picture NAME.png with its labels NAME-labels.png")
    if isinstance(method, LabelEfficient):
        classifier = method.fit(model, images, labels, side=side)
        if learned is not None:
            classifier.save(learned)
        return classifier.segments
    support = [read(model, image, side) for image in images]
    return lambda reader: method(reader, support, [(label == 1).float() for label in labels])


def _said(row: dict[str, Any]) -> str:
    return ", ".join(row["names"]) if row["names"] else f"{row['segments']} segments"


def _dumps(value: Any) -> str:
    from json import dumps

    return dumps(value, allow_nan=False) + "\n"
