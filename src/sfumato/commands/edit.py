"""``sfumato edit``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands.editing import Asked, How
from sfumato.commands.options import (
    Boxes,
    Device,
    Fit,
    Json,
    Model,
    Photo,
    Running,
    Seed,
    ShowAttention,
    layout_of,
    seed_of,
    whole,
)
from sfumato.errors import SfumatoError
from sfumato.io.files import writable
from sfumato.io.terminal import print_json, quiet
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks import recipes
from sfumato.tasks.chain import Chain

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from sfumato.core.backbone import Backbone
    from sfumato.core.plan import Plan
    from sfumato.core.watch import Attention
    from sfumato.media.images import Fitted


def edit(
    image: Photo,
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the picture shows.")],
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")],
    steps: Annotated[int | None, tyro.conf.arg(help="DDIM steps [default: the method's, or 50].")] = None,
    guidance: Annotated[
        float | None, tyro.conf.arg(help="Classifier-free guidance of the edit [default: the method's, or 7.5].")
    ] = None,
    invert: Annotated[
        How | None, tyro.conf.arg(help="The inversion, for methods without one of their own [default: direct].")
    ] = None,
    appearance: Annotated[
        Path | None,
        tyro.conf.arg(metavar="IMAGE", help="A picture whose looks the edit takes, for methods of that kind."),
    ] = None,
    looks: Annotated[str, tyro.conf.arg(help="What that picture shows.")] = "",
    also: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="IMAGE ...", help="Further pictures of the same, edited with the first as one set."),
    ] = (),
    box: Boxes = (),
    compare: Annotated[
        str, tyro.conf.arg(metavar="METHOD,METHOD:PRESET", help="Run several, and lay their results side by side.")
    ] = "",
    show_attention: ShowAttention = False,
    fit: Fit = "whole",
    memory: Annotated[float, tyro.conf.arg(help="GiB that attention maps may take.")] = 8.0,
    model: Model = "stilllife",
    loading: tyro.conf.OmitArgPrefixes[Running],
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, tyro.conf.arg(help="Folder for the result, a side-by-side and the plan.")] = Path("out/edit"),
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Edit an image file by words: it is inverted, painted again, and written at its own size.

    The methods come last, joined by +, each with options of its own: see sfumato edit METHOD --help, and sfumato show
    methods for what they are. Where an edit left the source as it is, the picture keeps its own pixels. Pictures of
    --also are seen at the same size and written each as a file of its own; csd-edit makes their edits agree.

    Example: sfumato edit photo.png --from "a red cube on grass" --to "a blue cube on grass" prompt-to-prompt

    Example: sfumato edit photo.png --from "a cube" --to "a sphere" --compare p2p,masactrl,pnp

    Example: sfumato edit 1.png --also 2.png 3.png --from "a red cube" --to "a blue cube" csd-edit
    """
    if steps is not None:
        whole("--steps", steps, 1, 1000)
    seed_of(seed)
    specs = [spec.strip() for spec in compare.split(",") if spec.strip()]
    if bool(specs) == bool(chain.items):
        raise SfumatoError(f"edit takes methods, or --compare with several; they are: {', '.join(index.words())}")
    if also and (appearance is not None or show_attention):
        raise SfumatoError(
            f"{'--appearance' if appearance is not None else '--show-attention'} is of one picture alone"
        )
    chained = {spec: Chain((recipes.default(spec),), (spec,)) for spec in specs} or {"": chain}
    writable(out)
    quiet()
    from sfumato.media import images

    net = loading.load(model, device)
    photos = _named((image, *also))
    fitted = {name: images.fit(images.open_picture(file), net.size, net.multiple, fit) for name, file in photos.items()}
    height, width = _one_size(fitted)
    other = None if appearance is None else _of_size(images.open_picture(appearance), height, width)
    work = _Work(net, tuple(fitted.values()), (height, width), int(memory * 2**30), seed, show_attention, other)
    prompts, layout = {"source": source, "target": target}, layout_of(box)
    prompts |= {} if other is None else {"appearance": looks}
    edits: dict[str, _Edit] = {}
    asked: dict[str, Asked] = {}
    for name, one in chained.items():  # what cannot be run is refused before the first inversion
        one = one.given(layout=layout).seeing(fitted[image.stem])
        asked[name] = Asked.of(one, net, prompts, invert, steps, guidance, seed)
        work.planned(asked[name], asked[name].start.steps)
    for name, what in asked.items():
        edits[name] = work.edit(what)
    about = {**prompts, "guidance": guidance, "seed": seed, "model": model}
    files: dict[str, str] = {}
    for name, done in edits.items():
        files |= done.write(out, list(photos), name, {**about, "method": name or chain.items, "steps": done.steps})
    files |= _beside(out, fitted, edits, about)
    runs = [{"method": name, "seconds": round(done.seconds, 2), "steps": done.steps} for name, done in edits.items()]
    print_json({**files, "runs": runs}) if json else print("\n".join(files.values()))


