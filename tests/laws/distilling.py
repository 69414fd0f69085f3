"""The table of the methods that distil: the fewest settings that act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import families

from sfumato.distill import DREAMFUSION, Distillation
from sfumato.methods.distill.classifier_score_distillation import IF, ClassifierScoreDistillation
from sfumato.methods.distill.collaborative_score_distillation import EDITING, CollaborativeScoreDistillation
from sfumato.methods.distill.delta_score import DeltaScore
from sfumato.methods.distill.entropic_score_distillation import EntropicScoreDistillation
from sfumato.methods.distill.hifa import HiFA
from sfumato.methods.distill.interval_score_matching import IntervalScoreMatching
from sfumato.methods.distill.noise_free_score_distillation import NoiseFreeScoreDistillation
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_bridge import ScoreDistillationBridge
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion
from sfumato.methods.distill.score_iterative_reconstruction import ScoreIterativeReconstruction
from sfumato.methods.distill.score_jacobian_chaining import ScoreJacobianChaining
from sfumato.methods.distill.variational_score_distillation import VariationalScoreDistillation


@dataclass(frozen=True)
class Row:
    """A method in the table."""

    word: str
    ways: tuple[Distillation, ...]
    families: tuple[str, ...] = tuple(families.FAMILIES)


def quick(kind: Any, **options: Any) -> Any:
    """A copy that learns as fast as two steps want it."""
    return kind(rate=1e-2, **options)


METHODS = (
    Row("classifier-score-distillation", (ClassifierScoreDistillation(), IF)),
    Row("collaborative-score-distillation", (CollaborativeScoreDistillation(), replace(EDITING, distance="pixels"))),
    Row("delta-score", (DeltaScore(source="a duck on grass"),)),
    Row("entropic-score-distillation", (quick(EntropicScoreDistillation),)),
    Row("hifa", (HiFA(),)),
    Row("interval-score-matching", (IntervalScoreMatching(times=DREAMFUSION, stride=0.5),)),
    Row("noise-free-score-distillation", (NoiseFreeScoreDistillation(),)),
    Row("score-distillation", (ScoreDistillation(),)),
    Row("score-distillation-bridge", (ScoreDistillationBridge(switch=0.5),)),
    Row(
        "score-distillation-via-inversion",
        (ScoreDistillationViaInversion(per_unit=2), ScoreDistillationViaInversion(kappa="cached")),
    ),
    Row(
        "score-iterative-reconstruction",
        (
            ScoreIterativeReconstruction(refresh=2, begin=0.0, per_unit=2),
            ScoreIterativeReconstruction(refresh=1, begin=1.0, per_unit=2, distance="squared"),
        ),
    ),
    Row("score-jacobian-chaining", (ScoreJacobianChaining(),)),
    Row("variational-score-distillation", (quick(VariationalScoreDistillation),)),
)
ROWS = {row.word: row for row in METHODS}
