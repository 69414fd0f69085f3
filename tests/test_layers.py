"""The law of imports: a room imports only what stands above it, imports inside functions and for types included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import sfumato

ROOT = Path(sfumato.__file__).parent
ROOMS = (
    *("errors", "io", "ops", "media", "metrics", "core", "prompts", "reading", "inversion", "learning", "distill"),
    *("scene", "stilllife", "backbones", "methods", "experiments", "tasks", "bench", "studio", "commands", "cli"),
    "__main__",
)
"""From the ground up."""
FORBIDDEN = {("methods", "stilllife"), ("experiments", "commands")}
"""Though they stand above."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name below the package, such as ``core.rows``; a package has its own."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Names of the modules that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        named = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in named:
            head, _, rest = name.partition(".")
            if head == "sfumato":
                while rest and rest not in known:
                    rest = rest.rpartition(".")[0]
                yield rest


def climbs(tree: ast.Module, room: str, known: set[str]) -> list[str]:
    """What a module of a room imports though it may not."""
    level = ROOMS.index(room)
    above = {name for name in imported(tree, known) if name}
    rooms = {name: name.split(".")[0] for name in above}
    return [n for n, r in rooms.items() if r != room and (ROOMS.index(r) > level or (room, r) in FORBIDDEN)]


def test_every_module_has_a_room_and_imports_only_what_stands_above_it():
    found = modules()
    known = set(found)
    assert {name.split(".")[0] for name in known if name} <= {*ROOMS}
    bad = {name: up for name, tree in found.items() if name and (up := climbs(tree, name.split(".")[0], known))}
    assert not bad


def test_there_are_no_circles():
    found = modules()
    known = set(found)
    graph = {name: {to for to in imported(tree, known) if to not in ("", name)} for name, tree in found.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        raise AssertionError(" -> ".join(reversed(e.args[1]))) from None


def test_the_root_is_empty_but_for_the_doors():
    assert sorted(file.name for file in ROOT.glob("*.py")) == ["__init__.py", "__main__.py", "cli.py", "errors.py"]


def test_a_climb_is_seen_wherever_it_stands():
    text = "def f():\n    from sfumato.methods.edit import masactrl\nif TYPE_CHECKING:\n    import sfumato.core.plan\n"
    known = {"methods", "methods.edit", "methods.edit.masactrl", "core", "core.plan"}
    tree = ast.parse(text)
    assert set(imported(tree, known)) == {"methods.edit.masactrl", "core.plan"}
    assert climbs(tree, "core", known) == ["methods.edit.masactrl"] and not climbs(tree, "bench", known)
    assert climbs(ast.parse("from sfumato import stilllife"), "methods", {*known, "stilllife"}) == ["stilllife"]
