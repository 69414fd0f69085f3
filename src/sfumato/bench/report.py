"""What every bench hands back, as one JSON object or as a table with targets and intervals."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sfumato.errors import SfumatoError
from sfumato.io.files import write_json
from sfumato.io.progress import progress
from sfumato.io.terminal import print_json, print_whole

Figure = Float[np.ndarray, " samples"] | float  # a value a sample, of which the mean is the figure, or a figure


@dataclass(frozen=True)
class Target:
    """A figure to reach, and from which side."""

    value: float
    at_least: bool = True

    def met(self, figure: float) -> bool:
        return figure >= self.value if self.at_least else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}"


@dataclass(frozen=True)
class Comparison:
    """Several methods by the same figures: wins and losses alike."""

    keys: Sequence[str]
    rows: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    """Method -> unit -> figures, None for those that the unit does not have."""

    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        """Method -> figure -> mean, its bootstrap interval and how many units it is of."""
        out: dict[str, dict[str, dict[str, float]]] = {}
        for name, units in self.rows.items():
            for key in self.keys:
                values = np.array([v for row in units.values() if (v := row.get(key)) is not None])
                if len(values):
                    low, high = interval(values)
                    figures = {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}
                    out.setdefault(name, {})[key] = figures
        return out


@dataclass
class Report:
    """A bench's figures as they are gathered. ``why`` says of each key that has none what was in the way."""

    suite: str
    n: int
    seed: int
    device: str
    meanings: Mapping[str, str]
    targets: Mapping[str, Target]
    figures: dict[str, Figure] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    methods: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: dict[str, Comparison] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def results(self) -> dict[str, float | None]:
        """Key -> plain number, or None where it could not be measured; every key of the suite, in its order."""
        return {key: None if key in self.why else mean(self.figures[key]) for key in self.meanings}

    def to_dict(self) -> dict[str, Any]:
        out = {
            "suite": self.suite,
            "n": self.n,
            "seed": self.seed,
            "environment": environment(self.device),
            "results": self.results,
            "methods": self.methods,
            "seconds": round(self.seconds, 1),
        }
        if self.compared:
            out["comparisons"] = {what: comparison.table() for what, comparison in self.compared.items()}
        return out | ({"why": self.why} if self.why else {})


Measure = Callable[[Any], Mapping[str, Figure]]


def gather(
    report: Report, measures: Sequence[tuple[Sequence[str], Measure]], session: Any, out: Path | None = None
) -> Report:
    """Measure everything, and write the figures to ``out``.

    What cannot be measured (of a model that does not ship, say) is None, and ``why`` says why. A measure gives figures
    of its keys; what it notes of single methods it puts in ``session.methods``, if there is such a thing.
    """
    began = time.monotonic()
    with progress(f"bench {report.suite}", len(measures)) as advance:
        for keys, measure in measures:
            try:
                report.figures |= measure(session)
            except SfumatoError as e:
                report.why |= dict.fromkeys(keys, str(e))
            advance()
    report.methods |= getattr(session, "methods", {})
    report.compared |= getattr(session, "compared", {})
    report.seconds = time.monotonic() - began
    if out is not None:
        write_json(out / f"{report.suite}.json", report.to_dict(), indent=2)
    return report


def mean(figure: Figure) -> float:
    """The figure as a plain number."""
    return float(np.mean(figure))


def interval(values: Float[np.ndarray, " samples"], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean, 95 %."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def environment(device: str) -> dict[str, Any]:
    """Versions, cores, device: what a figure depends on beyond the code."""
    names = ("sfumato", "torch", "diffusers", "transformers", "numpy")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        "python": platform.python_version(),
        **{n: metadata.version(n) for n in names},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": name,
        "platform": platform.platform(),
    }


def show(report: Report, *, as_json: bool) -> None:
    """Print one JSON object, or the table."""
    if as_json:
        print_json(report.to_dict())
        return
    from rich.table import Table

    table = Table("key", "value", "95 %", "target", "meaning", box=None, pad_edge=False)
    for key, row in zip(report.meanings, rows(report), strict=True):
        style = None if key not in report.targets or key in report.why else "green" if row[-1] else "red"
        table.add_row(key, *row[:3], report.meanings[key], style=style)
    print_whole(table)
    for what, comparison in report.compared.items():
        print_whole(_compared(what, comparison))
    for reason in dict.fromkeys(report.why.values()):
        keys = ", ".join(key for key, why in report.why.items() if why == reason)
        print(f"{keys}: not measured, {reason}")
    print(f"{report.suite}, n = {report.n}, seed {report.seed}, {report.device}, {report.seconds:.0f} s")


def _compared(what: str, comparison: Comparison) -> Any:
    """A row a method: the mean of each figure and its interval."""
    from rich.table import Table

    out = Table(what, *comparison.keys, box=None, pad_edge=False)
    for name, figures in comparison.table().items():
        cells = [figures.get(key) for key in comparison.keys]
        shown = ["-" if c is None else f"{c['mean']:.3g} ({c['low']:.3g}..{c['high']:.3g})" for c in cells]
        out.add_row(name, *shown)
    return out


def rows(report: Report) -> Sequence[tuple[str, str, str, bool]]:
    """(value, interval, target, whether it is met) of every key, as words."""
    out = []
    for key, value in report.results.items():
        target, figure = report.targets.get(key), report.figures.get(key)
        span = ""
        if isinstance(figure, np.ndarray) and value is not None:
            span = "{:.3g} to {:.3g}".format(*interval(figure))
        met = value is not None and target is not None and target.met(value)
        out.append(("-" if value is None else f"{value:.3g}", span, str(target or ""), met))
    return out
