"""``sfumato edit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands import uses
from sfumato.commands.options import (
    Boxes,
    Device,
    EditGuidance,
    EditSteps,
    Fit,
    Invert,
    Json,
    Memory,
    Model,
    Negative,
    Photo,
    Running,
    Seed,
    ShowAttention,
    bytes_of,
    guidance_of,
    layout_of,
    mask_of,
    note_guidance,
    remark_picture,
    seed_of,
    whole,
)
from sfumato.commands.steering import Steering
from sfumato.errors import SfumatoError
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json, quiet
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks import kept, recipes
from sfumato.tasks.chain import Chain
from sfumato.tasks.kept import settings_of

if TYPE_CHECKING:
    from sfumato.media.images import Fitted
    from sfumato.tasks.edit import EditRun


def edit(
    image: Photo,
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the picture shows.")],
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")],
    negative: Negative = "",
    steps: EditSteps = None,
    guidance: EditGuidance = None,
    invert: Invert = None,
    appearance: Annotated[
        Path | None,
        tyro.conf.arg(metavar="IMAGE", help="A picture whose looks the edit takes, for methods of that kind."),
    ] = None,
    looks: Annotated[str, tyro.conf.arg(help="What that picture shows.")] = "",
    also: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="IMAGE ...", help="Further pictures of the same, edited with the first as one set."),
    ] = (),
    mask: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="IMAGE",
            help="The part that may change, white or opaque: for inpainting checkpoints and methods with a mask.",
        ),
    ] = None,
    steering: tyro.conf.OmitArgPrefixes[Steering],
    box: Boxes = (),
    compare: Annotated[
        str, tyro.conf.arg(metavar="METHOD,METHOD:PRESET", help="Run several, and lay their results side by side.")
    ] = "",
    show_attention: ShowAttention = False,
    fit: Fit = "whole",
    memory: Memory = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the result, a side-by-side and the plan.")] = Path("out/edit"),
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Edit an image file by words: it is inverted, painted again, and written at its own size.

    The methods come last, joined by +, each with options of its own: see sfumato edit METHOD --help, and sfumato
    methods for what they are. Where an edit left the source as it is, the picture keeps its own pixels. Pictures of
    --also are seen at the same size and written each as a file of its own; csd-edit makes their edits agree.

    Example: sfumato edit photo.png --from "a red cube on grass" --to "a blue cube on grass" prompt-to-prompt

    Example: sfumato edit photo.png --from "a cube" --to "a sphere" --compare p2p,masactrl,pnp

    Example: sfumato edit 1.png --also 2.png 3.png --from "a red cube" --to "a blue cube" csd-edit
    """
    given = dict(locals())
    if steps is not None:
        whole("--steps", steps, 1, 1000)
    seed_of(seed)
    limit = bytes_of(memory)
    guidance_of(guidance)
    specs = [spec.strip() for spec in compare.split(",") if spec.strip()]
    if bool(specs) == bool(chain.items):
        raise SfumatoError(f"edit takes methods, or --compare with several; they are: {', '.join(index.words())}")
    if len({*specs}) < len(specs):
        raise SfumatoError(f"--compare takes different methods, got {compare}")
    single = {"--appearance": appearance, "--show-attention": show_attention, "--control": steering.control}
    if also and (one := next(filter(single.get, single), None)):
        raise SfumatoError(f"{one} is of one picture alone; leave it or --also out")
    uses.beside("--looks", looks, "--appearance", appearance)
    layout = layout_of(box)
    chained = {spec: Chain((recipes.default(spec),), (spec,)) for spec in specs} or {"": chain}
    hole = mask_of(mask)
    chained = {spec: one.given(layout=layout, mask=hole) for spec, one in chained.items()}
    uses.boxes(layout, chained.values())
    uses.appearance(appearance, guidance, chained.values())
    uses.start(invert, chained.values())
    writable(out)
    quiet()
    from sfumato.media import images
    from sfumato.tasks.edit import PictureEdit, fit_all, kept_by, run_edits
    from sfumato.tasks.inpaint import Inpainting

    net = loading.load(model, device)
    note_guidance(net, guidance)
    shown = {name: images.opened(file) for name, file in _named((image, *also)).items()}
    fitted = fit_all(shown, net, fit)
    first = fitted[image.stem]
    height, width = first.pixels.shape[-2:]
    other = None if appearance is None else images.cropped(images.open_picture(appearance), height, width)
    asked = (source, target, invert, steps, guidance, seed, None if other is None else looks, negative)
    loading.remark(model, source, target, negative)
    remark_picture(model, lambda: kept_by(net, first.pixels))
    net = steering.steer(net, loading, steering.beside(net, first, fit), negative)
    hole = uses.mask(hole, net, chained.values())
    if hole is not None and (also or other is not None):
        raise SfumatoError(
            f"{model} is an inpainting checkpoint and sees one picture; leave --also and --appearance out"
        )
    part = None if hole is None else Inpainting.of(first, hole)
    net = net if part is None else part.given(net)
    if also and any(one.has_places for one in chained.values()):
        note(f"the masks and boxes are of {image.name}, and are taken for the others as well")
    edits = {name: PictureEdit.of(one.seeing(first), *asked) for name, one in chained.items()}
    uses.seed(seed, [(edit.start, *edit.methods) for edit in edits.values()])
    options = {"seed": seed, "memory": limit, "appearance": other, "attention": show_attention}
    options |= {} if part is None else {"inside": part.cells(net)}
    found = run_edits(net, tuple(fitted.values()), edits, **options)
    for name, done in found.items():
        if not done.read_source:
            note(f"{name or ' + '.join(chain.names)} does not read --from, what the picture shows")
    words = {"source": source, "target": target, **({} if other is None else {"appearance": looks})}
    words |= {"negative": negative} if negative else {}
    words |= {"guidance": guidance, "seed": seed, "model": model, **steering.settings()}
    settings = settings_of(given, list(chained.values()))
    files: dict[str, str] = {}
    for name, done in found.items():
        about = {**words, "method": name or chain.items, "steps": done.steps}
        files |= _write(done, out, list(fitted), name, about, {**settings, "compare": name})
    files |= _beside(out, fitted, found, words, settings)
    runs = [{"method": name, "seconds": round(done.seconds, 2), "steps": done.steps} for name, done in found.items()]
    print_json({**files, "runs": runs}) if json else print("\n".join(files.values()))


