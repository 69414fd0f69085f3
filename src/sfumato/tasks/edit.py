"""Edit pictures by words: found again by an inversion, painted from there, and put back at their own size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core import denoising
from sfumato.core.backbone import Backbone
from sfumato.core.brief import Shown
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise
from sfumato.core.guidance import Guide, Scales, against
from sfumato.core.method import Method
from sfumato.core.plan import Plan
from sfumato.core.results import Sample
from sfumato.core.watch import Attention
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion, Path, invert, reconstruct
from sfumato.inversion.together import together
from sfumato.io.progress import Listener, counted, heard
from sfumato.media import images, overlays, pictures
from sfumato.media.images import Fit, Fitted, Sized
from sfumato.methods.edit.appearance import APPEARANCE
from sfumato.metrics.image import psnr
from sfumato.tasks.chain import Chain
from sfumato.tasks.kept import digest
from sfumato.tasks.previews import previewing
from sfumato.tasks.starts import How, start_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Edited(Shown):
    """What edits of pictures came to."""

    pictures: tuple[Picture, ...]
    """At their own sizes, with their own pixels where the edit changed nothing."""
    painted: Float[Tensor, "b 3 H W"]
    """As the model painted them, in [0, 1]."""
    changed: Bool[Tensor, "b h w"]
    """Cells of the latents that are not the source's."""


Words = str | tuple[str, ...]
"""Of all pictures, or of each its own."""


def edit_pictures(
    model: Backbone,
    fitted: Sequence[Fitted],
    path: Path,
    prompts: Mapping[str, Words],
    *,
    methods: Sequence[Method] = (),
    guide: Guide | Scales = 7.5,
    seed: int = 0,
    memory: int | None = None,
    inside: Bool[Tensor, "h w"] | None = None,
    preview_every: int = 0,
    on_progress: Listener | None = None,
) -> Edited:
    """Paint the stream ``target`` of ``prompts`` (one for all, or one each) along a path found from ``fitted``.

    An edit changes what differs from the stream ``source``, or, in a run without one, from the pictures themselves; of
    that what is ``inside`` of these cells, where they are said.
    Raises ``SfumatoError`` for what ``denoise`` refuses.
    """
    each = {stream: _each(words, len(fitted)) for stream, words in prompts.items()}
    options = {"guide": guide, "seed": seed, "memory": memory, "callback": previewing(preview_every, "target")}
    with heard(on_progress):
        out = denoise(model, each, start=path, methods=methods, **options)
    target = out["target"]
    source = out["source"] if "source" in out else Sample(model, path.image.to(target.latents), path.prompts)
    changed, painted = target.differs(source), target.images
    changed = changed if inside is None else changed & inside.to(changed.device)
    results = (f.restore(pictures.picture(x), c) for f, x, c in zip(fitted, painted, changed, strict=True))
    return Edited(tuple(results), painted, changed)


def _each(words: Words, pictures: int) -> list[str]:
    return [words] * pictures if isinstance(words, str) else list(words)


