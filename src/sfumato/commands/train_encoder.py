"""``sfumato train-encoder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, Model, Running, Seed, seed_of, whole
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods.outline import look
from sfumato.tasks import kept


def train_encoder(
    pictures: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(
            metavar="PICTURES",
            help="Pictures of many things of one domain, or a folder of them, each with its caption in a .txt of the "
            "same name where there are captions, {} for the thing, or {red cube} to say what it is [default: still "
            "lifes that are rendered].",
        ),
    ] = (),
    *,
    kind: Annotated[
        str | None, tyro.conf.arg(help="The domain's own word, which the model knows, such as face [default: cube].")
    ] = None,
    n: Annotated[
        int | None, tyro.conf.arg(help="Pictures that are learned from [default: all; of renders 640].")
    ] = None,
    steps: Annotated[int | None, tyro.conf.arg(help="Steps of the run [default: 100000; built-in model 120].")] = None,
    rate: Annotated[float | None, tyro.conf.arg(help="Of AdamW [default: 1.6e-5; built-in model 2e-4].")] = None,
    batch: Annotated[int | None, tyro.conf.arg(help="Pictures of a step [default: 16; built-in model 4].")] = None,
    vectors: Annotated[
        int | None, tyro.conf.arg(help="How many a word is read as [default: 1; built-in model 2].")
    ] = None,
    samples: Annotated[
        int, tyro.conf.arg(help="Pictures that are kept from it, and painted by the words that it gives them.")
    ] = 4,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="The encoder's file, or a folder for it.")] = Path("out/encoder"),
    json: Json = False,
) -> None:
    """Teach an encoder to say what word a picture is, for sfumato learn encoder-tuning. A run that was stopped goes on.

    Writes NAME.safetensors, the encoder; NAME.png, pictures that it never saw above what the model paints by the words
    that it gives them; and NAME.json.

    Example: sfumato train-encoder --steps 120 --out things.safetensors

    Then: sfumato learn photos/ --as "<duck>" --encoder things.safetensors encoder-tuning
    """
    given = dict(locals())
    for name, value, most in (("--steps", steps, 10_000_000), ("--n", n, 10_000_000), ("--batch", batch, 4096)):
        if value is not None:
            whole(name, value, 1, most)
    whole("--samples", samples, 0, 64)
    seed_of(seed)
    if not pictures and model != "stilllife":
        raise SfumatoError(f"there is nothing to teach an encoder of {model} with; give pictures of one domain")
    look("tasks.encoder:settings", model, rate=rate, batch=batch, vectors=vectors)
    if pictures:
        look("tasks.learn:listed", pictures)
    file = out if out.suffix.lower() == ".safetensors" else None
    folder = writable(out.parent if file is not None else out)
    quiet()
    import torch

    from sfumato.media import pictures as sheets
    from sfumato.tasks import encoder as task
    from sfumato.tasks.learn import listed

    settings = task.settings(model, rate=rate, batch=batch, vectors=vectors)
    seen = listed(pictures) if pictures else []  # before the model is loaded
    net = loading.load(model, device)
    if pictures:
        domain = task.of_files(seen, net, None if n is None else n + samples)
    else:
        domain = task.still_lifes((task.STILL_LIFES if n is None else n) + samples, seed, net.size)
    learned, kept_out = domain.split(samples)
    count = settings.steps if steps is None else steps
    note(f"{count} steps of an encoder on {len(learned)} pictures")
    marked = {**kept.settings_of(given), "pictures": domain.digest}
    stem = kept.named(folder, "encoder", ".safetensors", file.stem if file else "encoder", marked)
    so_far = folder / f".{stem}.{kept.digest(marked)[:8]}.safetensors"
    kind = kind or task.KIND
    done = task.train(net, learned, kind, settings, steps=steps, seed=seed, keep=so_far)
    files = [folder / f"{stem}.safetensors"]
    done.save(files[0])
    so_far.unlink(missing_ok=True)
    if samples:
        shown = torch.cat([kept_out.pixels, task.painted(net, done, kept_out, seed)])
        files.append(sheets.write(sheets.sheet(shown, samples), folder / f"{stem}.png", {"kind": kind}))
    document = folder / f"{stem}.json"
    row = {"kind": kind, "settings": repr(settings), "steps": count, "seed": seed, "model": model,
           "pictures": len(learned), "files": [str(f) for f in files]}  # fmt: skip
    write_json(document, row, indent=1)
    if json:
        print_json({**row, "record": str(document)})
    else:
        print("\n".join([*row["files"], str(document)]))
