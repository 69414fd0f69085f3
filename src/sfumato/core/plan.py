"""What methods read and write, checked and priced before the first step.

A method's ``start`` gives its ``Phases`` for one run: functions for the moments of a step that it takes part in, the
attention it edits and the maps it needs. ``plan`` finds the sites, refuses what cannot work and says what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.features import Activation
from sfumato.core.rows import Name, Pattern, Rows
from sfumato.core.sites import Grid, Layer, Site
from sfumato.errors import SfumatoError, unknown

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone
    from sfumato.core.conditions import Cond
    from sfumato.core.guidance import Guide
    from sfumato.core.schedule import Level, Levels
    from sfumato.core.steppers import Stepper

Field = Literal["feature", "qkv", "logits", "probs", "out"]
FIELDS: tuple[Field, ...] = ("feature", "qkv", "logits", "probs", "out")
Moment = int | float | None  # a step's number, a fraction of the steps, the end
Span = tuple[Moment, Moment]
Maps = dict[Any, dict[Name, Float[Tensor, "each queries keys"]]]


@dataclass(frozen=True, eq=False)
class Need:
    """Maps a method reads after each step: probabilities of a pair, averaged over heads where they are made.

    Or a feature, by its kind (``residual``, ``tokens``), as it is.
    """

    pair: str
    res: int | float | str | None = None
    """Shorter side of the token grid: a number, a fraction of the latents' side, ``coarsest`` or ``finest``."""
    steps: Span = (0, None)
    rows: Pattern = None
    tokens: tuple[int, ...] | None = None
    """Only these keys."""
    where: Callable[[Any], bool] | None = None
    """Which sites (layers, of a feature)."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A function that writes one field of the attention calls of a pair, or a ``feature``, whose kind is the pair."""

    pair: str
    field: Field
    do: Callable[[Any], None]
    """Gets each site's ``Call``, or each layer's ``Activation``."""
    res: int | float | str | None = None
    steps: Span = (0, None)
    rows: Pattern = None
    """Which rows it writes."""
    where: Callable[[Any], bool] | None = None
    parts: str = "qkv"
    """Of ``qkv``, which of the three it writes."""


@dataclass
class Phases:
    """What a method does in one run. Each function gets the ``Step`` and may change what is named."""

    edits: tuple[Edit, ...] = ()
    needs: tuple[Need, ...] = ()
    looks: tuple[Need, ...] = ()
    """What it asks ``look`` for: checked and priced like the needs, but not read in the step's own prediction."""
    cond: Callable[[Step, Cond], Cond] | None = None
    """May replace the conditions of all rows."""
    before: Callable[[Step], None] | None = None
    """May replace ``step.x``; ``step.cond`` is what the step's prediction will read."""
    energy: Callable[[Step], Tensor] | None = None
    """A scalar of ``step.x0``, ``step.x`` or ``step.maps`` to go down; summed over methods and differentiated once with
    respect to ``step.x``."""
    network: bool = True
    """Differentiate the energy through the network; if not, ``step.x0`` is (x - sigma eps) / alpha with eps held."""
    repeats: int = 1
    """How often a step with the energy is run, with new noise back to its level in between; of several the most."""
    during: Span = (0, None)
    """The steps of the energy: outside of them it costs nothing."""
    denoised: Callable[[Step], None] | None = None
    """May replace ``step.x0``; the noise follows."""
    noise: Callable[[Step], Tensor | None] | None = None
    """May give the unit noise of a stochastic step."""
    after: Callable[[Step], None] | None = None
    """May replace ``step.x_next``."""
    calls: float = 0
    """Further network calls a step, on average, in rows of the main one."""