@dataclass(frozen=True)
class PictureEdit:
    """An edit as it is asked for: what pictures show and should show, from where, and by which methods."""

    source: Words
    target: Words
    start: Inversion
    methods: Sequence[Method] = ()
    guidance: float | None = None
    """None is the start's own."""
    looks: str | None = None
    """What the picture shows whose appearance is taken; such an edit goes without guidance."""
    negative: str = ""
    """What the edit should not be, in the place of the empty prompt."""
    seed: int | None = None
    """Of what is drawn while it is painted; None is the run's."""

    @classmethod
    def of(
        cls,
        chain: Chain,
        source: Words,
        target: Words,
        how: How | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        looks: str | None = None,
        negative: str = "",
    ) -> PictureEdit:
        """By the methods of a chain, from where the one that says so starts, or else ``how``."""
        chain = chain.given(seed=seed).stepped(steps)
        start = start_of(how, steps, guidance, seed, looks is not None)
        start = (chain.starter(start) if looks is None else start).against(negative)
        return cls(source, target, start, chain.methods, guidance, looks, negative, seed)

    def prepared(self, model: Backbone) -> PictureEdit:
        """With what its methods find out beforehand."""
        prompts = {stream: (words,) if isinstance(words, str) else words for stream, words in self.prompts.items()}
        return replace(self, methods=[method.prepare(model, prompts) for method in self.methods])

    @property
    def prompts(self) -> dict[str, Words]:
        """Of the run's streams; the picture itself is one where something follows it."""
        if self.looks is not None:
            return {"source": self.source, "target": self.target, APPEARANCE: self.looks}
        if self.start.has_source or self.methods:
            return {"source": self.source, "target": self.target}
        return {"target": self.target}

    def streams(self, pictures: int) -> dict[str, list[str]]:
        """Of the run's streams the prompt of each picture."""
        return {stream: _each(words, pictures) for stream, words in self.prompts.items()}

    def check(self, model: Backbone, pictures: int) -> None:
        """Raise ``SfumatoError`` where the two prompts of a picture differ only in what is cut off."""
        for source, target in zip(_each(self.source, pictures), _each(self.target, pictures), strict=True):
            model.check_change(source, target)

    def guide(self, model: Backbone) -> Guide:
        scales = 1.0 if self.looks is not None else self.start.guide(model, self.guidance)
        return against(model, scales, self.negative, self.prompts)

    def plan(
        self,
        model: Backbone,
        fitted: Sequence[Fitted],
        steps: int,
        memory: int | None = None,
        count: int | None = None,
        group: int | None = None,
    ) -> Plan:
        """What it reads, writes and costs, of these pictures or of so many such.

        Raises ``SfumatoError`` for what cannot be run.
        """
        height, width = fitted[0].pixels.shape[-2:]
        prompts = self.streams(count or len(fitted))
        options = {"guide": self.guide(model), "steps": steps, "size": (height, width), "memory": memory}
        options |= {"group": group, "views": self.start.alone()}
        return denoising.plan(model, prompts, methods=self.methods, **options)


@dataclass(frozen=True)
class EditRun(Shown):
    """An edit that was run."""

    edited: Edited
    plan: Plan
    steps: int
    """Along which it was painted."""
    seconds: float
    attention: tuple[Picture, ...] = ()
    """Where each word of the target looks in each picture, where that was asked for."""
    read_source: bool = True
    """Was what the picture shows read at all?"""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.edited.pictures


def fit_all(shown: Mapping[str, Picture], model: Sized, how: Fit = "whole") -> dict[str, Fitted]:
    """Pictures as a model sees them. ``SfumatoError`` where it would see them at several sizes."""
    fitted = {name: images.fit(picture, model.size, model.multiple, how) for name, picture in shown.items()}
    sizes = {name: f"{one.pixels.shape[-1]} x {one.pixels.shape[-2]}" for name, one in fitted.items()}
    if len(set(sizes.values())) > 1:
        seen = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise SfumatoError(f"pictures of a set are seen at one size, here: {seen}; crop them alike, or say --fit crop")
    return fitted


def kept_by(model: Backbone, pixels: Float[Tensor, "3 h w"]) -> float:
    """How near the autoencoder alone comes to a picture, in dB, up to ``SAME``: no edit keeps more of it."""
    return kept_each(model, pixels[None])[0]


def kept_each(model: Backbone, pixels: Float[Tensor, "b 3 h w"]) -> list[float]:
    """The same of several pictures."""
    with torch.no_grad():
        best = model.decode(model.encode(pixels.to(model.device))).cpu()
    return [min(SAME, float(kept)) for kept in psnr(best, pixels)]


