"""What the methods of a run read and write, checked and priced before its first step.

``plan`` finds the sites, refuses what cannot work and says what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any, cast

from sfumato.core.attention import Call
from sfumato.core.brief import table
from sfumato.core.choice import PAIRS, choose
from sfumato.core.features import Activation
from sfumato.core.groups import Group, Turn, turns
from sfumato.core.method import FIELDS, Edit, Need, Phases, Run, captured, span
from sfumato.core.rehearsal import peak
from sfumato.core.rows import Name, Rows
from sfumato.core.sites import Layer, Site
from sfumato.errors import SfumatoError


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
    what: Need | Edit
    apart: bool = False
    """In predictions of its own (``look``)."""

    def active(self, step: int) -> bool:
        return self.steps[0] <= step < self.steps[1]


@dataclass(frozen=True)
class Price:
    """What a line of a plan takes by itself."""

    bytes: int
    """As ``Plan.bytes``."""
    bound: bool = False
    """Is it a bound from above? That of a handler that looks at numbers is: it cannot be rehearsed."""


@dataclass
class Plan:
    """Sites, steps, readers and writers, extra calls and bytes of a run."""

    entries: list[Entry]
    run: Run
    calls: dict[str, float] = field(default_factory=dict)
    """Method -> further network calls a step."""
    start: Callable[[], Mapping[str, Phases]] = dict
    """Starts the methods once more, for what pricing uses up."""
    _turns: dict[tuple[int, ...], tuple[Turn, ...]] = field(default_factory=dict, repr=False)

    def turns(self, step: int) -> tuple[Turn, ...]:
        """In which turns images go through the network in a step. Raises ``SfumatoError`` where they cannot."""
        found = reads(self.entries, step)
        key = tuple(map(id, found))
        if key not in self._turns:  # one is known at a time: some methods read others in each step
            images, size = self.run.rows.of_stream, self.run.group or self.run.rows.of_stream
            self._turns = {key: turns(found, images, size)}
        return self._turns[key]

    @cached_property
    def prices(self) -> tuple[Price, ...]:
        """Of each entry by itself."""
        return self._prices.each

    @cached_property
    def bytes(self) -> int:
        """What taps take at most: within one tapped site or layer, with its output, what is made there at the same
        time, and what earlier ones of the same prediction left. Where gradients are taken that is what they keep for
        the way back, less what the network alone would keep there. What the network and the way back take, and what
        the kernels take to work in, is not in it."""
        return self._prices.most()

    @cached_property
    def _prices(self) -> _Prices:
        return _Prices(self.run, self.start())

    @property
    def sites(self) -> tuple[Site | Layer, ...]:
        """All that are tapped in the steps' own predictions, in order."""
        return tuple(sorted({s for e in self.entries if not e.apart for s in e.sites}, key=lambda s: s.index))

    def active(self, step: int) -> dict[Site | Layer, list[Entry]]:
        """What happens at each site in a step, in the order of the fields; maps are taken once they are edited."""
        return by_site([e for e in self.entries if e.active(step) and not e.apart])

    def __repr__(self) -> str:
        who = ", ".join(dict.fromkeys(e.who for e in self.entries)) or "no method"
        return f"Plan({len(self.entries)} entries of {who} at {len(self.sites)} sites in {self.run.steps} steps)"

    def _repr_html_(self) -> str:
        return table(self.table())

    def table(self) -> list[dict[str, Any]]:
        """A row a line, for people and for machines."""
        rows = [
            {
                "method": e.who,
                "does": e.does,
                "pair": e.pair if e.what.where.axis == "space" else f"{e.pair} over time",
                "sites": len(e.sites),
                "grids": sorted({"x".join(map(str, s.grid(self.run.grid))) for s in e.sites}),
                "steps": f"{e.steps[0]}-{e.steps[1] - 1}",
                "rows": [f"{s}/{c}" for s, c in e.rows],
                "bytes": price.bytes,
            }
            for e, price in zip(self.entries, self.prices, strict=True)
        ]
        more = [(who, n) for who, n in self.calls.items() if n]
        return rows + [{"method": who, "does": "calls the network", "calls a step": n} for who, n in more]


def by_site(entries: Iterable[Entry]) -> dict[Site | Layer, list[Entry]]:
    """The entries of each site, in the order in which they act."""
    out: dict[Site | Layer, list[Entry]] = {}
    for entry in sorted(entries, key=_order):
        for site in entry.sites:
            out.setdefault(site, []).append(entry)
    return out


def _order(entry: Entry) -> float:
    return FIELDS.index(entry.what.field) if isinstance(entry.what, Edit) else FIELDS.index("probs") + 0.5


def reads(entries: Iterable[Entry], step: int) -> list[Sequence[Sequence[int]]]:
    """Whom images read in a step, by each entry that lets them read others."""
    found = [e.what.reads(step) for e in entries if isinstance(e.what, Edit) and e.what.reads and e.active(step)]
    return list({id(each): each for each in found}.values())


