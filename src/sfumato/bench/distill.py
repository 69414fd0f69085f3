"""``sfumato bench distill``: what score distillation makes of prompts, in two dimensions, beside plain sampling.

Prompts are the captions of fresh renders of one thing, so that what was made can be compared with what it says. Every
method is run as published and, where that differs, as it suits the built-in model; ``METHODS`` says how.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.generate import applied
from sfumato.bench.ports import threestudio
from sfumato.bench.report import Comparison, Figure, Report, Target, gather
from sfumato.bench.session import SEEDS, Session
from sfumato.bench.units import Row, Units, columns
from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.distill import Distillation, Now, Times, apply_gradient, canvases, constant
from sfumato.experiments.common import Subjects
from sfumato.experiments.kappa_error import KappaError
from sfumato.experiments.one_noise import OneNoise
from sfumato.inversion import Inversion, invert
from sfumato.io.device import choose
from sfumato.io.progress import progress
from sfumato.learning import seeds
from sfumato.methods.distill.classifier_score_distillation import ClassifierScoreDistillation
from sfumato.methods.distill.collaborative_score_distillation import CollaborativeScoreDistillation
from sfumato.methods.distill.entropic_score_distillation import EntropicScoreDistillation
from sfumato.methods.distill.hifa import HiFA
from sfumato.methods.distill.interval_score_matching import IntervalScoreMatching
from sfumato.methods.distill.noise_free_score_distillation import NoiseFreeScoreDistillation
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_bridge import ScoreDistillationBridge
from sfumato.methods.distill.score_distillation_via_inversion import CACHED, ScoreDistillationViaInversion
from sfumato.methods.distill.score_jacobian_chaining import ScoreJacobianChaining
from sfumato.methods.distill.variational_score_distillation import VariationalScoreDistillation
from sfumato.methods.edit.collaborative_editing import CollaborativeEditing
from sfumato.metrics.image import psnr
from sfumato.metrics.looks import detail, saturation, spread
from sfumato.stilllife import change
from sfumato.stilllife.captions import Said
from sfumato.stilllife.moves import orbit
from sfumato.stilllife.oracle import matches
from sfumato.tasks.distill import distill_images
from sfumato.tasks.recipes import EDITING, find

STEPS, GUIDANCE, TOGETHER = 200, 7.5, 8
SAMPLED = 50  # steps of DDIM
SET, SETS = 8, 4  # images of one prompt; one set for so many of --n

MEANINGS = {
    "sdi2d_vs_ddim": "SDI with cached noise against DDIM, same noise, 50 steps, latents, dB",
    "sdi_inverted_vs_ddim": "the same, with inversion in place of the cache",
    "sds_vs_ddim": "the same, of SDS",
    "sdi_success_over_sampling": "oracle reads thing and colour: SDI minus plain sampling",
    "sdi_cached_success_over_sampling": "the same, of SDI with cached noise",
    "sdi_saturation": "mean saturation of SDI over that of renders",
    "sdi3_saturation": "the same, at guidance 3",
    "sampling_saturation": "the same, of plain sampling at 7.5",
    "sds100_saturation": "the same, of SDS at guidance 100",
    "sdi_detail_over_sds": "high-frequency energy of SDI over that of SDS, both at guidance 7.5",
    "sdi_detail_over_sds100": "the same, over SDS at 100, whose artefacts count as well",
    "kappa_error_order": "rank of DDIM inversion among the five choices of noise, by error over t (1: lowest)",
    "csd_spread_on_off": "pairwise distance of eight images of one prompt, collaboration on over off",
    "csd_success_change": "success with collaboration on minus off",
    "csd_edit_success": "CSD-Edit, by prompt pairs, of sets of four renders: edits read as asked",
    "csd_edit_background_psnr": "outside of what may change, dB",
    "csd_edit_consistency": "spread of the changed thing's colour in a set, CSD-Edit over DDS",
    "sds_step_cost": "time of a step of SDS over a plain port of the public code, one image, latents",
    "sdi_step_cost": "the same, of SDI, mean over its run",
}
TARGETS = {
    "sdi2d_vs_ddim": Target(40.0),
    "sdi_success_over_sampling": Target(-0.05),
    "sdi_saturation": Target(1.1, at_least=False),
    "sdi3_saturation": Target(1.1, at_least=False),
    "sdi_detail_over_sds": Target(1.0),
    "sdi_detail_over_sds100": Target(1.0),
    "kappa_error_order": Target(1, at_least=False),
    "csd_spread_on_off": Target(0.8, at_least=False),
    "csd_success_change": Target(-0.05),
    "csd_edit_consistency": Target(1.0, at_least=False),
    "sds_step_cost": Target(0.7, at_least=False),
    "sdi_step_cost": Target(0.7, at_least=False),
}


@dataclass(frozen=True)
class Tried:
    """A method and how it is run."""

    method: Distillation
    optimiser: canvases.Optimiser = "adam"
    rate: float | None = None
    steps: int = STEPS
    space: canvases.Space = "latent"

    def run(self, model: Backbone, prompts: Sequence[str], seed: int) -> Float[Tensor, "n 3 h w"]:
        """An image a prompt; image i starts from seed + i."""
        options = {"space": self.space, "optimiser": self.optimiser, "rate": self.rate, "seed": seed}
        return distill_images(model, list(prompts), self.method, self.steps, **options).images


@dataclass
class DistillSession(Session):
    """What the measures share: prompts with their renders, and single results kept as they come."""

    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "distill-units.jsonl")

    @cached_property
    def subjects(self) -> Subjects:
        return Subjects.drawn(self.n, SEEDS + self.seed)

    @property
    def few(self) -> Subjects:
        """The first of them, for what is dear."""
        return Subjects(self.subjects.stated[:TOGETHER], self.subjects.seed)

    @cached_property
    def renders(self) -> Float[Tensor, "n 3 h w"]:
        return self.subjects.renders()

    def batch(self, name: str, prompts: Sequence[str], make: Callable[[], Tensor], judge: Callable[[int, Tensor], Row]):
        """Rows and images of a batch; all are made when one is not there."""
        made: list[tuple[Tensor, float]] = []

        def one(i: int) -> tuple[Row, Tensor]:
            if not made:
                began = time.perf_counter()
                images = (make() * 255).round() / 255  # as they are kept
                seconds = (time.perf_counter() - began) / len(images)
                made.extend((image, seconds) for image in images)
            image, seconds = made[i]
            return {**judge(i, image), "seconds": seconds}, image

        found = [self.units.get(f"{name} {i} {p}", lambda i=i: one(i)) for i, p in enumerate(prompts)]
        return [row for row, _ in found], torch.stack([image for _, image in found])


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything. With ``out``, what was measured is kept there, and not measured again."""
    session = DistillSession(n, seed, choose(device), out)
    report = Report("distill", n, seed, str(session.device), MEANINGS, TARGETS)
    return gather(report, MEASURES, session, out)


