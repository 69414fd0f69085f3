"""What the methods of a run read and write, checked and priced before its first step.

``plan`` finds the sites, refuses what cannot work and says what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from sfumato.core.choice import PAIRS, choose
from sfumato.core.method import FIELDS, Edit, Need, Phases, Run, span
from sfumato.core.rows import Name
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
    where = what.where
    sites, steps = choose(run.model, where, run.grid, who), span(where.steps, run.steps)
    rows = run.rows.match(where.rows)
    count, noun = len(rows) * run.rows.each, "maps" if where.pair in PAIRS else where.pair
    if isinstance(what, Edit):
        inside = what.field in ("logits", "probs")
        made = max(_made(s, run) for s in sites) if inside else 0
        return Entry(who, f"writes {what.field}", where.pair, sites, steps, rows, count * made, what)
    made = max(_made(s, run) for s in sites)
    kept = sum(_cells(s, run) * (1 if what.tokens is None else len(what.tokens) / _keys(s, run)) * 4 for s in sites)
    return Entry(who, f"reads {noun}", where.pair, sites, steps, rows, count * made + int(count * kept), what)


def _made(site: Site | Layer, run: Run) -> int:
    """Bytes of a row's logits and probabilities at a site, all heads; features are there anyway."""
    return 2 * site.heads * _cells(site, run) * 4 if isinstance(site, Site) else 0


def _keys(site: Site, run: Run) -> int:
    h, w = site.grid(run.grid)
    return ("image" in site.key) * h * w + ("text" in site.key) * run.model.text_tokens


def _cells(site: Site | Layer, run: Run) -> int:
    """Of a site, queries times keys of one head; of a layer, all its values."""
    h, w = site.grid(run.grid)
    if isinstance(site, Layer):
        return (run.model.text_tokens if site.kind == "text" else h * w) * site.width
    return (h * w + ("text" in site.query) * run.model.text_tokens) * _keys(site, run)


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