def at_once(run: Run, entries: Iterable[Entry], step: int) -> list[Rows]:
    """Rows that go through the network at once: all, or of the first turn and of a later one."""
    if run.group is None:
        return [run.rows]
    some = turns(reads(entries, step), run.rows.of_stream, run.group)
    most = max(len(turn.images) for turn in some)
    few = (some[0], next(turn for turn in reversed(some) if len(turn.images) == most))
    groups = [Group(turn.images, turn.later, rehearsed=True) for turn in dict.fromkeys(few)]
    return [replace(run.rows, of_stream=len(group.images), group=group) for group in groups]


def act(seen: Call | Activation, entries: Sequence[Entry], maps: dict[Need, Any]) -> None:
    """Let entries read and write what is seen at one of their sites; ``maps`` gains what they read."""
    for entry in entries:
        if isinstance(entry.what, Need):
            maps.setdefault(entry.what, {})[seen.site] = captured(seen, entry.what, entry.rows)
        else:
            entry.what.do(seen)


def plan(
    run: Run, phases: Mapping[str, Phases], start: Callable[[], Mapping[str, Phases]], memory: int | None = None
) -> Plan:
    """Resolve what the methods declare; ``start`` starts them once more, for what pricing uses up.

    Raises ``SfumatoError`` for a pair, resolution, row or span that does not exist, for two writers of the same thing,
    and for a plan of more than ``memory`` bytes.
    """
    out = Plan(_entries(run, phases), run, {k: p.calls for k, p in phases.items()}, start)
    _refuse_conflicts(out.entries)
    for step in range(run.steps if run.group else 0):
        out.turns(step)
    if memory is not None and out.entries and out.bytes > memory:
        worst, _ = max(zip(out.entries, out.prices, strict=True), key=lambda each: each[1].bytes)
        raise SfumatoError(
            f"{worst.who} needs {out.bytes / 2**20:.0f} MiB for {worst.pair} at {worst.sites[0].path}, more than the "
            f"{memory / 2**20:.0f} MiB allowed; ask for a coarser resolution, fewer rows or more memory"
        )
    return out


def _entries(run: Run, phases: Mapping[str, Phases]) -> list[Entry]:
    entries = []
    for who, phase in phases.items():
        entries += [_entry(who, what, run) for what in (*phase.needs, *phase.edits)]
        entries += [replace(_entry(who, what, run), does="looks at maps", apart=True) for what in phase.looks]
    return [e for e in entries if e.steps[0] < e.steps[1]]


def _entry(who: str, what: Need | Edit, run: Run) -> Entry:
    where = what.where
    noun = "maps" if where.pair in PAIRS else where.pair
    does = f"writes {what.field}" if isinstance(what, Edit) else f"reads {noun}"
    sites, steps = choose(run.model, where, run.grid, who), span(where.steps, run.steps)
    return Entry(who, does, where.pair, sites, steps, run.rows.match(where.rows), what)