# --- methods over prompts --------------------------------------------------------------------------


def _judge(session: DistillSession, stated: Said, image: Tensor) -> Row:
    (reading,) = session.oracle.read(image[None])
    return {
        "success": float(matches(reading, stated)["things"] is True),
        "saturation": float(saturation(image[None])),
        "detail": float(detail(image[None])),
    }


def painted(session: DistillSession, name: str, tried: Tried | float) -> dict[str, Row]:
    """Rows of every prompt by a method, or by plain sampling at a guidance."""
    rows: dict[str, Row] = {}
    shown: list[Tensor] = []
    for first in range(0, session.n, TOGETHER):
        some = session.subjects.stated[first : first + TOGETHER]
        prompts, seed = [s.phrase() for s in some], session.seed + first

        def make(prompts: list[str] = prompts, seed: int = seed) -> Tensor:
            if isinstance(tried, Tried):
                return tried.run(session.model, prompts, seed)
            seeds = list(range(seed, seed + len(prompts)))
            return denoise(session.model, prompts, seed=seeds, steps=SAMPLED, guide=tried).images.cpu()

        found, images = session.batch(f"{tried!r} {seed}", prompts, make, lambda i, x, s=some: _judge(session, s[i], x))
        rows |= {f"prompt {first + i}": row for i, row in enumerate(found)}
        shown.append(images)
    session.keep(name.replace(" ", "-").replace(",", ""), torch.cat(shown)[:64])
    return rows


