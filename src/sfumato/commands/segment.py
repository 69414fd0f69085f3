"""``sfumato segment``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands.fields import default, sketched
from sfumato.commands.options import Device, Json, Model, Running, ShowAttention, Side, chosen_side, slug
from sfumato.commands.reading import files_of, finish, no_meshes, page
from sfumato.errors import SfumatoError
from sfumato.io.files import save_tensors, writable, write_json
from sfumato.io.terminal import print_json, quiet
from sfumato.methods.outline import look
from sfumato.tasks import chain as chains
from sfumato.tasks import recipes
from sfumato.tasks.batch import Batch, contents
from sfumato.tasks.kept import Kept, content

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from sfumato.core.backbone import Backbone
    from sfumato.methods.perceive.text_attribution import TextAttribution


def segment(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="Picture files, or folders.")
    ],
    *,
    chain: tyro.conf.Suppress[chains.Chain] = chains.NONE,
    labelled: Annotated[
        Path | None,
        tyro.conf.arg(
            help="Folder of examples for few-shot, heads of diffews, and label-efficient: NAME.png and its labels "
            "NAME-labels.png (a mask for the first two)."
        ),
    ] = None,
    learned: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="What label-efficient has learned: written with --labelled, else read."),
    ] = None,
    head: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="What sfumato train-head wrote, in the place of a method.")
    ] = None,
    given: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PLACE", help="For a head on features of one's own: those of the pictures, by name."),
    ] = None,
    names: Annotated[
        str,
        tyro.conf.arg(
            metavar="WORD,WORD",
            help="Give each segment one of these names, by where the words look; of a head of pacl, its classes.",
        ),
    ] = "",
    show_attention: ShowAttention = False,
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
    done again; one that fails does not stop the others. With text-attribution --show-attention writes NAME-WORD.png for
    each word, dark where it does not look, NAME-attribution.png of all, and NAME-attribution.safetensors with the maps.

    Example: sfumato segment photo.png diff-seg + graph-cut

    Example: sfumato segment photos/ text-attribution --words cube,grass --show-attention

    Example: sfumato segment photos/ --head head.safetensors graph-cut

    Example: sfumato segment photos/ --head pacl.safetensors --names duck,mug,grass

    Example: sfumato segment photos/ --head diffews.safetensors --labelled examples/
    """
    files = files_of(images, "segment")
    chosen_side(side)
    no_meshes(files)
    if head is not None:
        look("methods.heads:load", head)
    elif given is not None:
        raise SfumatoError("--given are features for a head; name it by --head FILE")
    if given is not None:
        look("tasks.train_head:given", given)
    if head is None:
        found = chain if chain.names else default("label-efficient" if learned and not labelled else "diff-seg")
        look("tasks.segment:split", sketched(found).items, found.names)
        look("tasks.segment:ready", sketched(found).items[0], None, labelled=labelled, learned=learned)
    if labelled is not None:
        look("tasks.segment:examples_in", labelled)
    vocabulary = tuple(w.strip() for w in names.split(",") if w.strip())
    if names and not vocabulary:
        raise SfumatoError(f"--names are words with commas, such as cube,grass, got {names!r}")
    writable(out)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.media.labels import Coco, overlay, read_labels, write_labels
    from sfumato.methods.perceive.label_efficient import Classifier, LabelEfficient
    from sfumato.methods.perceive.text_attribution import TextAttribution
    from sfumato.tasks.segment import Segmenter, by_head, name_of, ready, split

    if learned is not None and labelled is None and head is None:  # what was learned has settings of its own
        chain = chain if chain.items else chains.Chain((LabelEfficient(),), ("label-efficient",))
        if isinstance(chain.items[0], LabelEfficient):
            side = side or Classifier.load(learned).side
    else:
        chain, side = recipes.reading(chain, None if head or given else "diff-seg", model, side)
    items: list[Any] = list(chain.items)
    words: tuple[str, ...] = chain.names
    if head is not None:
        learnt = by_head(head, given)
        items, words, side = [learnt, *items], (head.name, *words), learnt.side
    first, cuts = split(items, words)
    if show_attention and not isinstance(first, TextAttribution):
        raise SfumatoError("--show-attention is of text-attribution, which reads where words look")
    net = loading.load(model, device)
    parts: Any = ready(first, net, labelled=labelled, learned=learned, side=side)
    of_words = head is not None and parts.takes_words
    if of_words:
        parts = parts.with_words(net, vocabulary)
    segmenter = Segmenter(net, parts, cuts, () if of_words else vocabulary, side)
    settings = {
        "chain": repr(items),
        "model": model,
        "side": side,
        **asdict(loading),
        "labelled": contents(labelled),
        "learned": contents(learned),
        "head": None if head is None else content(head),
        "given": contents(given),
        "names": vocabulary,
        "show_attention": show_attention,
    }
    batch = Batch(files, Kept(out, "segment", "-labels.png"), settings)

    def work(file: Path, stem: Path) -> dict[str, Any]:
        picture = open_picture(file)
        of_this = segmenter if given is None else replace(segmenter, parts=parts.named(file.stem))
        found = of_this(picture)
        labels = found.labels.cpu()
        words = {"image": file.name, "model": model, "method": repr(first), "names": ", ".join(found.names)}
        made = write_labels(labels, Path(f"{stem}-labels.png"), words)
        over = Path(f"{stem}-overlay.png")
        pictures.write(overlay(picture, labels), over)
        looks = _looks(first, net, picture, side, stem) if show_attention else []
        sizes = labels.flatten().bincount().tolist()
        return {
            "files": [str(file) for file in (made, over, *looks)],
            "shown": str(over),
            "segments": sum(n > 0 for n in sizes),
            "names": list(found.names),
            "by": f"{name_of(first)} on {pictures.written(model)}",
            "looked": looks[-2].name if looks else "",
        }

    done = batch.run("segmenting", work)
    rows = done.rows
    coco, report = out / "segments.json", out / "index.html"

    def write(lying: list[dict[str, Any]]) -> None:
        document = Coco()
        for row in lying:
            document.add(row["image"], read_labels(row["files"][0]), tuple(row["names"]))
        write_json(coco, document.document())
        by = ", ".join(dict.fromkeys(row["by"] for row in lying))
        page("Segments", f"{by}: {len(lying)} images.", [(row["image"], _figures(row, out)) for row in lying], report)

    if rows:
        batch.lying(write)
    if json:
        made = {"coco": str(coco), "page": str(report)} if rows else {}
        print_json({"images": rows, **made, "failed": done.failed})
    elif rows:
        print("\n".join([*done.files, str(coco), str(report)]))
    finish(files, done.failed)