def _named(files: tuple[Path, ...]) -> dict[str, Path]:
    """Files by the names that their results get."""
    named = {file.stem: file for file in files}
    if len(named) < len(files):
        twice = next(file.stem for file in files if named[file.stem] != file or files.count(file) > 1)
        raise SfumatoError(f"two of the pictures are called {twice}, and so would their results be; rename one")
    return named


def _write(
    done: EditRun, out: Path, stems: list[str], name: str, words: dict[str, Any], settings: dict[str, Any]
) -> dict[str, str]:
    """Each picture, the plan, and where the words looked."""
    from sfumato.media import pictures

    end, stems = f" {name}" if name else "", ["-".join(filter(None, (s, name.replace(":", "-")))) for s in stems]
    stems = [kept.named(out, "edit", "-edited.png", stem, {**settings, "of": stem}) for stem in stems]
    stem, plan = stems[0], out / f"{stems[0]}-plan.json"
    files = {
        f"image{f' {i}' if i else ''}{end}": pictures.write(result, out / f"{each}-edited.png", words)
        for i, (each, result) in enumerate(zip(stems, done.edited.pictures, strict=True))
    }
    files[f"plan{end}"] = plan
    write_json(plan, done.plan.table(), indent=2)
    if done.attention is not None:
        files[f"attention{end}"] = pictures.write(done.attention, out / f"{stem}-attention.png", words)
    return {key: str(file) for key, file in files.items()}


def _beside(
    out: Path, fitted: dict[str, Fitted], found: dict[str, EditRun], words: dict[str, Any], settings: dict[str, Any]
) -> dict[str, str]:
    """Each picture beside its edit, or of several a sheet with their names."""
    from sfumato.media import pictures

    stem, results = next(iter(fitted)), zip(*(done.edited.pictures for done in found.values()), strict=True)
    rows = [[one.original, *edited] for one, edited in zip(fitted.values(), results, strict=True)]
    first, columns = rows[0][0].size, 1 + len(found)
    shown = [picture if picture.size == first else picture.resize(first) for row in rows for picture in row]
    tail = "beside" if list(found) == [""] else "compare"
    stem = kept.named(out, tail, f"-{tail}.png", stem, settings)
    if tail == "beside":
        return {"beside": str(pictures.write(pictures.grid(shown, columns), out / f"{stem}-beside.png", words))}
    labels = ["the picture", *found] * len(rows)
    sheet = pictures.labelled(shown, labels, columns=min(4, columns) if len(rows) == 1 else columns)
    return {"compare": str(pictures.write(sheet, out / f"{stem}-compare.png", words))}