def prompts(session: DistillSession) -> Mapping[str, Figure]:
    """Every method on every prompt: what is read, how saturated and how sharp it is, in parts of the renders'."""
    truth = {f"prompt {i}": _judge(session, s, session.renders[i]) for i, s in enumerate(session.subjects.stated)}
    rows: dict[str, dict[str, Row]] = {"renders": truth}
    with progress("bench: prompts", len(METHODS) + 2) as advance:
        for name, tried in {"plain sampling": GUIDANCE, "plain sampling, 3": 3.0, **METHODS}.items():
            rows[name] = painted(session, name, tried)
            advance()
    session.keep("renders", session.renders[:64])
    mean = {
        name: {k: float(np.mean(columns(units, k))) for k in ("success", "saturation", "detail")}
        for name, units in rows.items()
    }
    for figures in mean.values():
        for key in ("saturation", "detail"):
            figures[f"{key}_over_renders"] = figures[key] / float(np.mean(columns(truth, key)))
    for name, figures in mean.items():
        session.methods[name] = figures
        if seconds := columns(rows[name], "seconds"):
            figures["seconds"] = float(np.mean(seconds))
    session.compared["prompts"] = Comparison(("success", "saturation", "detail", "seconds"), rows)

    def over(name: str) -> Figure:
        return np.array(columns(rows[name], "success")) - np.array(columns(rows["plain sampling"], "success"))

    return {
        "sdi_success_over_sampling": over("SDI"),
        "sdi_cached_success_over_sampling": over("SDI, cached noise"),
        "sdi_saturation": mean["SDI"]["saturation_over_renders"],
        "sdi3_saturation": mean["SDI, 3"]["saturation_over_renders"],
        "sampling_saturation": mean["plain sampling"]["saturation_over_renders"],
        "sds100_saturation": mean["SDS, 100"]["saturation_over_renders"],
        "sdi_detail_over_sds": mean["SDI"]["detail"] / mean["SDS, 7.5"]["detail"],
        "sdi_detail_over_sds100": mean["SDI"]["detail"] / mean["SDS, 100"]["detail"],
    }


# --- one noise -------------------------------------------------------------------------------------


def from_noise(session: DistillSession) -> Mapping[str, Figure]:
    """SDI with its cache, with inversion, and SDS, from the noise of DDIM."""

    def measure() -> tuple[Row, Tensor]:
        experiment = OneNoise(seed=session.seed, steps=SAMPLED, sds_steps=STEPS, guidance=GUIDANCE)
        found = experiment.measure(session.model, session.few)
        row: Row = {f"{name}: {k}": v for name, looks in found.looks.items() for k, v in looks.items()}
        row |= {f"{name}: psnr": v for name, v in found.psnr.items()}
        return row, torch.cat([x for images in found.images.values() for x in images], -1)

    row, _ = session.units.get(
        f"one noise {SAMPLED} {STEPS} {GUIDANCE} {len(session.few.stated)} {session.seed}", measure
    )
    session.methods |= _grouped("one noise, ", row)
    names = ("SDI, cached noise", "SDI, inverted noise", f"SDS, {GUIDANCE:g}")
    return {key: row[f"{name}: psnr"] or 0.0 for key, name in zip(FROM_NOISE, names, strict=True)}


def _grouped(before: str, row: Row) -> dict[str, dict[str, float]]:
    """A row whose keys are "method: figure", as figures of methods."""
    out: dict[str, dict[str, float]] = {}
    for key, value in row.items():
        name, figure = key.rsplit(": ", 1)
        out.setdefault(before + name, {})[figure] = value or 0.0
    return out