def _looks(method: TextAttribution, model: Backbone, picture: Picture, side: int | None, stem: Path) -> list[Path]:
    """Where each word looks: a picture a word, one of all, and the maps."""
    from sfumato.media import pictures
    from sfumato.media.images import open_picture
    from sfumato.media.overlays import heatmap
    from sfumato.reading.reader import read

    with read(model, picture, side) as reader:
        maps = dict(zip(method.words, method.heat_maps(reader), strict=True))
    made = [pictures.write(heatmap(picture, m), Path(f"{stem}-{slug(w)}.png")) for w, m in maps.items()]
    sheet = pictures.labelled([picture, *map(open_picture, made)], ["", *maps])
    tensors = Path(f"{stem}-attribution.safetensors")
    save_tensors(tensors, maps)
    return [*made, pictures.write(sheet, Path(f"{stem}-attribution.png")), tensors]


def _figures(row: dict[str, Any], out: Path) -> list[tuple[str, Path]]:
    """A picture, if it is still there, its segments, and where words look."""
    label = ", ".join(row["names"]) if row["names"] else f"{row['segments']} segments"
    figures = [("as it is", Path(row["at"])), (label, Path(row["files"][1]))]
    figures += [("where the words look", out / row["looked"])] if row["looked"] else []
    return [figure for figure in figures if figure[1].exists()]
