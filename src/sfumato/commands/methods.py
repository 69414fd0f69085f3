"""``sfumato methods``."""

from __future__ import annotations

import inspect
from typing import Any

from sfumato.commands.options import Json
from sfumato.terminal import print_json, print_table, quiet


def methods(*, json: Json = False) -> None:
    """List the methods: what each is, and the paper that it comes from.

    Example: sfumato methods
    """
    quiet()
    import importlib
    import pkgutil

    from sfumato import inversion
    from sfumato import methods as package

    rows = [_row("inversion", kind, kind) for kind in inversion.Inversion.__subclasses__()]
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        group, stem = found.name.split(".")[-2:]
        for kind in vars(module).values():  # a method's file has its name
            if inspect.isclass(kind) and kind.__name__.lower() == stem.replace("_", ""):
                rows.append(_row(group, kind, module))
    if json:
        print_json(rows)
    else:
        words = [{**r, "defaults": " ".join(f"{k}={v:g}" for k, v in r["defaults"].items())} for r in rows]
        print_table(words)


def _row(group: str, kind: Any, described: Any) -> dict[str, Any]:
    about = inspect.getdoc(described) or ""
    defaults = {k: f.default for k, f in kind.__dataclass_fields__.items() if isinstance(f.default, int | float)}
    return {
        "method": kind.__name__,
        "group": group,
        "defaults": defaults,
        "about": " ".join(about.split("\n\n")[0].split()),
    }
