"""``sfumato edit``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands import edited, grids, uses
from sfumato.commands.edited import Unit
from sfumato.commands.fields import sketched
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
    Overwrite,
    Running,
    Seed,
    ShowAttention,
    Usage,
    bytes_of,
    layout_of,
    mask_of,
    note_guidance,
    remark_pictures,
)
from sfumato.commands.reading import files_of
from sfumato.commands.steering import Steering
from sfumato.commands.wanted import Wanted, changed, default, listed
from sfumato.errors import SfumatoError
from sfumato.io.files import writable
from sfumato.io.progress import progress, worth
from sfumato.io.terminal import note, quiet
from sfumato.media import opening
from sfumato.methods import index
from sfumato.tasks import chain as chains
from sfumato.tasks.chain import Chain
from sfumato.tasks.kept import digest

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone
    from sfumato.media.images import Fitted
    from sfumato.prompts.layout import Mask
    from sfumato.tasks.edit import EditRun, PictureEdit

_OWN = {
    "images",
    "source",
    "target",
    "of_list",
    "in_grid",
    "negative",
    "steps",
    "guidance",
    "invert",
    "seed",
    "compare",
}
_OWN |= {"out", "overwrite", "json", "memory", "device", "chain", "show_attention"}
"""Arguments that are of each edit, or change no result."""


def edit(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        Usage(
            "IMAGE ... --from STR --to STR",
            ("--from STR (What the picture shows)", "--to STR (What it should show)"),
        ),
        tyro.conf.arg(metavar="IMAGE", help="Picture files of any kind, or folders of them."),
    ] = (),
    *,
    source: Annotated[str, tyro.conf.arg(name="from", help="What the picture shows.")] = "",
    target: Annotated[str, tyro.conf.arg(name="to", help="What it should show.")] = "",
    of_list: Annotated[
        Path | None,
        tyro.conf.arg(
            name="list",
            metavar="FILE",
            help="Edits in a .csv or .jsonl file instead, with the columns picture, from, to, method, seed, guidance, "
            "steps, negative; what a row leaves open is as said here.",
        ),
    ] = None,
    in_grid: Annotated[tuple[str, ...], grids.option("guidance, steps, seed, invert")] = (),
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
    out: Annotated[Path, tyro.conf.arg(help="Folder for results and side-by-sides.")] = Path("out/edit"),
    overwrite: Overwrite = False,
    json: Json = False,
    chain: tyro.conf.Suppress[tyro.conf.Fixed[Chain]] = chains.NONE,
) -> None:
    """Edit pictures by words: each is inverted, painted again, and written at its own size.

    The methods come last, joined by +, each with options of its own: see sfumato edit METHOD --help, and sfumato
    methods for what they are. Where an edit left the source as it is, the picture keeps its own pixels. Pictures of one
    shape are edited together, and each is written as it is done; the same command again goes on behind what is there.
    Pictures of --also are seen at the same size as the first, as one set; csd-edit makes their edits agree.

    Example: sfumato edit photo.png --from "a red cube on grass" --to "a blue cube on grass" prompt-to-prompt

    Example: sfumato edit photo.png --from "a cube" --to "a sphere" --compare p2p,masactrl,pnp

    Example: sfumato edit photo.png --from "a cube" --to "a sphere" --grid guidance=4,7.5 cross=0.4,0.8 p2p

    Example: sfumato edit --list edits.csv p2p

    Example: sfumato edit 1.png --also 2.png 3.png --from "a red cube" --to "a blue cube" csd-edit
    """
    given = dict(locals())
    plain, grid = Wanted(Path(), source, target, chain, negative, steps, guidance, invert, seed), grids.cells(in_grid)
    limit, layout = bytes_of(memory), layout_of(box)
    rows = _rows(plain, images, also, of_list)
    several = of_list is not None or (len(rows) > 1 and not also)
    specs = [spec.strip() for spec in compare.split(",") if spec.strip()]
    if any(bool(specs) == bool(row.chain.names) for row in rows):
        raise SfumatoError(f"edit takes methods, or --compare with several; they are: {', '.join(index.words())}")
    if len({*specs}) < len(specs):
        raise SfumatoError(f"--compare takes different methods, got {compare}")
    if specs and in_grid:
        raise SfumatoError("--compare is of methods, and --grid of settings of one; give one of them")
    single = {"--appearance": appearance, "--show-attention": show_attention, "--control": steering.control}
    if also and (one := next(filter(single.get, single), None)):
        raise SfumatoError(f"{one} is of one picture alone; leave it or --also out")
    uses.beside("--looks", looks, "--appearance", appearance)
    named = [{spec: default(spec, row) for spec in specs} or dict.fromkeys(grid, row) for row in rows]

    def by(methods: Callable[[Chain], Chain], hole: Mask | None = None) -> list[dict[str, Wanted]]:
        every = [{key: replace(one, chain=methods(one.chain)) for key, one in each.items()} for each in named]
        every = [{key: changed(one, grid.get(key, ())) for key, one in each.items()} for each in every]
        return [{key: one.given(layout, hole) for key, one in each.items()} for each in every]

    every = [one.chain for each in by(sketched) for one in each.values()]  # before methods are imported
    uses.boxes(layout, every)
    uses.appearance(appearance, guidance, every)
    uses.start(invert, every)
    kinds = by(lambda chain: chain, hole := mask_of(mask))
    every = [one.chain for each in kinds for one in each.values()]
    writable(out)
    shared = {key: value for key, value in given.items() if key not in _OWN}
    units = edited.units(
        out, kinds, shared, "compare" if specs else "grid" if in_grid else "beside", bool(also), overwrite
    )
    try:
        if all(unit.done for unit in units):
            failed = []
            note(f"{units[0].file(next(iter(units[0].edits)))} {'and the others were' if several else 'was'} there")
        else:
            net = _loaded(loading, model, device, rows, guidance)
            hole = uses.mask(hole, net, every)
            if hole is not None and (also or appearance is not None):
                raise SfumatoError(
                    f"{model} is an inpainting checkpoint and sees one picture; leave --also and --appearance out"
                )
            if also and any(one.has_places for one in every):
                note(f"the masks and boxes are of {rows[0].picture.name}, and are taken for the others as well")
            kind = (bool(also), several, not (several or in_grid))
            work = _Work(net, model, steering, loading, fit, appearance, looks, hole, limit, show_attention, *kind)
            columns = grids.columns(in_grid) if in_grid else 3
            failed = work([unit for unit in units if also or not unit.done], columns)
    finally:
        for unit in units:
            unit.release()
    edited.tell(out, units, failed, several, json)


def _loaded(loading: Running, model: str, device: str, rows: Sequence[Wanted], guidance: float | None) -> Backbone:
    quiet()
    net = loading.load(model, device)
    note_guidance(net, guidance)
    loading.remark(model, *dict.fromkeys(text for row in rows for text in (row.source, row.target, row.negative)))
    return net


def _rows(plain: Wanted, images: Sequence[Path], also: Sequence[Path], of_list: Path | None) -> list[Wanted]:
    """The edits that are asked for. ``SfumatoError`` for words that are missing, and pictures that are not there."""
    if of_list is not None and (images or also):
        raise SfumatoError("--list names the pictures; leave those before it out")
    if also and len(images) > 1:
        raise SfumatoError("--also goes on from one picture; give one before it")
    for file in also:
        opening.checked(file)
    rows = listed(of_list, plain) if of_list else [plain]
    if of_list is None:
        rows = [replace(plain, picture=file) for file in (*files_of(images, "edit", index.PAINTING), *also)]
    for row in rows:
        if not row.picture.exists():
            raise SfumatoError(f"there is no file {row.picture}")
        if not row.source or not row.target:
            raise SfumatoError(f"the edit of {row.picture} needs --from, what it shows, and --to, what it should show")
    return rows


@dataclass(frozen=True)
class _Work:
    """Edits as a model makes them, of as many pictures together as go."""

    net: Backbone
    model: str
    steering: Steering
    loading: Running
    fit: Fit
    appearance: Path | None
    looks: str
    hole: Mask | None
    limit: int
    attention: bool
    as_set: bool
    several: bool
    plans: bool

    def __call__(self, units: Sequence[Unit], columns: int) -> list[str]:
        """Paints and writes, of sheets so many edits a row; gives the pictures that failed."""
        failed: list[str] = []
        total = sum(len(unit.edits) for unit in units)
        uses.seed(units[0].plain.seed, [(edit.start, *edit.methods) for edit in self._asked(units[:1]).values()])
        with progress("edits", total) as advance:

            def tried(some: Sequence[Unit]) -> None:
                try:
                    self._fitted(some, columns, advance)
                except SfumatoError as e:
                    if not self.several:
                        raise
                    if len(some) > 1:
                        for unit in some:
                            tried([unit])
                    else:
                        failed.append(str(some[0].picture))
                        note(f"{some[0].picture}: {e}")
                        advance(len(some[0].edits))

            for some in self._alike(units):
                tried(some)
        return failed

    def _alike(self, units: Sequence[Unit]) -> Iterator[list[Unit]]:
        """Those of the same settings, as many as are painted together."""
        from sfumato.tasks.generate import BATCH

        groups: dict[str, list[Unit]] = {}
        for unit in units:
            groups.setdefault(digest([(label, one.settings(False)) for label, one in unit.edits.items()]), []).append(
                unit
            )
        for group in groups.values():
            most = len(group) if self.as_set else 1 if self._alone(group[0]) else BATCH
            for first in range(0, len(group), most):
                yield group[first : first + most]

    def _alone(self, unit: Unit) -> bool:
        """Is a picture edited by itself, as something is of it alone, or as pictures of a run have a part in others?"""
        methods = [m for edit in self._asked([unit]).values() for m in (edit.start, *edit.methods)]
        apart = any(not m.requires.batch or m.requires.set for m in methods)
        given = self.hole is not None or self.appearance is not None or bool(self.steering.control)
        return apart or given or any(one.chain.has_places for one in unit.edits.values())

    def _asked(self, some: Sequence[Unit], first: Fitted | None = None) -> dict[str, PictureEdit]:
        """The edits of pictures with the same settings; each has its own words."""
        from sfumato.tasks.edit import PictureEdit

        out, looks = {}, None if self.appearance is None else self.looks
        for label, one in some[0].edits.items():
            words = zip(*((unit.edits[label].source, unit.edits[label].target) for unit in some), strict=True)
            source, target = (each[0] if len({*each}) == 1 else each for each in words)
            chain = one.chain if first is None else one.chain.seeing(first)
            options = (one.invert, one.steps, one.guidance, one.seed, looks, one.negative)
            out[label] = PictureEdit.of(chain, source, target, *options)
        return out

    def _fitted(self, some: Sequence[Unit], columns: int, advance: Callable[[int], None]) -> None:
        """Pictures as the model sees them, and their edits: those of one size together."""
        import torch

        from sfumato.media import images
        from sfumato.tasks.edit import fit_all, kept_each

        shown = [images.opened(unit.picture) for unit in some]
        if self.as_set:
            stems = [unit.picture.stem for unit in some]
            names = stems if len({*stems}) == len(stems) else [f"{i} {stem}" for i, stem in enumerate(stems, 1)]
            fitted = list(fit_all(dict(zip(names, shown, strict=True)), self.net, self.fit).values())
        else:
            fitted = [images.fit(x, self.net.size, self.net.multiple, self.fit) for x in shown]
        sizes: dict[tuple[int, ...], list[tuple[Unit, Fitted]]] = {}
        for unit, one in zip(some, fitted, strict=True):
            sizes.setdefault(tuple(one.pixels.shape), []).append((unit, one))
        for of_size in sizes.values():
            these, seen = zip(*of_size, strict=True)
            pixels = torch.stack([one.pixels for one in (seen[:1] if self.as_set else seen)])
            names = [str(unit.picture) if self.several else "" for unit in these]
            remark_pictures(self.model, partial(kept_each, self.net, pixels), names)
            self._paint(these, seen, advance)
            for group in [these] if self.as_set else [[unit] for unit in these]:
                edited.sheet(
                    group,
                    [one.original for unit, one in of_size if unit in group],
                    columns,
                    self._about(group[0].plain),
                )

    def _paint(self, some: Sequence[Unit], seen: Sequence[Fitted], advance: Callable[[int], None]) -> None:
        """The edits that are not there."""
        from sfumato.media import images
        from sfumato.methods.sets.noise import Shared
        from sfumato.tasks.edit import run_edits
        from sfumato.tasks.inpaint import Inpainting

        height, width = seen[0].pixels.shape[-2:]
        other = None if self.appearance is None else images.cropped(images.open_picture(self.appearance), height, width)
        one = some[0].plain
        pictures = self.steering.beside(self.net, seen[0], self.fit)
        net = self.steering.steer(self.net, self.loading, pictures, one.negative)
        part = None if self.hole is None else Inpainting.of(seen[0], self.hole)
        net = net if part is None else part.given(net)
        net = net if self.as_set or len(some) == 1 else net.with_noises(Shared())  # of the seed, each as alone
        edits = self._asked(some, seen[0])
        if (
            len(some) > 1
            and not self.as_set
            and any(e.plan(net, seen, e.start.steps).bytes > self.limit for e in edits.values())
        ):
            for unit, alone in zip(some, seen, strict=True):
                self._paint([unit], [alone], advance)
            return

        unread: list[str] = []

        def keep(label: str, run: EditRun) -> None:
            if not run.read_source and not self.several:
                unread.append(label)
            for i, unit in enumerate(some):
                about = {**self._about(unit.edits[label]), "method": unit.edits[label].chain.items, "steps": run.steps}
                unit.write(label, run, i, about, plan=i == 0 and self.plans)
            advance(len(some))

        there = [label for label in edits if all(unit.has(label) for unit in some)]
        advance(len(there) * len(some))
        left = {label: edit for label, edit in edits.items() if label not in there}
        options = {"memory": self.limit, "appearance": other, "attention": self.attention, "after": keep}
        options |= {} if part is None else {"inside": part.cells(net)}
        with worth(len(some)):
            run_edits(net, seen, left, **options)
        if unread:
            methods = dict.fromkeys(" + ".join(some[0].edits[label].chain.names) for label in unread)
            named = [*methods] if len(unread) == len(left) else unread
            note(f"{' and '.join(named)} {'does' if len(named) == 1 else 'do'} not read --from, what the picture shows")

    def _about(self, one: Wanted) -> dict[str, Any]:
        """What a picture tells of how it was made."""
        words = {"source": one.source, "target": one.target}
        words |= {} if self.appearance is None else {"appearance": self.looks}
        words |= {"negative": one.negative} if one.negative else {}
        return {**words, "guidance": one.guidance, "seed": one.seed, "model": self.model, **self.steering.settings()}
