"""``sfumato train-head``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Side, chosen_side, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods import index
from sfumato.methods.outline import derives, look
from sfumato.tasks import chain as chains
from sfumato.tasks import kept
from sfumato.tasks.chain import Chain

FEATURES = "dift"
SHOWN = 4  # pictures that are shown with what the head makes of them


def train_head(
    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA", help="A folder of pictures, or so many Still Life scenes: stilllife:200."),
    ],
    *,
    test: Annotated[
        str | None,
        tyro.conf.arg(metavar="DATA", help="Pictures with labels, or scenes, on which the head is measured."),
    ] = None,
    names: Annotated[
        str, tyro.conf.arg(metavar="WORD,WORD", help="Of the classes in the labels, from 0 on [default: none].")
    ] = "",
    given: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="PLACE",
            help="Features of one's own: a safetensors file with a tensor (c, h, w) for each picture's name, or a "
            "folder of what sfumato features wrote.",
        ),
    ] = None,
    steps: Annotated[int | None, tyro.conf.arg(help="Steps of the run [default: the method's].")] = None,
    side: Side = None,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    device: Device = "auto",
    out: Annotated[
        Path, tyro.conf.arg(help="Folder for the results; or the head's file, such as head.safetensors.")
    ] = Path("out/train-head"),
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Train a small head on the model's frozen features of pictures. A run that was stopped goes on.

    The method comes last, with options of its own; behind a + what reads the features (dift unless said, or
    label-efficient), with options as well. What is not said of the method is as it suits the model. Beside NAME.png may
    lie its labels NAME-labels.png, a caption NAME.txt and landmarks NAME-points.json, as {"nose": [x, y]} in pixels.
    Writes NAME.safetensors, the head, which sfumato segment takes as --head; NAME.json; and with --test how much of
    that is right, and NAME.png, pictures above what the head makes of them.

    Example: sfumato train-head stilllife:200 --test stilllife:32 --out head.safetensors stego

    Example: sfumato train-head photos/ --out head.safetensors stego --classes 12 + dift --t 101

    Example: sfumato train-head captioned/ --out pacl.safetensors pacl + clip-patches

    Example: sfumato train-head stilllife:160 --test stilllife:32 --out diffews.safetensors diffews

    Then: sfumato segment photo.png --head head.safetensors
    """
    arguments = dict(locals())
    if steps is not None:
        whole("--steps", steps, 1, 10_000_000)
    chosen_side(side)
    if not chain.names or len(chain.names) > 2:
        raise SfumatoError("train-head takes a method that learns a head, such as stego, and + what reads features")
    words = [index.find(name).word for name in chain.names]
    if not derives(index.find(words[0]), "HeadMethod", head=True):
        known = index.words(index.READING, heads=True)
        heads = ", ".join(w for w in known if derives(index.find(w), "HeadMethod", head=True))
        raise SfumatoError(f"{words[0]} learns no head; methods that do: {heads}")
    for place in filter(None, (data, test)):
        look("tasks.train_head:pictures", place, None)
    if given is not None:
        look("tasks.train_head:given", given)
    file = out if out.suffix.lower() == ".safetensors" else None
    folder = out.parent if file is not None else out
    writable(folder)
    quiet()
    from sfumato.media import pictures
    from sfumato.media.labels import overlay
    from sfumato.tasks import recipes
    from sfumato.tasks import train_head as task

    items: list[Any] = list(chain.items)
    method = recipes.filled(items[0], recipes.teaching(words[0], model), chain.named[0])
    word = getattr(method, "reads", FEATURES)
    suiting = recipes.suited(word, model, side)
    if method.source is not None:
        word, suiting = words[0], (method.source, recipes.suited(words[0], model, side)[1])
        if len(words) > 1:
            raise SfumatoError(f"{words[0]} reads pictures by itself; leave + {words[1]} out")
    elif len(words) > 1:
        word, suiting = words[1], recipes.suited(words[1], model, side, items[1], chain.named[1])
    source, side = suiting
    if not hasattr(source, "features"):
        raise SfumatoError(f"{word} reads no features that a head could learn of; take dift or label-efficient")
    if given is not None and (len(words) > 1 or method.source is not None):
        raise SfumatoError(f"features are given or read by {word}, not both; leave one out")
    net = loading.load(model, device)
    features = None if given is None else task.given(given)
    classes = tuple(w.strip() for w in names.split(",") if w.strip())
    seen = task.pictures(data, net, classes, method.seed, apart=getattr(method, "apart", False))
    note(f"{words[0]} on {len(seen)} pictures")
    marked = {**kept.settings_of(arguments), "methods": [method, source], "data": seen.digest, "test": None}
    stem = kept.named(folder, "train-head", ".safetensors", file.stem if file else words[0], marked)
    so_far = folder / f".{stem}.{kept.digest(marked)[:8]}.safetensors"
    head = task.train_head(net, seen, method, source, side=side, features=features, steps=steps, keep=so_far)
    files = [folder / f"{stem}.safetensors"]
    head.save(files[0])
    so_far.unlink(missing_ok=True)
    row: dict[str, Any] = {
        "method": repr(method), "features": str(given) if given else repr(source), "model": model, "data": data,
        "pictures": len(seen), **head.about,
    }  # fmt: skip
    if test is not None and hasattr(method, "errors"):
        others = task.pictures(test, net, classes, method.seed + 1, apart=True)
        row["test"] = method.errors(head, net, source, others.pixels, **others.known)
    elif test is not None and "points" in method.wants:
        row["test"] = task.errors(head, net, task.pictures(test, net, (), method.seed + 1), features)
    elif test is not None:
        others = task.pictures(test, net, () if method.takes_words else seen.names, method.seed + 1, method.takes_words)
        if others.labels is None:
            raise SfumatoError(f"{test} has no labels NAME-labels.png, so nothing can be measured on it")
        if method.takes_words and others.names:
            head = head.with_words(net, others.names)
        if method.takes_support:
            row["test"], found = task.measured_by_shots(head, net, others)
        else:
            segments = task.segments(head, net, others, features)
            row["test"], found = task.measured(segments, others.labels), dict(enumerate(segments))
        if (other := task.by_labels(head)) is not None:
            row["test"]["miou_by_labels"] = task.measured(task.segments(other, net, others, features), others.labels)[
                "miou"
            ]
        some = sorted(found)[:SHOWN]
        shown = [pictures.picture(others.pixels[i]) for i in some]
        over = [overlay(one, found[i].labels.cpu()) for one, i in zip(shown, some, strict=True)]
        files.append(pictures.write(pictures.grid([*shown, *over], len(shown)), folder / f"{stem}.png"))
    document = folder / f"{stem}.json"
    row["files"] = [str(f) for f in files]
    write_json(document, row, indent=1)
    if json:
        print_json({**row, "record": str(document)})
        return
    if test is not None:
        print("\n".join(f"{key} {value:.3f}" for key, value in row["test"].items()))
    print("\n".join([*row["files"], str(document)]))