def _named(files: tuple[Path, ...]) -> dict[str, Path]:
    """Files by the names that their results get."""
    named = {file.stem: file for file in files}
    if len(named) < len(files):
        twice = next(file.stem for file in files if named[file.stem] != file or files.count(file) > 1)
        raise SfumatoError(f"two of the pictures are called {twice}, and so would their results be; rename one")
    return named


def _one_size(fitted: dict[str, Fitted]) -> tuple[int, int]:
    """Height and width at which all pictures are seen."""
    sizes = {name: f"{one.pixels.shape[-1]} x {one.pixels.shape[-2]}" for name, one in fitted.items()}
    if len(set(sizes.values())) > 1:
        sides = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise SfumatoError(f"pictures of a set are seen at one size, here: {sides}; crop them alike, or say --fit crop")
    height, width = next(iter(fitted.values())).pixels.shape[-2:]
    return height, width


@dataclass(frozen=True)
class _Edit:
    """What one edit came to."""

    results: tuple[Picture, ...]
    painted: Picture
    plan: Plan
    steps: int
    seconds: float
    words: list[tuple[str, slice]]
    attention: Attention | None

    def write(self, out: Path, stems: list[str], name: str, about: dict[str, Any]) -> dict[str, str]:
        from sfumato.io.files import write_text
        from sfumato.media import overlays, pictures

        end, stems = f" {name}" if name else "", ["-".join(filter(None, (s, name.replace(":", "-")))) for s in stems]
        stem, plan = stems[0], out / f"{stems[0]}-plan.json"
        files = {
            f"image{f' {i}' if i else ''}{end}": pictures.write(result, out / f"{each}-edited.png", about)
            for i, (each, result) in enumerate(zip(stems, self.results, strict=True))
        }
        files[f"plan{end}"] = plan
        write_text(plan, dumps(self.plan.table(), indent=2) + "\n")
        if self.attention is not None:
            sheet = overlays.sheet(self.painted, self.attention.maps(self.words))
            files[f"attention{end}"] = pictures.write(sheet, out / f"{stem}-attention.png", about)
        return {key: str(file) for key, file in files.items()}


def _beside(out: Path, fitted: dict[str, Fitted], edits: dict[str, _Edit], about: dict[str, Any]) -> dict[str, str]:
    """Each picture beside its edit, or of several a sheet with their names."""
    from sfumato.media import pictures

    stem, results = next(iter(fitted)), zip(*(done.results for done in edits.values()), strict=True)
    rows = [[one.original, *edited] for one, edited in zip(fitted.values(), results, strict=True)]
    first, columns = rows[0][0].size, 1 + len(edits)
    shown = [picture if picture.size == first else picture.resize(first) for row in rows for picture in row]
    if list(edits) == [""]:
        return {"beside": str(pictures.write(pictures.grid(shown, columns), out / f"{stem}-beside.png", about))}
    labels = ["the picture", *edits] * len(rows)
    sheet = pictures.labelled(shown, labels, columns=min(4, columns) if len(rows) == 1 else columns)
    return {"compare": str(pictures.write(sheet, out / f"{stem}-compare.png", about))}


def _of_size(picture: Picture, height: int, width: int) -> Tensor:
    """The middle of a picture, at this size, in [0, 1]."""
    from PIL import Image, ImageOps

    from sfumato.media.images import tensor

    return tensor(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class _Work:
    """Pictures, and the model that edits them."""

    net: Backbone
    fitted: tuple[Fitted, ...]
    size: tuple[int, int]
    memory: int
    seed: int
    show_attention: bool
    appearance: Tensor | None

    def planned(self, asked: Asked, steps: int) -> Plan:
        from sfumato.core.denoising import plan

        options = {"guide": asked.guide, "steps": steps, "size": self.size, "memory": self.memory}
        prompts = {stream: [prompt] * len(self.fitted) for stream, prompt in asked.prompts.items()}
        return plan(self.net, prompts, methods=asked.methods, **options)

    def edit(self, asked: Asked) -> _Edit:
        import torch

        from sfumato.core.watch import Attention
        from sfumato.inversion import invert
        from sfumato.inversion.together import together
        from sfumato.media import pictures
        from sfumato.tasks.edit import edit_pictures

        began = time.perf_counter()
        described = asked.prompts.get("source", asked.source)
        path = invert(self.net, torch.stack([one.pixels for one in self.fitted]), described, asked.start)
        if self.appearance is not None:
            other = invert(self.net, self.appearance, asked.prompts["appearance"], asked.start)
            path = together({("source", "target"): path, "appearance": other})
        watching = [Attention("target")] if self.show_attention else []
        options = {"guide": asked.guide, "seed": self.seed, "memory": self.memory}
        done = edit_pictures(self.net, self.fitted, path, asked.prompts, methods=[*asked.methods, *watching], **options)
        seconds, steps = time.perf_counter() - began, len(path.levels)
        words = self.net.words(asked.prompts["target"])
        plan = self.planned(asked, steps or asked.start.steps)
        painted = pictures.picture(done.painted[0])
        return _Edit(done.pictures, painted, plan, steps, seconds, words, next(iter(watching), None))