def run_edits(
    model: Backbone,
    fitted: Sequence[Fitted],
    edits: Mapping[str, PictureEdit],
    *,
    appearance: Float[Tensor, "3 h w"] | None = None,
    attention: bool = False,
    seed: int = 0,
    memory: int | None = None,
    inside: Bool[Tensor, "h w"] | None = None,
    preview_every: int = 0,
    after: Callable[[str, EditRun], None] | None = None,
    on_progress: Listener | None = None,
) -> dict[str, EditRun]:
    """The same pictures by several edits. What cannot be run is refused before the first is inverted.

    ``appearance``: the picture, of the size of ``fitted``, whose looks are taken. ``inside``: cells of the latents
    outside of which pictures keep their pixels. ``after`` hears of each edit when it is done. Edits that start alike
    share what was inverted; the time of each has it.
    """
    net, edits = model, {name: edit.prepared(model) for name, edit in edits.items()}
    for edit in edits.values():
        edit.check(model, len(fitted))
        edit.plan(model, fitted, edit.start.steps, memory)
    inverted: dict[str, tuple[Path, set[str], float]] = {}

    def back(edit: PictureEdit) -> tuple[Path, set[str], float]:
        """The path, the prompts that were read, and how long it took."""
        key = digest([edit.start, edit.source])
        if key not in inverted:
            began, read, pixels = time.perf_counter(), set[str](), torch.stack([one.pixels for one in fitted])
            path = invert(_noting(net, read), pixels, edit.source, edit.start)
            inverted[key] = path, read, time.perf_counter() - began
        return inverted[key]

    def run(name: str, edit: PictureEdit) -> EditRun:
        path, before, spent = back(edit)
        began, read = time.perf_counter() - spent, {*before}
        model = _noting(net, read)
        if appearance is not None and edit.looks is not None:
            other = invert(model, appearance, edit.looks, edit.start)
            path = together({("source", "target"): path, APPEARANCE: other})
        watch = Attention("target") if attention else None
        methods = [*edit.methods, *([] if watch is None else [watch])]
        edited = edit_pictures(
            model,
            fitted,
            path,
            edit.prompts,
            methods=methods,
            guide=edit.guide(model),
            seed=seed if edit.seed is None else edit.seed,
            memory=memory,
            inside=inside,
            preview_every=preview_every,
        )
        seconds, steps = time.perf_counter() - began, len(path.levels)
        plan = edit.plan(model, fitted, steps or edit.start.steps, memory)
        targets, sheets = _each(edit.target, len(fitted)), []
        if watch is not None:
            shown = zip(map(pictures.picture, edited.painted), targets, strict=True)
            sheets = [overlays.sheet(p, watch.maps(model.words(text), i)) for i, (p, text) in enumerate(shown)]
        known = {*_each(edit.source, len(fitted))} <= {*read, *targets}
        done = EditRun(edited, plan, steps, seconds, tuple(sheets), known)
        if after is not None:
            after(name, done)
        return done

    with heard(on_progress):
        return {name: run(name, edit) for name, edit in edits.items()}


def _noting(model: Backbone, read: set[str]) -> Backbone:
    """The model, which adds the prompts that it reads to a set."""

    def noted(cond: Cond) -> Cond:
        read.update(cond.prompts)
        return cond

    return model.given(noted)


SAME = 100.0
"""dB of identical pictures, which have infinitely many."""


@dataclass(frozen=True)
class Inverted(Shown):
    """A picture found again from the noise that it comes from."""

    path: Path
    guidance: float
    """At which the way back was gone."""
    found: Float[Tensor, "3 h w"]
    """By following the path, in [0, 1]."""
    best: Float[Tensor, "3 h w"]
    """What the autoencoder alone makes of the picture."""
    psnr: float
    """Of ``found``, dB, up to ``SAME``."""
    psnr_best: float

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return pictures.picture(self.found), pictures.picture(self.best)


def invert_picture(
    model: Backbone,
    pixels: Float[Tensor, "3 h w"],
    prompt: str,
    how: Inversion,
    guidance: float = 7.5,
    negative: str = "",
    *,
    on_progress: Listener | None = None,
) -> Inverted:
    """Find the noise that a picture comes from, follow it back, and say how much of it is found again."""
    how, own = how.against(negative), how.source_guidance(guidance)
    guide = against(model, own, negative) if negative else own
    with heard(on_progress), counted("inverting, and going back", 2), torch.no_grad():
        path = invert(model, pixels, prompt, how)
        found = model.decode(reconstruct(model, path, guide)).cpu()
        best = model.decode(path.image).cpu()
    seen = pixels[None]
    return Inverted(path, own, found[0], best[0], *(min(SAME, float(psnr(x, seen))) for x in (found, best)))