# --- choices of noise ------------------------------------------------------------------------------


def kappas(session: DistillSession) -> Mapping[str, Figure]:
    """Of images along a run of SDI, as in the source, and of renders: the mean over levels of each choice's error."""

    def measure() -> tuple[Row, Tensor]:
        found = KappaError(seed=session.seed, steps=SAMPLED).measure(session.model, session.few)
        errors = {(where, name): e for where, rows in found.errors.items() for name, e in rows.items()}
        return {f"{where}, {name}: error": float(e.mean()) for (where, name), e in errors.items()}, session.renders[0]

    row, _ = session.units.get(f"noise {SAMPLED} {len(session.few.stated)} {session.seed}", measure)
    session.methods |= (found := _grouped("noise, ", row))
    means = {name: figures["error"] for name, figures in found.items() if name.startswith("noise, run, ")}
    return {"kappa_error_order": float(1 + sum(mean < means["noise, run, inversion"] for mean in means.values()))}


# --- sets ------------------------------------------------------------------------------------------


def collaboration(session: DistillSession) -> Mapping[str, Figure]:
    """Sets of eight images of one prompt, with collaboration and without, from the same noise."""
    sets = max(1, session.n // SETS)
    far: dict[bool, list[float]] = {True: [], False: []}
    right: dict[bool, list[float]] = {True: [], False: []}
    with progress("bench: sets", 2 * sets) as advance:
        for i, stated in enumerate(session.subjects.stated[:sets]):
            for on in (True, False):
                tried, prompts, seed = COLLABORATING[on], [stated.phrase()] * SET, session.seed + SET * i
                rows, images = session.batch(
                    f"set {tried!r} {seed}",
                    prompts,
                    lambda t=tried, p=prompts, s=seed: t.run(session.model, p, s),
                    lambda _, x, s=stated: _judge(session, s, x),
                )
                far[on].append(spread(images))
                right[on].append(float(np.mean([row["success"] == 1 for row in rows])))
                session.keep(f"set-{i}-{'on' if on else 'off'}", images)
                advance()
    for on, name in ((True, "collaboration on"), (False, "collaboration off")):
        session.methods[name] = {"spread": float(np.mean(far[on])), "success": float(np.mean(right[on]))}
    return {
        "csd_spread_on_off": np.array(far[True]) / np.array(far[False]),
        "csd_success_change": np.array(right[True]) - np.array(right[False]),
    }


@dataclass(frozen=True, eq=False)
class Edited:
    """One change of one world, seen from several sides."""

    edits: tuple[change.Counterfactual, ...]
    before: Float[Tensor, "v 3 h w"]
    after: Float[Tensor, "v 3 h w"]

    @classmethod
    def drawn(cls, rng: np.random.Generator, device: str) -> Edited:
        """A thing in another colour, in a photo, from ``VIEWS`` cameras on an arc."""
        while True:
            edit = change.sample_counterfactual(rng, "recolour", 1)
            if edit.before.style == "photo":
                break
        sides = zip(*(orbit(scene, VIEWS, full=ARC) for scene in (edit.before, edit.after)), strict=True)
        edits = tuple(replace(edit, before=before, after=after) for before, after in sides)
        before, after = change.render_pairs(edits, device=device)
        return cls(edits, before.cpu(), after.cpu())

    @cached_property
    def kept(self) -> Bool[Tensor, "v h w"]:
        """Pixels that the change does not touch."""
        return ~torch.stack([change.masks(edit) for edit in self.edits])

    def judged(self, session: DistillSession, i: int, image: Tensor) -> Row:
        edit = self.edits[i]
        (reading,) = session.oracle.read(image[None])
        things = (self.after[i] - self.before[i]).abs().amax(0) > 0.1
        colour = image[:, things].mean(1) if things.any() else image.mean((1, 2))
        return {
            "success": float(applied(reading, edit)),
            "background_psnr": min(100.0, float(psnr(image[None], self.before[i : i + 1], self.kept[i : i + 1]))),
            "psnr_to_truth": float(psnr(image[None], self.after[i : i + 1])),
            **{f"colour {c}": float(v) for c, v in zip("rgb", colour, strict=True)},
        }


def editing(session: DistillSession) -> Mapping[str, Figure]:
    """Sets of four renders of one world, recoloured together."""
    rng, sets = session.stream(2), max(1, session.n // SETS)
    worlds = [Edited.drawn(rng, str(session.device)) for _ in range(sets)]
    rows: dict[str, dict[str, Row]] = {name: {} for name in EDITORS}
    with progress("bench: edits of sets", sets * len(EDITORS)) as advance:
        for w, world in enumerate(worlds):
            for name, editor in EDITORS.items():
                edit = world.edits[0]
                found, images = session.batch(
                    f"edit {w} {editor!r} {session.seed}",
                    [edit.instruction] * VIEWS,
                    lambda e=editor, x=world: e.run(session, x),
                    lambda i, image, x=world: x.judged(session, i, image),
                )
                colours = torch.tensor([[row[f"colour {c}"] or 0.0 for c in "rgb"] for row in found])
                apart = float(torch.pdist(colours).mean())
                rows[name] |= {f"world {w} {i}": {**row, "colour_spread": apart} for i, row in enumerate(found)}
                session.keep(f"edit-{w}-{name.replace(' ', '-')}", images, VIEWS)
                advance()
            session.keep(f"edit-{w}-truth", world.after, VIEWS)
    keys = ("success", "background_psnr", "psnr_to_truth", "colour_spread", "seconds")
    session.compared["edits of sets"] = Comparison(keys, rows)
    mean = {name: {k: float(np.mean(columns(units, k))) for k in keys} for name, units in rows.items()}
    session.methods |= {f"edit: {name}": figures for name, figures in mean.items()}
    return {
        "csd_edit_success": np.array(columns(rows["CSD-Edit"], "success")),
        "csd_edit_background_psnr": np.array(columns(rows["CSD-Edit"], "background_psnr")),
        "csd_edit_consistency": mean["CSD-Edit"]["colour_spread"] / mean["DDS"]["colour_spread"],
    }


@dataclass(frozen=True)
class Editor:
    """A way to edit, by which model, and whether by instruction or by a pair of captions."""

    how: Inversion | None
    model: str = "stilllife"
    guidance: float | None = None

    def run(self, session: DistillSession, world: Edited) -> Float[Tensor, "v 3 h w"]:
        if self.how is None:
            return world.before
        model, n = session.named(self.model), len(world.edits)
        source, target = world.edits[0].captions
        stated = world.edits[0].instruction if self.model != "stilllife" else target
        path = invert(model, world.before, [source] * n, self.how)
        prompts = (
            {"target": [stated] * n} if not self.how.has_source else {"source": [source] * n, "target": [stated] * n}
        )
        out = denoise(model, prompts, start=path, guide=self.how.guide(model, self.guidance), seed=session.seed)
        return out["target"].images.cpu()


# --- what a step costs -----------------------------------------------------------------------------


def _step(session: DistillSession, loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """A step: a loss of latents, back to them, and Adam moves them."""
    x = session.model.latents([0], session.model.size, session.model.size).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.01)

    def once() -> None:
        adam.zero_grad(set_to_none=True)
        loss(x).backward()
        adam.step()

    return once


def costs(session: DistillSession) -> Mapping[str, Figure]:
    """Steps at levels over a run, one after the other, as each code takes them at the same levels and guidance."""
    model, whole = session.model, session.model.schedule.train_steps

    def ours(method: Any) -> Callable[[], None]:
        def loss(part: float, x: Tensor) -> Tensor:
            with torch.no_grad():
                now = Now(model, x.detach(), (PROMPT,), 0, 1, seeds.Draws(0, round(part * whole)))
                gradient = replace(method, times=Times(constant(part))).gradient(now)
            return apply_gradient(x, gradient)

        return _all([_step(session, partial(loss, part)) for part in PARTS])

    def public(kind: Any) -> Callable[[], None]:
        theirs = kind(model, PROMPT, GUIDANCE)
        return _all([_step(session, partial(theirs.loss, t=round(part * whole))) for part in PARTS])

    return {
        "sds_step_cost": session.ratio(ours(ScoreDistillation(GUIDANCE)), public(threestudio.PublicSDS)),
        "sdi_step_cost": session.ratio(ours(ScoreDistillationViaInversion()), public(threestudio.PublicSDI)),
    }


def _all(steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


PROMPT = "a red cube on grass"
VIEWS, ARC = 4, 60.0
PARTS = tuple(0.25 + 0.73 * (i + 0.5) / 10 for i in range(10))
"""Levels at which steps are timed: those of threestudio's SDI, 0.98 to 0.25."""

INVERTED = find("score-distillation-via-inversion").method
EDITED_TOGETHER = find("collaborative-editing").method
INSTRUCTING = find("instruct-pix2pix", "stilllife-instruct")
FROM_NOISE = ("sdi2d_vs_ddim", "sdi_inverted_vs_ddim", "sds_vs_ddim")
METHODS: dict[str, Tried] = {
    "SDS, 7.5": Tried(ScoreDistillation(GUIDANCE)),
    "SDS, 30": Tried(ScoreDistillation(30.0)),
    "SDS, 100": Tried(ScoreDistillation()),
    "SJC": Tried(ScoreJacobianChaining()),
    "VSD": Tried(VariationalScoreDistillation()),
    "ESD": Tried(EntropicScoreDistillation()),
    "noise-free": Tried(NoiseFreeScoreDistillation()),
    "classifier": Tried(ClassifierScoreDistillation()),
    "bridge": Tried(ScoreDistillationBridge()),
    "HiFA": Tried(HiFA()),
    "ISM": Tried(IntervalScoreMatching()),
    "collaborative": Tried(CollaborativeScoreDistillation()),
    "SDI": Tried(INVERTED, "sgd", 1.0, SAMPLED),
    "SDI, 3": Tried(replace(INVERTED, guidance=3.0, inversion_guidance=-3.0), "sgd", 1.0, SAMPLED),
    "SDI, cached noise": Tried(CACHED, "sgd", 1.0, SAMPLED),
}
"""Each with its published settings, moved by Adam in the laboratory's way; SDI as in eq. 4.6, by plain descent at rate
1 and without the noise that is added for scenes."""
COLLABORATING = {
    on: Tried(replace(CollaborativeScoreDistillation(), bandwidth="text" if on else "off")) for on in (True, False)
}
EDITORS = {
    "no edit": Editor(None),
    "CSD-Edit": Editor(EDITED_TOGETHER, guidance=EDITING),
    "CSD-Edit, each alone": Editor(replace(EDITED_TOGETHER, bandwidth="off"), guidance=EDITING),
    "DDS": Editor(find("delta-denoising").method, guidance=EDITING),
    "CSD-Edit by instruction": Editor(CollaborativeEditing(), "stilllife-instruct"),
    "InstructPix2Pix": Editor(replace(INSTRUCTING.method, steps=SAMPLED), INSTRUCTING.model, INSTRUCTING.guidance),
}
"""By prompt pairs as it suits the built-in model, by instruction as published."""

MEASURES: tuple[tuple[tuple[str, ...], Callable[[DistillSession], Mapping[str, Figure]]], ...] = (
    (FROM_NOISE, from_noise),
    (("kappa_error_order",), kappas),
    (("sds_step_cost", "sdi_step_cost"), costs),
    (
        (
            "sdi_success_over_sampling",
            "sdi_cached_success_over_sampling",
            "sdi_saturation",
            "sdi3_saturation",
            "sampling_saturation",
            "sds100_saturation",
            "sdi_detail_over_sds",
            "sdi_detail_over_sds100",
        ),
        prompts,
    ),
    (("csd_spread_on_off", "csd_success_change"), collaboration),
    (("csd_edit_success", "csd_edit_background_psnr", "csd_edit_consistency"), editing),
)
