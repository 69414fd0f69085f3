"""The documents: pages of methods are what the code says, their commands are understood, and links lead somewhere."""

from __future__ import annotations

import ast
import functools
import re
import runpy
import shlex
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pages
import pytest
from pages import blocks

from sfumato import cli
from sfumato.backbones import hub
from sfumato.commands import first, options
from sfumato.errors import SfumatoError
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
    """The arguments of each ``sfumato`` line in a page's code."""
    return [args for block in blocks(text) for args in block.commands]


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
        monkeypatch.setitem(
            cli.GROUPS, name, lambda *asked, of=inner: {k: only_parsed(f) for k, f in of(*asked).items()}
        )
    monkeypatch.setattr(first, "_there", lambda *args: None)
    monkeypatch.setattr(opening, "checked", lambda file: None)
    monkeypatch.setattr(options, "look", lambda *args: None)
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


def test_pages_say_where_the_pictures_of_their_commands_are():
    texts = [page.read_text(encoding="utf-8") for page in TEXTS]
    named = [text for text in texts if any("docs/images" in arg for args in commands(text) for arg in args)]
    assert named and all("in a clone of the repository" in text for text in named)


def test_a_command_that_is_not_understood_is_seen(understood):
    (args,) = commands(
        "```sh\nsfumato edit photo.png --from a \\\n --to b masactrl --layers 0.5  # no such option\n```"
    )
    assert commands("    sfumato a --colours cube=#ff8800  # orange\n") == [["a", "--colours", "cube=#ff8800"]]
    assert args[-1] == "0.5" and not understood(args) and understood([*args[:-2], "--layer", "0.5"])


KINDS = {"python", "sh", "text"}
NO_RUN = {"core.md": 1}
"""Python that is run by nobody, as it needs four models at once; fenced as ``python no-run``."""
LONG = {"lift.md"}
"""Whose textures take ten seconds however small the scene is."""
HOURS = {"bench", "experiment"}
"""Commands that measure: each suite has tests of its own."""
THEIRS = {"...", "canny/:0.7", "out/lift/robot.safetensors", "cat.safetensors", "--mask-word"}
THEIRS |= {"out/learn/mug-ball-break-a-scene.safetensors", "toy.safetensors:<toy>"}
THEIRS |= {"lllyasviel/control_v11f1p_sd15_depth", "1024x576"}
"""Of arguments, what only a reader has: ControlNets, a scene with surfaces, a photograph of two things, what is
learned of it, an embedding, and a video model at its size, where the tiny one takes ten minutes and more as well."""
QUICK = {"match", "methods", "render", "segment", "show"}
"""Commands of the README that take under a second with tiny networks."""
CODE = [p for p in TEXTS if any(block.kind == "python" for block in blocks(p.read_text(encoding="utf-8")))]


def test_no_code_of_a_page_is_left_out_in_silence():
    others = [(p.name, b.kind) for p in TEXTS for b in blocks(p.read_text(encoding="utf-8")) if b.kind not in KINDS]
    assert sorted(others) == sorted((name, "python no-run") for name, count in NO_RUN.items() for _ in range(count))
    without = [word for word in METHODS if DOCS / "methods" / f"{word}.md" not in CODE]
    assert not without, "pages of methods show Python"


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A reader's folder, in which code is run with the built-in models, and tiny ones for all others."""
    pages.surroundings(tmp_path)
    monkeypatch.chdir(tmp_path)
    pages.stand_ins(monkeypatch)
    return tmp_path


def run_python(page: Path, names: dict[str, Any]) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "python":
            pages.paste(page, block, names)


@pytest.mark.parametrize("page", [p for p in CODE if p.name not in LONG], ids=lambda p: p.stem)
def test_the_python_of_a_page_runs_as_pasted(page, beside, monkeypatch):
    pages.quick(monkeypatch)
    run_python(page, {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("page", CODE, ids=lambda p: p.stem)
def test_the_python_of_a_page_runs_with_the_real_model(page, beside):
    run_python(page, {"__name__": "__main__"})


def run_commands(page: Path) -> None:
    """In the page's order, as some need what earlier ones made; what another page makes is made before it is read."""
    every = {p: commands(p.read_text(encoding="utf-8")) for p in TEXTS}
    makers = {args[args.index("--out") + 1]: args for own in every.values() for args in own if "--out" in args}
    for args in every[page]:
        if args[0] in HOURS or THEIRS & {*args}:
            continue
        read = [name for option, name in pairwise(args) if name in makers and option != "--out"]
        for one in (*(makers[name] for name in read if not Path(name).exists()), args):
            assert cli.main(pages.expanded(one)) == 0, shlex.join(one)


def test_quick_commands_of_the_readme_run(beside, monkeypatch):
    pages.quick(monkeypatch)
    own = [args for args in commands((ROOT / "README.md").read_text(encoding="utf-8")) if args[0] in QUICK]
    assert len(own) > 5
    for args in own:
        assert cli.main(pages.expanded(args)) == 0, shlex.join(args)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["few steps", "whole"])
@pytest.mark.parametrize("page", [p for p in TEXTS if commands(p.read_text(encoding="utf-8"))], ids=lambda p: p.stem)
def test_the_commands_of_a_page_run(page, whole, beside, monkeypatch):
    if not whole:
        pages.quick(monkeypatch)
    run_commands(page)


@pytest.mark.parametrize(
    "code, error",
    [
        ("from sfumato import load\nmodel = lod()", NameError),
        ("from sfumato import load\nload('stilllife', offloading=True)", SfumatoError),
        ("from sfumato import denoise, load\ndenoise(load(), 'a', step=3)", TypeError),
        ("from sfumato import read_image\nread_image('missing.png')", SfumatoError),
    ],
)
def test_code_that_does_not_run_is_seen(tmp_path, beside, monkeypatch, code, error):
    pages.quick(monkeypatch)
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```python\n{code}\n```\n")
    with pytest.raises(error) as caught:
        run_python(page, {})
    assert caught.traceback[-1].lineno is not None and any(str(at.path) == str(page) for at in caught.traceback)


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
