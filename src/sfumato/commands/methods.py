"""``sfumato show methods``."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from sfumato.commands.options import Json
from sfumato.io.terminal import print_json, quiet


def methods(*, json: Json = False) -> None:
    """List the methods: what each is, the paper that it comes from, what it needs, which families it works on.

    Example: sfumato show methods
    """
    quiet()
    rows = list(_rows())
    if json:
        print_json(rows)
        return
    width = min(100, shutil.get_terminal_size().columns)
    for group in dict.fromkeys(row["group"] for row in rows):
        print(f"{group}\n")
        for row in (r for r in rows if r["group"] == group):
            print(f"  {row['method']}" + (f" ({row['words']})" if "words" in row else ""))
            defaults = " ".join(f"{k}={float(v):g}" for k, v in row["defaults"].items())
            print(textwrap.indent(textwrap.fill(row["about"], width - 4), "    "))
            lines = {"defaults": defaults, "needs": row["needs"], "families": row["families"]}
            lines |= {"asks for": "; ".join(row["asks"])} if row["asks"] else {}
            for name, text in lines.items():
                print(textwrap.fill(f"{name}: {text}", width, initial_indent="    ", subsequent_indent="      "))
            print()


def _rows() -> Iterator[dict[str, Any]]:
    from sfumato import inversion
    from sfumato.methods import index

    named = (getattr(inversion, name) for name in inversion.__all__)  # others are methods, in files of their own
    for kind in (k for k in named if isinstance(k, type) and issubclass(k, inversion.Inversion)):
        if kind is not inversion.Inversion:
            yield _row("inversion", kind, kind)
    for entry in index.METHODS:
        if not entry.is_function:
            words = ", ".join(filter(None, (entry.word, entry.alias)))
            yield {"words": words, **_row(entry.group, entry.method, entry.module)}


def _row(group: str, kind: Any, described: Any) -> dict[str, Any]:
    from sfumato.methods.about import about

    found = about(described, kind)
    numbers = {k: f.default for k, f in kind.__dataclass_fields__.items() if isinstance(f.default, int | float)}
    defaults = {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}  # JSON has no infinity
    row = {"method": kind.__name__, "group": group, "defaults": defaults, "about": found.summary}
    return row | {"needs": found.needs, "families": found.families, "asks": list(found.asks)}
