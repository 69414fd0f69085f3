"""The documents: pages of methods are what the code says, their commands are understood, and links lead somewhere."""

from __future__ import annotations

import ast
import functools
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sfumato import cli
from sfumato.backbones import hub
from sfumato.media import opening
from sfumato.methods import index

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METHODS = [entry.word for entry in index.METHODS]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def made():
    """What ``docs/make_methods.py`` makes, without writing it."""
    return runpy.run_path(str(DOCS / "make_methods.py"))["pages"]()


@pytest.mark.parametrize("name", [*METHODS, "README"])
def test_a_method_s_page_is_made_of_its_code(made, name):
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page == made[name], f"run: python docs/make_methods.py, then look at what changed in {name}.md"


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``sfumato`` line in a page's code, blocks of shell and indented ones."""
    fenced = re.findall(r"```(?:sh|text)\n(.*?)```", text, re.DOTALL)
    indented = re.findall(r"(?:^    .*\n)+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("sfumato ")]


@pytest.fixture
def understood(monkeypatch):
    """Does a command line parse? The commands behind it are not run."""
    ran = []

    def only_parsed(f):
        @functools.wraps(f)
        def command(**values):
            ran.append(values)

        return command

    for name, f in cli.COMMANDS.items():
        monkeypatch.setitem(cli.COMMANDS, name, only_parsed(f))
    for name, inner in cli.GROUPS.items():
        monkeypatch.setitem(cli.GROUPS, name, lambda word, of=inner: {k: only_parsed(f) for k, f in of(word).items()})
    monkeypatch.setattr(opening, "checked", lambda file: None)
    monkeypatch.setattr(hub, "check", lambda name, built_in: None)
    monkeypatch.chdir(ROOT)

    def check(args):
        ran.clear()
        return cli.main(args) == 0 and len(ran) == 1

    return check


@pytest.mark.parametrize("page", [p for p in TEXTS if commands(p.read_text(encoding="utf-8"))], ids=lambda p: p.stem)
def test_the_commands_of_a_page_are_understood(understood, page):
    for args in commands(page.read_text(encoding="utf-8")):
        assert understood(args), shlex.join(args)


def test_a_command_that_is_not_understood_is_seen(understood):
    (args,) = commands(
        "```sh\nsfumato edit photo.png --from a \\\n --to b masactrl --layers 0.5  # no such option\n```"
    )
    assert args[-1] == "0.5" and not understood(args) and understood([*args[:-2], "--layer", "0.5"])


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text)
    inside = [link for pair in links for link in pair if link and not re.match(r"[a-z]+:|#", link)]
    assert not [link for link in inside if not (page.parent / link.partition("#")[0]).exists()]


IMPORT = r"^ *from (sfumato[\w.]*) import (?:\(([^)]+)\)|([\w, ]+))"


@pytest.mark.parametrize(
    "page", [p for p in TEXTS if "decisions" not in p.parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_what_a_page_s_code_imports_is_there(page):
    for module, several, names in re.findall(IMPORT, page.read_text(encoding="utf-8"), re.MULTILINE):
        for name in filter(None, re.split(r"[\s,]+", several or names)):
            assert hasattr(import_module(module), name) or import_module(f"{module}.{name}"), f"{module}: {name}"


GLOSSARY = (DOCS / "glossary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("home", re.findall(r"\| `(sfumato[\w.]*:[\w.]+)` \|", GLOSSARY))
def test_a_word_of_the_glossary_is_the_name_of_something(home):
    module, _, names = home.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        known = getattr(found, "__dataclass_fields__", {})
        assert name in known or hasattr(found, name), home
        found = getattr(found, name, None)


def names_in(tree: ast.AST) -> set[str]:
    """All names that code gives to something or calls it by; those of attributes and keywords too."""
    keys = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr", ast.keyword: "arg"}
    keys |= {ast.FunctionDef: "name", ast.ClassDef: "name"}
    return {getattr(node, keys[type(node)]) for node in ast.walk(tree) if type(node) in keys}


def test_words_out_of_use_are_the_names_of_nothing():
    unused = {row for row in re.findall(r"^\| `(\w+)` \| .*", GLOSSARY.partition("## Out of use")[2], re.MULTILINE)}
    assert {"told", "said", "At"} <= unused
    package = ROOT / "src" / "sfumato"
    found = {f: names_in(ast.parse(f.read_text(encoding="utf-8"))) & unused for f in package.rglob("*.py")}
    assert not {str(file.relative_to(package)): words for file, words in found.items() if words}
    assert names_in(ast.parse("def f(told): x.said = At(asking=1)")) >= {"told", "said", "At", "asking"}
