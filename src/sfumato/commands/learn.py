"""``sfumato learn``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.fields import sketch_of
from sfumato.commands.options import Device, Json, Model, Running, Seed, seed_of, slug, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods import index
from sfumato.methods.outline import look
from sfumato.tasks import chain as chains
from sfumato.tasks import kept
from sfumato.tasks.chain import Chain

DEFAULT = "textual-inversion"


def learn(
    photos: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="PHOTOS", help="Pictures of the thing, or a folder of them; three to five do."),
    ],
    *,
    as_: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            name="as",
            metavar="WORD",
            help="By which prompts will name it, as '<duck>'; again for a further thing in the pictures.",
        ),
    ],
    kind: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            help="What sort of thing it is, in words that the model knows [default: object, or what suits]; of several "
            "things each."
        ),
    ] = (),
    masks: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER",
            help="Pictures of the same names, white where the thing is; else all counts. Of several things a folder in "
            "it for each, by its word.",
        ),
    ] = None,
    mask_word: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="WORDS",
            help="What it is there, such as 'red mug', for the model to make masks where these words look; of several "
            "things each.",
        ),
    ] = (),
    cameras: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="JSON", help="Where each was seen from, as {'a.png': [azimuth, elevation]}; of methods of views."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="JSON", help="What each shows, as {'a.png': 'a cat {} a table'}, {} for the word; of relations."
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="What sfumato train-encoder wrote, of methods that begin with its word."),
    ] = None,
    steps: Annotated[int | None, tyro.conf.arg(help="Steps of the run [default: the method's].")] = None,
    repair: Annotated[
        bool,
        tyro.conf.arg(help="Take back what learning added to the word's length and direction (TEA)."),
        tyro.conf.FlagCreatePairsOff,
    ] = False,
    samples: Annotated[int, tyro.conf.arg(help="Pictures of the concept that are painted in the end.")] = 4,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path, tyro.conf.arg(help="Folder for the results; or the concept's file, such as duck.safetensors.")
    ] = Path("out/learn"),
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Teach a model what a few photographs show, as a word for prompts. A run that was stopped goes on.

    The method comes last, with options of its own: see sfumato learn METHOD --help; without one it is
    textual-inversion. Methods that learn from pictures of the kind as well paint these, and keep them in a folder named
    after it. Writes NAME.safetensors, the concept, which every command takes as --concept; NAME.png,
    photographs above what is painted of it; and NAME.json.

    Example: sfumato learn photos/ --as "<duck>" --kind "duck" --out duck.safetensors textual-inversion --vectors 2

    Example: sfumato learn a.png --as "<mug>" --as "<ball>" --mask-word mug --mask-word ball break-a-scene

    Then: sfumato generate "a <duck> on snow" --concept duck.safetensors
    """
    given = dict(locals())
    if steps is not None:
        whole("--steps", steps, 1, 10_000_000)
    whole("--samples", samples, 0, 64)
    seed_of(seed)
    if len(chain.names) > 1:
        raise SfumatoError(f"learn takes one method; they are: {', '.join(index.words(index.LEARNING))}")
    words = list(as_)
    if len(set(words)) < len(words) or not words:
        raise SfumatoError(f"each thing has a word of its own, such as '<duck>', got {', '.join(words) or 'none'}")
    if len(words) > 1 and len({slug(word) for word in words}) < len(words):
        raise SfumatoError(f"{', '.join(words)} would have the same folder of masks; give one another word")
    if len(kind) not in (0, 1, len(words)):
        raise SfumatoError(f"--kind is one for all words or as many as there are, {len(words)}; got {len(kind)}")
    if mask_word and (masks is not None or len(mask_word) != len(words)):
        what = "stands in the place of --masks" if masks is not None else f"is one for each of {len(words)} words"
        raise SfumatoError(f"--mask-word {what}")
    if not photos:
        raise SfumatoError("there is nothing to learn from; give photographs or a folder of them")
    name = index.find(chain.names[0] if chain.names else DEFAULT).word
    _complete(name, words, masks or mask_word, cameras, captions, encoder)
    for word in words:
        look("tasks.learn:new_word", None, word)
    look("tasks.learn:listed", photos)
    if masks is not None:
        look("tasks.learn:listed", [masks / slug(word) for word in words] if len(words) > 1 else [masks])
    for each, of in ((cameras, "_cameras"), (captions, "_captions")):
        if each is not None:
            look(f"tasks.learn:{of}", each, ())
    file = out if out.suffix.lower() == ".safetensors" else None
    folder = out.parent if file is not None else out
    writable(folder)
    quiet()
    import torch

    from sfumato.learning.tuning import rare
    from sfumato.media import pictures
    from sfumato.tasks import encoder as encoders
    from sfumato.tasks import learn as task
    from sfumato.tasks import recipes
    from sfumato.tasks.segment import Segmenter

    method, suited = recipes.learning(name, model)
    if chain.items:
        method = recipes.filled(chain.items[0], method, chain.named[0])
    count = method.steps if steps is None else steps
    kinds = dict(zip(words, kind if len(kind) == len(words) else (kind or (suited,)) * len(words), strict=True))
    seen = task.listed(photos)  # before the model is loaded
    net = loading.load(model, device)
    for word in words:
        task.new_word(net, word)
    if getattr(method, "identifier", "") is None and getattr(net, "learns", False):
        method = replace(method, identifier=rare(net, words[0]))
    begun = encoders.load(encoder, net) if encoder is not None else None
    if begun is not None:
        kinds = dict.fromkeys(words, begun.kind)
    of, things = kinds[words[0]], [slug(word) for word in words]
    most = count * getattr(method, "batch", 1)
    photographs = task.read(seen, net, most, masks, cameras, captions, things)
    if mask_word:
        reads, side = recipes.suited("text-attribution", model, None)
        photographs = task.segmented(photographs, Segmenter(net, replace(reads, words=mask_word), side=side), mask_word)
    note(f"{count} steps of {name} on {len(photographs)} photographs")
    settings = {"word": words[0], "kind": of, "kinds": kinds, "method": repr(method), "steps": count, "seed": seed,
                "model": model, "photographs": [str(f) for f in photographs.files]}  # fmt: skip
    marked = {**kept.settings_of(given), "methods": method, "photos": photographs.digest, "samples": None}
    stem = kept.named(folder, "learn", ".safetensors", file.stem if file else f"{slug(' '.join(words))}-{name}", marked)
    so_far = folder / f".{stem}.{kept.digest(marked)[:8]}.safetensors"
    prior = folder / f"{slug(method.at_large(of))}-{slug(Path(model).name)}"
    others = {word: kinds[word] for word in words[1:]}
    done = task.learn(net, photographs, words[0], method, kind=of, others=others, steps=steps, seed=seed, keep=so_far,
                      prior=prior, repair=repair, encoder=begun, samples=samples)  # fmt: skip
    files = [folder / f"{stem}.safetensors"]
    done.concept.save(files[0])
    so_far.unlink(missing_ok=True)
    if samples:
        shown = torch.cat([photographs.pixels[:samples], done.samples])
        files.append(pictures.write(pictures.sheet(shown, samples), folder / f"{stem}.png", {"word": " ".join(words)}))
    document = folder / f"{stem}.json"
    row = {**settings, "files": [str(f) for f in files]}
    write_json(document, row, indent=1)
    if json:
        print_json({**row, "record": str(document)})
    else:
        print("\n".join([*row["files"], str(document)]))


def _complete(
    name: str, words: Sequence[str], marks: object, cameras: object, captions: object, encoder: object
) -> None:
    """Refuse what a method does not learn from, and that something is missing from which it does."""
    method = sketch_of(name) or index.find(name).method
    if len(words) > 1 and not method.tells_apart:
        raise SfumatoError(f"{name} learns one word; break-a-scene learns several of one picture")
    for option, wanted, there in (
        ("--masks", method.wants_masks, marks),
        ("--cameras", method.wants_cameras, cameras),
        ("--captions", method.wants_captions, captions),
    ):
        if wanted and not there:
            by = f"{option} or --mask-word" if option == "--masks" else option
            raise SfumatoError(f"{name} learns from pictures with {option[2:]}; give them by {by}")
        if there and not wanted and option != "--masks":
            raise SfumatoError(f"{name} does not learn from {option[2:]}; leave {option} out, or take another method")
    if method.wants_encoder != bool(encoder):
        what = "begins with the word of an encoder; sfumato train-encoder makes one (--encoder)"
        raise SfumatoError(f"{name} {what if not encoder else 'reads no encoder; leave --encoder out'}")
