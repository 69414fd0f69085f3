"""``sfumato methods``."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.commands.help import width
from sfumato.commands.options import Json
from sfumato.errors import SfumatoError, unknown
from sfumato.io.terminal import print_json
from sfumato.methods import index

if TYPE_CHECKING:
    from sfumato.methods.about import About

GROUPS = {
    "edit": 'change a picture by words: sfumato edit photo.png --from "a cube" --to "a sphere" METHOD',
    "control": 'steer what is painted: sfumato generate "a red cube" METHOD',
    "sets": "agree over images, panoramas and clips: sfumato generate | panorama | video ... METHOD",
    "perceive": "read pictures: sfumato segment | match | keypoints | train-head ... METHOD",
    "distill": 'fit by a model\'s judgement: sfumato distill2d | lift "a red cube" METHOD',
    "personalise": 'learn a word from photographs: sfumato learn photos/ --as "<mug>" METHOD',
    "inversion": "where edits of pictures begin: sfumato edit photo.png ... --invert WORD",
}
"""What methods are for, and where their words go."""


def methods(
    asked: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(
            metavar="GROUP|METHOD|WORD",
            help="A group, methods by their words, or any word of what they are.",
        ),
    ] = (),
    *,
    model: Annotated[
        str | None, tyro.conf.arg(name="for", metavar="MODEL", help="Those for a family of models alone, as sdxl.")
    ] = None,
    json: Json = False,
) -> None:
    """List the methods by the words that commands take: what each does, and its presets.

    A group alone lists its methods, a method's word tells all that is known of it.

    Example: sfumato methods

    Example: sfumato methods edit --for flux

    Example: sfumato methods p2p masactrl
    """
    from sfumato.methods.about import family

    of, rows = None if model is None else family(model), list(_rows())
    asked = tuple(word for text in asked for word in text.split())
    words = sorted({word for row in rows for word in (row["method"], row["alias"]) if word})
    listed = f"groups: {', '.join(GROUPS)}; sfumato methods lists all"
    named = [row for row in rows if {row["method"], row["alias"]} & {*asked}]
    groups = {*asked} & {*GROUPS}
    for word in asked:
        if named and word not in words:
            raise unknown("method", word, words, listed)
    found = named or [row for row in rows if not groups or row["group"] in groups]
    if not named:
        found = [row for row in found if all(word.lower() in _text(row) for word in asked if word not in groups)]
    if not found:
        raise unknown("group or method", " ".join(asked), [*GROUPS, *words], listed)
    shown = [row for row in found if of is None or row["about"].works_on(of)]
    if not shown:
        raise SfumatoError(f"none of {', '.join(row['method'] for row in found)} works on {of}")
    if json:
        print_json([{key: value for key, value in row.items() if key != "about"} for row in shown])
    elif named:
        print("\n\n".join(map(_whole, shown)))
    else:
        _print(shown)


def _text(row: dict[str, Any]) -> str:
    return " ".join((row["method"], row["alias"], row["about"].summary, *row["about"].text)).lower()


def _rows() -> Iterator[dict[str, Any]]:
    from sfumato.methods.about import about, described
    from sfumato.tasks import recipes, starts

    for entry in index.METHODS:
        if not entry.is_function:
            suiting = [row.preset for row in recipes.RECIPES.values() if row.word == entry.word]
            suiting += [recipes.DEFAULTS] if recipes.usual(entry) else []
            yield _row(entry.word, entry.alias, entry.group, about(entry), suiting)
    for word, home in starts.HOMES.items():
        module, _, name = home.partition(":")
        yield _row(word, "", "inversion", described(module, name, alone=False), [])


def _row(word: str, alias: str, group: str, about: About, suiting: list[str]) -> dict[str, Any]:
    name, paper, does = about.head
    row = {"method": word, "alias": alias, "group": group, "name": name, "paper": paper, "about": about}
    row |= {"does": (does or name).rstrip("."), "presets": [*dict.fromkeys((*about.presets, *suiting))]}
    return row | {"needs": about.needs, "families": about.families, "asks": list(about.asks)}


def _print(rows: list[dict[str, Any]]) -> None:
    """A line each, cut at a terminal's width, whole in a pipe."""
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for i, group in enumerate(dict.fromkeys(row["group"] for row in rows)):
        print(f"{chr(10) if i else ''}{group}: {GROUPS[group]}")
        for row in (row for row in rows if row["group"] == group):
            alias = f" ({row['alias']})" if row["alias"] else ""
            presets = f"; presets: {', '.join(row['presets'])}" if row["presets"] else ""
            line = f"  {row['method'] + alias:<34} {row['does']}{presets}"
            print(f"{line[: most - 1]}…" if most and len(line) > most else line)


def _whole(row: dict[str, Any]) -> str:
    use = GROUPS[row["group"]].replace("METHOD", row["method"]).replace("WORD", row["method"])
    lines = {"": row["about"].summary, "presets": ", ".join(row["presets"])}
    lines |= {"needs": row["needs"], "families": row["families"], "asks for": "; ".join(row["asks"]), "use": use}
    texts = [f"{name}: {text}" if name else text for name, text in lines.items() if text]
    alias = f" ({row['alias']})" if row["alias"] else ""
    filled = [textwrap.fill(text, width(), initial_indent="  ", subsequent_indent="    ") for text in texts]
    return "\n".join([row["method"] + alias, *filled])
