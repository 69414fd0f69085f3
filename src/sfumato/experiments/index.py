"""Every experiment by its word. Nothing is imported before it is asked for.

A test holds the table against the files.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.errors import unknown

if TYPE_CHECKING:
    from sfumato.experiments.experiment import Experiment


@dataclass(frozen=True)
class Entry:
    """An experiment, its word, and where it is."""

    word: str
    home: str
    """Module and name, such as ``kappa_error:KappaError``."""

    @property
    def experiment(self) -> type[Experiment]:
        """Its class."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"sfumato.experiments.{module}"), name)

    @property
    def about(self) -> str:
        """What it measures: the first line of its file, which is read, not run."""
        file = Path(__file__).with_name(f"{self.home.partition(':')[0]}.py")
        return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


EXPERIMENTS = (
    Entry("trajectory", "trajectory:Trajectories"),
    Entry("attention", "attention_over_steps:AttentionOverSteps"),
    Entry("equivariance", "equivariance:Equivariance"),
    Entry("patches", "patches:Patches"),
    Entry("inversion", "corrupted_inversion:CorruptedInversion"),
    Entry("guidance-grid", "guidance_grid:GuidanceGrid"),
    Entry("saturation", "saturation:Saturation"),
    Entry("smoothness", "smoothness:Smoothness"),
    Entry("one-noise", "one_noise:OneNoise"),
    Entry("kappa-error", "kappa_error:KappaError"),
    Entry("inversion-guidance", "inversion_guidance:InversionGuidance"),
    Entry("inversion-steps", "inversion_steps:InversionSteps"),
    Entry("collaboration", "collaboration:Collaboration"),
    Entry("baseline", "baseline:Baseline"),
)


def find(word: str) -> Entry:
    """The experiment of a word. ``SfumatoError`` that lists them for a word that is none."""
    for entry in EXPERIMENTS:
        if word == entry.word:
            return entry
    raise unknown("experiment", word, [e.word for e in EXPERIMENTS])
