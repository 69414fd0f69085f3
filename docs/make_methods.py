"""docs/methods: a page for each method, made of its docstrings, fields and presets, and the list of them.

python docs/make_methods.py

What stands between the two marks of a page is written by hand and kept: an example, a picture, what was measured, when
to use the method. What the code says belongs into the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from sfumato.commands.fields import spoken
from sfumato.core.described import behind, strings
from sfumato.methods import index
from sfumato.methods.about import About, about
from sfumato.tasks import recipes

PAGES = Path(__file__).parent / "methods"
HAND, END = "<!-- by hand -->", "<!-- end -->"
GROUPS = {
    "edit": "Editing",
    "control": "Control",
    "sets": "Sets of images",
    "perceive": "Reading images",
    "distill": "Score distillation",
    "personalise": "Personalising",
}
INTRO = """# Methods

Each page says what a method does, shows a picture that its own command made with the built-in model
(`python docs/make_pictures.py`, of sets of images also `python docs/moving.py`), and says when to use it and when not,
what it costs, and on which models it works.
[Which method for which edit](../which-method.md) and [reading images](../reading.md) compare them, and so does
[score distillation](../distillation.md).
"""


def pages() -> dict[str, str]:
    """Every page by its name, as the code and what is written by hand there make it."""
    out = {entry.word: page(entry, by_hand(PAGES / f"{entry.word}.md")) for entry in index.METHODS}
    return out | {"README": "\n".join([INTRO, *(listed(group, title) for group, title in GROUPS.items())])}


def by_hand(file: Path) -> str:
    """What stands between the marks of a page; nothing of one that is not there yet."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text.partition(f"{HAND}\n")[2].partition(f"\n{END}")[0].strip("\n")


def page(entry: index.Entry, hand: str) -> str:
    found = about(entry)
    name, paper, does = found.head
    idea = [text for text in found.text[:1] if not text.startswith("Default")]
    rest = found.text[len(idea) :]
    parts = [
        f"# {name}",
        markdown(f"{sentence(does)}{f' ({paper})' if paper else ''}"),
        *map(markdown, idea),
        f"{HAND}\n\n{hand}\n\n{END}",
        *(["## Defaults and differences", *map(markdown, rest)] if rest else []),
        *(called(entry) if entry.is_function else options(entry)),
        "## What it takes",
        takes(found),
        source(entry),
    ]
    return "\n\n".join(parts) + "\n"


def takes(found: About) -> str:
    lines = [f"- Needs: {found.needs}", f"- Families: {found.families}"]
    lines += [f"- Asks for: {'; '.join(found.asks)}."] if found.asks else []
    return "\n".join(markdown(line, "  ") for line in lines)


def source(entry: index.Entry) -> str:
    """Where the code is, and what else the method is called."""
    module, _, name = entry.home.partition(":")
    path = f"src/sfumato/methods/{module.replace('.', '/')}.py"
    also = f" On a command line also `{entry.alias}`." if entry.alias else ""
    return f"`{name}` in [{path}](../../{path}).{also}"


def called(entry: index.Entry) -> list[str]:
    """How a function is called."""
    names = ", ".join(inspect.signature(entry.method).parameters)
    text = inspect.getdoc(entry.method) or ""
    return ["## Call", f"`{entry.method.__name__}({names})`", *map(markdown, text.split("\n\n"))]


