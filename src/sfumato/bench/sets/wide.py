"""Wide pictures edited by windows: is the edit the same in all of them, and are their borders seen?

A case is a strip of the world three windows wide, a row of one thing over and over, and its counterfactual: the same
row in another colour, pixel for pixel. CSD-Edit takes windows a quarter of their side apart for a set, as many in each
step as lie side by side; beside it those are edited each by itself, and windows are drawn as CSD-Edit's but share
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.sets.panoramas import borders
from sfumato.bench.units import Row, columns, timed
from sfumato.core.denoising import denoise
from sfumato.core.views import Tiles
from sfumato.inversion import invert
from sfumato.io.progress import progress
from sfumato.methods.edit import CollaborativeEditing
from sfumato.metrics.image import psnr
from sfumato.stilllife import change, moves
from sfumato.tasks.recipes import EDITING, find

STEPS, WINDOWS = 40, 3
KEYS = ("success", "seam", "spread", "psnr_to_truth", "seconds")

MEANINGS = {
    "wide_edit_consistency": "CSD-Edit of a strip by windows: how far apart its windows' things are in colour, beyond "
    "what they should be, over that of windows edited apart",
    "wide_edit_seam": "its error in steps across its windows' borders, over that across other cells'",
}
TARGETS = {
    "wide_edit_consistency": Target(1.0, at_least=False),
    "wide_edit_seam": Target(1.1, at_least=False),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A strip, and what should become of it."""

    source: str
    target: str
    kind: str
    colour: str
    before: Float[Tensor, "1 3 h w"]
    after: Float[Tensor, "1 3 h w"]
    seed: int


def ways() -> dict[str, CollaborativeEditing]:
    """Of editing a strip, all of as many windows a step."""
    by_windows = replace(find("collaborative-editing").method, steps=STEPS, windows=WINDOWS)
    return {
        "CSD-Edit by windows": by_windows,
        "the same windows, sharing nothing": replace(by_windows, bandwidth="off"),
        "windows apart": replace(by_windows, bandwidth="off", stride=1.0),
    }


def cases(session: Session) -> list[Case]:
    side = session.model.size
    out = []
    for i in range(session.n):
        rng = session.stream(41, i)
        while True:
            edit = change.sample_counterfactual(rng, "recolour", 1)
            if edit.before.style == "photo":
                break
        spots = int(rng.integers(2**30))
        before, after = (
            moves.strip(np.random.default_rng(spots), WINDOWS * side, side, session.device, [scene]).images.cpu()
            for scene in (edit.before, edit.after)
        )
        thing = edit.after.things[0]
        words = [f"a {scene.things[0].colour} {thing.kind} on {scene.ground}" for scene in (edit.before, edit.after)]
        out.append(Case(words[0], words[1], thing.kind, thing.colour, before, after, int(rng.integers(2**30))))
    return out


def edited(session: Session, case: Case, how: CollaborativeEditing) -> Float[Tensor, "1 3 h w"]:
    how, model = replace(how, seed=case.seed), session.model
    path = invert(model, case.before.to(session.device), case.source, how)
    prompts = {"source": case.source, "target": case.target}
    return denoise(model, prompts, start=path, guide=how.guide(model, EDITING), seed=case.seed)["target"].images


def seam(image: Tensor, truth: Tensor, at: Sequence[int], cell: int) -> float:
    """Error in steps across these columns' left borders, over that across the other cells'."""
    across = ((image - image.roll(1, -1)) - (truth - truth.roll(1, -1))).abs().mean((0, 1, 2))
    others = [c for c in range(cell, image.shape[-1], cell) if c not in at]
    return float(across[list(at)].mean() / across[others].mean())


def spread(image: Tensor, case: Case, side: int) -> float:
    """Mean distance between windows side by side of how far off their changed things' mean colours are."""
    changed = (case.after - case.before).abs().amax(1, keepdim=True) > 0.1
    off = [
        (part * there).sum((0, 2, 3)) / there.sum()
        for part, there in zip((image - case.after).split(side, -1), changed.split(side, -1), strict=True)
        if there.any()
    ]
    return float(torch.pdist(torch.stack(off)).mean()) if len(off) > 1 else 0.0


def judged(session: Session, case: Case, how: CollaborativeEditing, image: Tensor) -> Row:
    model = session.model
    side, size = model.size, (image.shape[-2], image.shape[-1])
    readings = session.oracle.read(torch.cat(image.split(side, -1)))
    right = [any((t.kind, t.colour) == (case.kind, case.colour) for t in reading.things) for reading in readings]
    return {
        "success": float(np.mean(right)),
        "seam": seam(image, case.after, borders(Tiles(how.stride), size, side, model.factor), model.factor),
        "spread": spread(image, case, side),
        "psnr_to_truth": float(psnr(image, case.after)),
    }


def strips(session: Session) -> Mapping[str, Figure]:
    """Every way's strips."""
    found: dict[str, dict[str, Row]] = {name: {} for name in ways()}
    drawn = cases(session)
    with progress("bench: wide edits", len(drawn) * len(found)) as advance:
        for i, case in enumerate(drawn):
            shown = [case.before, case.after]
            for name, how in ways().items():
                image, cost = timed(lambda c=case, h=how: edited(session, c, h), session.device)
                found[name][f"strip {i}"] = {**judged(session, case, how, image), **cost}
                shown.append(image)
                advance()
            session.keep(f"wide-{i}", torch.cat(shown), 1)
    session.compared["wide edits"] = Comparison(KEYS, found)
    mean = {name: {key: float(np.mean(columns(rows, key))) for key in KEYS} for name, rows in found.items()}
    session.methods |= {f"wide: {name}": figures for name, figures in mean.items()}
    return {
        "wide_edit_consistency": mean["CSD-Edit by windows"]["spread"] / mean["windows apart"]["spread"],
        "wide_edit_seam": np.array(columns(found["CSD-Edit by windows"], "seam")),
    }


MEASURES: tuple[tuple[tuple[str, ...], Callable[[Any], Mapping[str, Figure]]], ...] = (
    (("wide_edit_consistency", "wide_edit_seam"), strips),
)