@dataclass(frozen=True)
class Run:
    """What is known before the first step."""

    model: Backbone
    prompts: Mapping[str, tuple[str, ...]]
    """Stream -> its prompts, one an image."""
    rows: Rows
    steps: int
    grid: Grid
    """Height and width of the latents that the network sees."""
    windows: int = 1
    """How many of them an image has (with ``Views``); each is a row of its own."""
    guide: Guide | None = None
    """How the conditions' predictions become one, for methods that predict more."""
    levels: Levels | None = None

    def images(self, stream: str) -> slice:
        """Where a stream lies among the images, such as ``step.x``."""
        rows = self.rows.stream(stream)
        return slice(rows.start // self.windows, rows.stop // self.windows)


@dataclass
class Step:
    """One step as methods see it. Images lie stream by stream; ``run.images(name)`` says where."""

    i: int
    level: Level
    next: Level
    x: Float[Tensor, "b c h w"]
    run: Run
    cond: Cond
    """What all rows read."""
    x0: Tensor = field(default_factory=lambda: torch.empty(0))
    eps: Tensor = field(default_factory=lambda: torch.empty(0))
    x_next: Tensor = field(default_factory=lambda: torch.empty(0))
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Predictions by condition, before guidance."""
    maps: dict[Need, Maps] = field(default_factory=dict)
    split: Callable[[Tensor], Tensor] = lambda x: x
    """From images to what the network sees of them: windows, where a run has ``Views``."""


class Method:
    """A paper's parameters with the paper's defaults. Subclasses are frozen dataclasses."""

    def start(self, run: Run) -> Phases:
        raise NotImplementedError

    def around(self, base: Guide) -> Guide:
        """The run's guidance with what this method adds to it: rows of its own, say. Twice is as good as once."""
        return base


class Start(Method):
    """A method that says where its run begins, at which levels and how it steps; such as an inversion's ``Path``."""

    latents: Float[Tensor, "b c h w"]
    """At the first level."""
    levels: Levels
    stepper: Stepper


@dataclass(frozen=True)
class Entry:
    """A line of the plan."""

    who: str
    does: str
    pair: str
    sites: tuple[Site | Layer, ...]
    steps: tuple[int, int]
    """First, and one past the last."""
    rows: tuple[Name, ...]
    bytes: int
    """Probabilities that exist at the same time, in the largest of its sites, and what is kept of a step."""
    what: Need | Edit
    apart: bool = False
    """In predictions of its own (``look``)."""


@dataclass
class Plan:
    """Sites, steps, readers and writers, extra calls and bytes of a run."""

    entries: list[Entry]
    run: Run
    calls: dict[str, float] = field(default_factory=dict)
    """Method -> further network calls a step."""

    @property
    def bytes(self) -> int:
        return max((e.bytes for e in self.entries), default=0)

    @property
    def sites(self) -> tuple[Site | Layer, ...]:
        """All that are tapped in the steps' own predictions, in order."""
        return tuple(sorted({s for e in self.entries if not e.apart for s in e.sites}, key=lambda s: s.index))

    def active(self, step: int) -> dict[Site | Layer, list[Entry]]:
        """What happens at each site in a step, in the order of the fields; maps are taken once they are edited."""
        out: dict[Site | Layer, list[Entry]] = {}
        for entry in sorted(self.entries, key=_order):
            if entry.steps[0] <= step < entry.steps[1] and not entry.apart:
                for site in entry.sites:
                    out.setdefault(site, []).append(entry)
        return out

    def table(self) -> list[dict[str, Any]]:
        """A row a line, for people and for machines."""
        rows = [
            {
                "method": e.who,
                "does": e.does,
                "pair": e.pair,
                "sites": len(e.sites),
                "grids": sorted({"x".join(map(str, s.grid(self.run.grid))) for s in e.sites}),
                "steps": f"{e.steps[0]}-{e.steps[1] - 1}",
                "rows": [f"{s}/{c}" for s, c in e.rows],
                "bytes": e.bytes,
            }
            for e in self.entries
        ]
        more = [(who, n) for who, n in self.calls.items() if n]
        return rows + [{"method": who, "does": "calls the network", "calls a step": n} for who, n in more]


def _order(entry: Entry) -> float:
    return FIELDS.index(entry.what.field) if isinstance(entry.what, Edit) else FIELDS.index("probs") + 0.5


def plan(run: Run, phases: Mapping[str, Phases], memory: int | None = None) -> Plan:
    """Resolve what the methods declare.

    Raises ``SfumatoError`` for a pair, resolution, row or span that does not exist, for two writers of the same thing,
    and for a plan of more than ``memory`` bytes.
    """
    entries = []
    for who, phase in phases.items():
        entries += [_entry(who, what, run) for what in (*phase.needs, *phase.edits)]
        entries += [replace(_entry(who, what, run), does="looks at maps", apart=True) for what in phase.looks]
    _refuse_conflicts(entries)
    out = Plan([e for e in entries if e.steps[0] < e.steps[1]], run, {k: p.calls for k, p in phases.items()})
    if memory is not None and out.bytes > memory:
        worst = max(out.entries, key=lambda e: e.bytes)
        raise SfumatoError(
            f"{worst.who} needs {worst.bytes / 2**20:.0f} MiB for {worst.pair} at {worst.sites[0].path}, more than the "
            f"{memory / 2**20:.0f} MiB allowed; ask for a coarser resolution, fewer rows or more memory"
        )
    return out


def _entry(who: str, what: Need | Edit, run: Run) -> Entry:
    sites = choose(run.model, what.pair, run.grid, what.res, what.where, who)
    steps = span(what.steps, run.steps)
    rows = run.rows.match(what.rows)
    count, noun = len(rows) * run.rows.each, "maps" if what.pair in _PAIRS else what.pair
    if isinstance(what, Edit):
        inside = what.field in ("logits", "probs")
        made = max(_made(s, run) for s in sites) if inside else 0
        return Entry(who, f"writes {what.field}", what.pair, sites, steps, rows, count * made, what)
    made = max(_made(s, run) for s in sites)
    kept = sum(_cells(s, run) * (1 if what.tokens is None else len(what.tokens) / _keys(s, run)) * 4 for s in sites)
    return Entry(who, f"reads {noun}", what.pair, sites, steps, rows, count * made + int(count * kept), what)


def _made(site: Site | Layer, run: Run) -> int:
    """Bytes of a row's logits and probabilities at a site, all heads; features are there anyway."""
    return 2 * site.heads * _cells(site, run) * 4 if isinstance(site, Site) else 0


_PAIRS = {f"{a}->{b}" for a in ("image", "text") for b in ("image", "text")}


def _keys(site: Site, run: Run) -> int:
    h, w = site.grid(run.grid)
    return ("image" in site.key) * h * w + ("text" in site.key) * run.model.text_tokens


def _cells(site: Site | Layer, run: Run) -> int:
    """Of a site, queries times keys of one head; of a layer, all its values."""
    h, w = site.grid(run.grid)
    if isinstance(site, Layer):
        return h * w * site.width
    return (h * w + ("text" in site.query) * run.model.text_tokens) * _keys(site, run)


def choose(
    model: Backbone,
    pair: str,
    grid: Grid,
    res: int | float | str | None = None,
    where: Callable[[Any], bool] | None = None,
    who: str = "this",
) -> tuple[Any, ...]:
    """The sites of a pair, or the layers of a kind, at a resolution.

    Raises ``SfumatoError`` that says what the model offers.
    """
    offers = (*model.sites, *model.layers)
    pairs = sorted({p for s in offers for p in s.pairs})
    if pair not in pairs:
        has = ", ".join(pairs) or "no attention at all"
        raise SfumatoError(
            f"{who} asks for {pair!r} {'attention' if pair in _PAIRS else 'features'}; {model.name} offers {has}"
        )
    found = [s for s in offers if pair in s.pairs]
    if res is not None:
        sides = {s: min(s.grid(grid)) for s in found}
        if isinstance(res, str):
            if res not in ("coarsest", "finest"):
                raise unknown("resolution", res, ("coarsest", "finest", "a number", "a fraction"))
            wanted = (min if res == "coarsest" else max)(sides.values())
        else:
            wanted = res if isinstance(res, int) else round(res * min(grid))
        offered = sorted(set(sides.values()))
        found = [s for s in found if sides[s] == wanted]
        if not found:
            raise SfumatoError(
                f"{who} asks for {pair} at resolution {res}; at this size {model.name} has it at "
                f"{', '.join(map(str, offered))}"
            )
    if where is not None:
        found = [s for s in found if where(s)]
        if not found:
            raise SfumatoError(f"{who} leaves no site of {pair} in {model.name}; its condition on sites is too narrow")
    return tuple(found)


def nearest(sites: Sequence[Site | Layer], grid: Grid, part: float) -> int:
    """Of the sides that sites have, for latents of this grid, that nearest to a part of the latents' shorter side."""
    if not 0 < part <= 1:
        raise SfumatoError(f"a part of the latents' side is above 0 and at most 1, got {part}")
    sides = sorted({min(site.grid(grid)) for site in sites})
    return min(sides, key=lambda side: abs(math.log(side / (part * min(grid)))))


def span(steps: Span, of: int) -> tuple[int, int]:
    """First step and one past the last, from numbers or fractions (0.8 of 50 steps is 40, rounded down)."""

    def number(moment: Moment, default: int) -> int:
        if moment is None:
            return default
        if isinstance(moment, float):
            if not 0 <= moment <= 1:
                raise SfumatoError(f"a fraction of the steps lies between 0 and 1, got {moment}")
            return int(moment * of + 1e-9)
        return min(moment, of)

    return number(steps[0], 0), number(steps[1], of)


def _refuse_conflicts(entries: Sequence[Entry]) -> None:
    writers = [e for e in entries if isinstance(e.what, Edit)]
    for n, a in enumerate(writers):
        for b in writers[n + 1 :]:
            one, other = cast("Edit", a.what), cast("Edit", b.what)
            same = one.field == other.field and a.pair == b.pair
            same = same and (one.field != "qkv" or bool(set(one.parts) & set(other.parts)))
            meet = max(a.steps[0], b.steps[0]) < min(a.steps[1], b.steps[1])
            if same and meet and set(a.sites) & set(b.sites) and set(a.rows) & set(b.rows):
                raise SfumatoError(
                    f"{a.who} and {b.who} both write {a.does.removeprefix('writes ')} of {a.pair} in the same steps; "
                    "give them disjoint steps, or use one of them"
                )


def captured(
    call: Call | Activation, need: Need, rows: Sequence[Name]
) -> dict[Name, Float[Tensor, "each queries keys"]]:
    """A need's maps at one call, averaged over heads, of the chosen keys; or its feature."""
    if isinstance(call, Activation):
        return {name: call.get(name) for name in rows}
    out = {}
    for name in rows:
        mean = call.mean(name, need.pair)
        out[name] = mean if need.tokens is None else mean[..., list(need.tokens)]
    return out