def options(entry: index.Entry) -> list[str]:
    """Tables of a method's fields, as a command line spells them, and of its presets."""
    cls = entry.method
    hints = get_type_hints(spoken(cls), include_extras=True)
    docs = strings(cls)
    lines = [
        [option(f.name, hints[f.name]), default(f, hints[f.name]), markdown(docs.get(f.name, ""), wrap=False)]
        for f in fields(cls)
        if f.init
    ]
    out = ["## Options", table(["option", "default", ""], lines)] if lines else []
    texts = behind(ast.parse(inspect.getsource(entry.module)).body)
    suiting = {row.preset: beside(row) for row in recipes.RECIPES.values() if row.word == entry.word}
    lines = []
    for word, value in recipes.presets(entry).items():
        if word == recipes.DEFAULTS:  # the table of options has it
            continue
        new = [f for f in fields(cls) if f.init and getattr(value, f.name) != start(f)]
        settings = " ".join(spelled(f.name, hints[f.name], getattr(value, f.name)) for f in new)
        text = texts.get(word.upper().replace("-", "_")) or suiting.get(word, "")
        lines.append([f"`{word}`", f"`{settings}`" if settings else "as published", markdown(text, wrap=False)])
    return out + (["## Presets", table(["`--preset`", "settings", ""], lines)] if lines else [])


def beside(row: recipes.Recipe) -> str:
    """What suits a model, and what suits beside the method's own settings."""
    more = {"guidance": row.guidance, "invert": row.start, "side": row.side}
    options = " ".join(f"--{k} {written(v, None)}" for k, v in more.items() if v is not None)
    return f"Suits `{row.model}`{f', with `{options}`' if options else ''}."


def option(name: str, hint: Any) -> str:
    """A field as a command line spells it; its bare name where it is for Python alone."""
    value = metavar(hint)
    if value is None:
        return f"`{name}`, from Python"
    flag = name.replace("_", "-")
    return f"`--{flag} {value}`" if value else f"`--{flag}`, `--no-{flag}`"


def metavar(hint: Any) -> str | None:
    """What follows an option of a type: nothing for a switch, None where no command line can give it."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        spec = inside[1]
        return spec.metavar if isinstance(spec, tyro.constructors.PrimitiveConstructorSpec) else None
    if kind is Literal:
        return "{" + ",".join(map(str, inside)) + "}"
    if kind in (Union, types.UnionType):
        found = [metavar(one) for one in inside if one is not type(None)]
        return None if None in found else "|".join(filter(None, found))
    if kind is tuple:
        return f"{metavar(inside[0])} ..." if ... in inside else " ".join(metavar(one) or "" for one in inside)
    if hint is bool:
        return ""
    return hint.__name__.upper() if hint in (int, float, str) else None


def start(f: Field[Any]) -> Any:
    """A field's default; ``MISSING`` where it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def default(f: Field[Any], hint: Any) -> str:
    value = start(f)
    return (
        "required"
        if value is MISSING
        else "none"
        if value in (None, "", ()) or value == {}
        else f"`{written(value, hint)}`"
    )


def spelled(name: str, hint: Any, value: Any) -> str:
    """A field with a value as a command line says it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {written(value, hint) or repr('')}"


def written(value: Any, hint: Any) -> str:
    if get_origin(hint) is Annotated and hasattr(get_args(hint)[1], "str_from_instance"):
        return " ".join(get_args(hint)[1].str_from_instance(value))
    if isinstance(value, tuple):
        return " ".join(written(one, None) for one in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(text: str, indent: str = "", wrap: bool = True) -> str:
    """A docstring's paragraph in Markdown: code, links to papers, lines of 120."""
    text = " ".join(text.split()).replace("``", "`")
    if wrap:
        text = textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return re.sub(r"arXiv(\s+)(\d{4}\.\d{5})", r"[arXiv\1\2](https://arxiv.org/abs/\2)", text)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def listed(group: str, title: str) -> str:
    """A group's heading and table: the picture if there is one, the name, and what it does."""
    rows = []
    for entry in sorted((e for e in index.METHODS if e.group == group), key=lambda e: e.word):
        name, _, does = about(entry).head
        files = [f"images/{kind}/{entry.word}.webp" for kind in ("methods", "moving")]
        there = [file for file in files if (PAGES.parent / file).exists()]
        shown = f'<img src="../{there[0]}" width="160" alt="">' if there else ""
        rows.append([shown, f"[{name}]({entry.word}.md)", markdown(sentence(does), wrap=False)])
    return f"## {title}\n\n{table(['', 'method', ''], rows)}\n"


if __name__ == "__main__":
    for name, text in pages().items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