class _Prices:
    """What entries take, each by itself and those of a prediction together, found by rehearsing them."""

    def __init__(self, run: Run, phases: Mapping[str, Phases]):
        self.run, self.entries = run, _entries(run, phases)
        self.energies = [
            span(p.energy.steps, run.steps) for p in phases.values() if p.energy and p.energy.through_network
        ]
        self.descending = {who for who, p in phases.items() if p.descends}

    @cached_property
    def each(self) -> tuple[Price, ...]:
        return tuple(self._alone(entry) for entry in self.entries)

    def most(self) -> int:
        """Bytes of any prediction."""
        moments = {0, *(step for e in self.entries for step in e.steps), *chain(*self.energies)}
        found: dict[Any, int] = {}
        for step in sorted(moments):
            active = sorted((e for e in self.entries if e.active(step)), key=_prediction)
            for _, some in groupby(active, key=_prediction):
                together = list(some)
                key = (self._grad(together[0], step), *map(id, together))
                if key not in found:
                    found[key] = self._together(together, step)
        return max(found.values(), default=0)

    def _grad(self, entry: Entry, step: int) -> bool:
        """Are gradients taken through the entry's prediction?"""
        if entry.apart:
            return entry.who in self.descending
        return any(first <= step < end for first, end in self.energies)

    def _together(self, entries: Sequence[Entry], step: int) -> int:
        with suppress(Exception):  # whatever a handler does that looks at numbers, or at what earlier moments left
            return self._rehearsed(entries, step)
        each = dict(zip(map(id, self.entries), self.each, strict=True))
        return sum(each[id(e)].bytes for e in entries)

    def _alone(self, entry: Entry) -> Price:
        first, end = entry.steps
        step = next((s for s in range(first, end) if self._grad(entry, s)), first)
        with suppress(Exception):
            return Price(self._rehearsed([entry], step))
        return Price(self._bound(entry, step), bound=True)

    def _rehearsed(self, entries: Sequence[Entry], step: int) -> int:
        """Bytes. Raises what handlers do, and ``_Idle`` for one that writes nothing: it waits for the run's numbers."""
        found, last = [], None
        for rows in self._rows(entries, step):
            try:
                found.append(self._peak(entries, step, rows))
            except Exception as e:  # of several turns one may have nothing of what goes in another
                last = e
        if not found:
            raise last or _Idle
        return max(found)

    def _peak(self, entries: Sequence[Entry], step: int, rows: Rows) -> int:
        maps: dict[Need, Any] = {}
        wrote = {id(e): not isinstance(e.what, Edit) for e in entries}
        handlers: dict[Any, Any] = {}

        def handler(some: Sequence[Entry]) -> Any:
            def handle(seen: Call | Activation) -> None:
                for entry in some:
                    before = seen.writes
                    act(seen, [entry], maps)
                    wrote[id(entry)] |= seen.writes > before

            return handlers.setdefault(tuple(map(id, some)), handle)

        at = by_site(entries)
        taps = [(site, handler(at[site])) for site in sorted(at, key=lambda s: s.index)]
        apart, grad = entries[0].apart, self._grad(entries[0], step)
        size = peak(taps, self.run, rows, step, grad, stop=apart)
        if not all(wrote.values()):
            raise _Idle
        return size

    def _rows(self, entries: Sequence[Entry], step: int) -> list[Rows]:
        """That the entries' prediction runs."""
        if not entries[0].apart:
            return at_once(self.run, self.entries, step)
        names = [name for e in entries for name in e.rows]
        streams, conditions = (tuple(dict.fromkeys(part)) for part in zip(*names, strict=True))
        return [replace(self.run.rows, streams=streams, conditions=conditions)]

    def _bound(self, entry: Entry, step: int) -> int:
        """Two copies of all that a site has, in float32, and of its maps two where the output is written, four where
        they are; at all sites together where anything is kept."""
        sizes = [self._copies(site, entry, step) for site in entry.sites]
        return sum(sizes) if isinstance(entry.what, Need) or self._grad(entry, step) else max(sizes)

    def _copies(self, site: Site | Layer, entry: Entry, step: int) -> int:
        height, width = site.grid(self.run.grid)
        tokens = {"image": height * width, "text": self.run.model.text_tokens}
        some = self._rows([entry], step)[-1]
        each = some.each
        if site.axis == "time":
            some = some.over_time(height * width)
            each = some.each
            tokens["image"] = self.run.rows.frames
        rows = len(some)
        if isinstance(site, Layer):
            return 4 * 2 * rows * site.width * (tokens["text"] if site.kind == "text" else tokens["image"])
        queries, keys = (sum(tokens[s] for s in segments) for segments in (site.query, site.key))
        field = None if isinstance(entry.what, Need) else entry.what.field
        maps = {"qkv": 0, "out": 2}.get(field or "", 4)
        read = maps * len(entry.rows) * each
        return 4 * site.heads * (2 * rows * (2 * queries + 2 * keys) * site.dim + read * queries * keys)


def _prediction(entry: Entry) -> str:
    """Whose prediction an entry takes part in: the step's own is nobody's."""
    return entry.who if entry.apart else ""


class _Idle(Exception):
    """A handler that may write wrote nothing."""


def _refuse_conflicts(entries: Sequence[Entry]) -> None:
    writers = [e for e in entries if isinstance(e.what, Edit)]
    for n, a in enumerate(writers):
        for b in writers[n + 1 :]:
            one, other = cast("Edit", a.what), cast("Edit", b.what)
            same = one.field == other.field and a.pair == b.pair
            same = same and (one.field != "qkv" or bool(set(one.parts) & set(other.parts)))
            if same and _meet(a, b):
                raise SfumatoError(
                    f"{a.who} and {b.who} both write {a.does.removeprefix('writes ')} of {a.pair} in the same steps; "
                    "give them disjoint steps, or use one of them"
                )
    for a in (e for e in writers if cast("Edit", e.what).field == "sources"):
        for b in entries:
            if b.pair == a.pair and _of_own_keys(b) and _meet(a, b):
                raise SfumatoError(
                    f"{a.who} lets images read each other's keys where {b.who} {b.does} of {b.pair}, which are of an "
                    "image's own; give them disjoint steps, or use one of them"
                )


def _meet(a: Entry, b: Entry) -> bool:
    """Are there steps, sites and rows that are both entries'?"""
    steps = max(a.steps[0], b.steps[0]) < min(a.steps[1], b.steps[1])
    return steps and bool(set(a.sites) & set(b.sites)) and bool(set(a.rows) & set(b.rows))


def _of_own_keys(entry: Entry) -> bool:
    """Does it read or write maps as if an image read nothing but itself?"""
    if isinstance(entry.what, Edit):
        return entry.what.field in ("logits", "probs")
    return entry.what.reduce is None and not entry.apart
