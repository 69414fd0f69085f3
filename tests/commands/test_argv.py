"""Whose each word of a command line is: the command's or a method's, wherever options stand."""

from __future__ import annotations

import functools
import itertools
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato import cli
from sfumato.commands import argv, experiment, fields, first, options
from sfumato.commands.fields import Grammar
from sfumato.commands.show import SHOWN
from sfumato.errors import SfumatoError
from sfumato.media import opening
from sfumato.methods import index

COMMAND = Grammar({"--help": 0, "--json": 0, "--out": 1, "--seed": 1, "--box": 2, "--also": None}, (1, 1))
FILES = Grammar(COMMAND.options, (1, math.inf))
METHODS = {
    "p2p": Grammar({"--help": 0, "--seed": 1, "--cross": 1, "--blend": None, "--preset": 1}),
    "sdedit": Grammar({"--help": 0, "--seed": 1, "--strength": 1, "--fresh": 0, "--no-fresh": 0}),
}


def split(*args: str, command: Grammar = COMMAND) -> tuple[list[str], list[list[str]]]:
    return argv.split(args, command, METHODS, METHODS.__getitem__)


def test_methods_begin_where_their_words_do():
    head, methods = split("x.png", "--json", "p2p", "--cross", "0.3", "+", "sdedit", "--strength", "0.5")
    assert head == ["x.png", "--json"] and methods == [["p2p", "--cross=0.3"], ["sdedit", "--strength=0.5"]]
    assert split("p2p", "--seed", "3") == (["p2p", "--seed=3"], [])  # it is a prompt
    assert split("--out", "sdedit", "a duck") == (["a duck", "--out=sdedit"], [])
    assert split("sdedit", "sdedit") == (["sdedit"], [["sdedit"]])
    assert split("p2p", command=Grammar(COMMAND.options)) == ([], [["p2p"]])
    assert split("--json", "a.png", "b.png", "p2p", command=FILES) == (["a.png", "b.png", "--json"], [["p2p"]])
    with pytest.raises(SfumatoError, match="unknown method 'masa'"):
        split("a.png", "--json", "masa", command=FILES)


def test_a_method_keeps_what_it_knows_and_hands_the_rest_back():
    assert split("x", "sdedit", "--out", "d", "--fresh", "--box", "a duck", "1,2,3,4", "+", "p2p", "--json") == (
        ["x", "--out=d", "--box", "a duck", "1,2,3,4", "--json"],
        [["sdedit", "--fresh"], ["p2p"]],
    )
    assert split("x", "sdedit", "+", "p2p", "--strength", "0.5", "--json")[1] == [
        ["sdedit", "--strength=0.5"],
        ["p2p"],
    ]
    assert split("x", "sdedit", "--out=d", "--strength=-1") == (["x", "--out=d"], [["sdedit", "--strength=-1"]])


def test_a_name_that_both_know_is_the_nearest_methods_before_it():
    line = ("--seed", "1", "x", "sdedit", "--seed", "2", "+", "p2p", "--seed", "3")
    assert split(*line) == (["x", "--seed=1"], [["sdedit", "--seed=2"], ["p2p", "--seed=3"]])
    assert split("x", "--help", "p2p", "--help") == (["x", "--help"], [["p2p", "--help"]])
    assert split("sdedit", "--help") == ([], [["sdedit", "--help"]])


def test_values_may_look_like_anything_else():
    assert split("x", "p2p", "--cross", "-3", "--out", "p2p", "+", "sdedit", "--strength", "+")[1] == [
        ["p2p", "--cross=-3"],
        ["sdedit", "--strength=+"],
    ]
    assert split("x", "--out", "-ugly", "--seed", "-1")[0] == ["x", "--out=-ugly", "--seed=-1"]
    assert split("- a sentence with a dash", "p2p")[0] == ["- a sentence with a dash"]
    assert split("x", "--also", "p2p", "a.png", "p2p", "--blend", "sdedit", "b", "+", "sdedit") == (
        ["x", "--also", "p2p", "a.png"],
        [["p2p", "--blend", "sdedit", "b"], ["sdedit"]],
    )
    assert split("x", "--also", "--json") == (["x", "--also", "--json"], [])
    assert split("x", "--out_", "d", command=Grammar({"--out-": 1}, (1, 1)))[0] == ["x", "--out_=d"]


def test_two_dashes_end_options():
    assert split("--json", "--", "--odd", "p2p") == (["--json", "--", "--odd", "p2p"], [])
    assert split("--seed", "1", "p2p", "--cross", "1", "--", "-x-y") == (
        ["--seed=1", "--", "-x-y"],
        [["p2p", "--cross=1"]],
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x masa", "unknown method 'masa'; known: p2p, sdedit"),
        ("x p2p + masa", "unknown method 'masa'"),
        ("a red cube p2p", "'red' is no method; a sentence stands in quotes: \"a red ...\""),
        ("x p2p +", r"a \+ joins two methods; one of them is missing"),
        ("x p2p + + sdedit", "one of them is missing"),
        ("x + p2p", "one of them is missing"),
        ("x p2p sdedit", r"'sdedit' behind p2p is no value of an option; \+ joins methods"),
        ("x p2p --crss 1", "unknown option --crss; did you mean --cross of p2p"),
        ("x p2p --sed 1 --jsn", "unknown option --sed; did you mean --seed of p2p"),
        ("x p2p --jsn", "unknown option --jsn; did you mean --json"),
        ("x --zzz", "unknown option --zzz; see --help$"),
        ("x p2p --zzz=1", "unknown option --zzz; see --help and p2p --help"),
        ("x --cross 1 p2p", "--cross is an option of p2p; it stands behind that word"),
        ("x p2p --strength 1 + sdedit", "--strength is an option of sdedit; it stands behind"),
        ("x p2p --cross --out d", "--cross takes a value, but the option --out follows; if it is meant: --cross=--out"),
    ],
)
def test_what_is_wrong_is_one_line(line, why):
    with pytest.raises(SfumatoError, match=why) as e:
        split(*line.split())
    assert "\n" not in str(e.value)


VALUES = st.sampled_from(("d", "a b", "-3", "-0.5", "x=y", "+", "p2p", "sdedit", "-ugly", "")) | st.text(
    max_size=5
).filter(lambda text: text not in METHODS and text not in COMMAND.options and text != "--")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_order_of_options_changes_nothing(data):
    """The command's own options anywhere in the line, each method's anywhere behind its word."""
    chosen = data.draw(st.lists(st.sampled_from([*METHODS]), max_size=2, unique=True))
    asked = {word: data.draw(st.lists(st.sampled_from(["--seed", *OWN[word]]), unique=True)) for word in chosen}
    shared = data.draw(st.lists(st.sampled_from(["--json", "--out", "--box"]), unique=True))
    before = data.draw(st.lists(st.sampled_from(["--seed"]), max_size=1))

    def spelt(name: str, grammar: Grammar) -> tuple[list[str], list[str]]:
        """As it is written, and as it is read."""
        count = grammar.options[name] or 0
        values = [data.draw(VALUES) for _ in range(count)]
        read = [f"{name}={values[0]}"] if count == 1 else [name, *values]
        return read if data.draw(st.booleans()) else [name, *values], read

    lines = [[spelt(name, METHODS[word]) for name in names] for word, names in asked.items()]
    moving = [spelt(name, COMMAND) for name in shared]
    first = [spelt(name, COMMAND) for name in before]
    slots: list[list[tuple[list[str], list[str]]]] = [[*first], *map(list, lines)]
    for option in moving:
        slot = data.draw(st.sampled_from(slots))
        slot.insert(data.draw(st.integers(0, len(slot))), option)
    line = ["x", *(token for written, _ in slots[0] for token in written)]
    for i, (word, slot) in enumerate(zip(chosen, slots[1:], strict=True)):
        line += ["+"] * (i > 0) + [word, *(token for written, _ in slot for token in written)]
    head, methods = split(*line)
    assert head[0] == "x"
    assert sorted(head[1:]) == sorted(token for _, read in [*first, *moving] for token in read)
    expected = [[word, *(t for _, read in mine for t in read)] for word, mine in zip(chosen, lines, strict=True)]
    assert methods == expected


OWN = {"p2p": ("--cross", "--preset"), "sdedit": ("--strength", "--fresh")}

# --- the command lines of the documents ----------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def written() -> list[str]:
    """Every command line that stands in a document by itself."""
    lines = []
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
        lines += [line.strip() for line in text.splitlines() if re.match(r"\s*sfumato [a-z]", line)]
    return lines


@pytest.fixture
def asked(parsers, monkeypatch):
    """What the commands would be called with, in place of running them."""
    calls: list[dict[str, object]] = []

    def recorded(f):
        @functools.wraps(f)
        def call(**given):
            calls.append({"command": f.__name__, **given})

        return call

    for table in (cli.COMMANDS, SHOWN):
        for name, f in list(table.items()):
            monkeypatch.setitem(table, name, recorded(f))
    monkeypatch.setitem(cli.GROUPS, "experiment", lambda word, *_: {word: recorded(experiment.commands(word)[word])})
    monkeypatch.setattr(first, "_there", lambda *args: None)
    monkeypatch.setattr(opening, "checked", lambda file: None)
    monkeypatch.setattr(options, "look", lambda *args: None)
    monkeypatch.chdir(ROOT)

    def call(*args: str) -> dict[str, object]:
        calls.clear()
        assert cli.main(list(args)) == 0, args
        return calls[0]

    return call


def chained(line: str) -> bool:
    """Are there methods in it? That the others are understood is seen where documents are tested."""
    args = shlex.split(line, comments=True)[1:]
    name = args[1] if args[0] in cli.GROUPS else args[0]
    return name in index.CHAINED and bool({*args} & {*index.words(index.CHAINED[name], aliases=True)})


LINES = list(filter(chained, dict.fromkeys(written())))


def daily(lines: list[str]) -> Iterator[Any]:
    """Lines of a command with an option that no line before has, or with more methods; the rest is slow."""
    met = set()
    for line in lines:
        args = shlex.split(line, comments=True)[1:]
        name = args[1] if args[0] in cli.GROUPS else args[0]
        has = {(name, arg.partition("=")[0]) for arg in args if arg.startswith("--")} | {(name, args.count("+"))}
        yield pytest.param(line, marks=[] if has - met else [pytest.mark.slow])
        met |= has


def test_the_documents_have_command_lines():
    assert len(LINES) > 60 and any(" + " in line for line in LINES)


@pytest.mark.parametrize("line", [*daily(LINES)])
def test_what_the_documents_say_can_be_asked_for_in_another_order(asked, line):
    args = shlex.split(line, comments=True)[1:]
    said = asked(*args)
    group = [args.pop(0)] if args[0] in cli.GROUPS else []
    name = args[0]
    own = fields.grammar({**cli.COMMANDS, **SHOWN}[name])
    words = index.words(index.CHAINED[name], aliases=True)
    head, methods = argv.split(args[1:], own, words, fields.of_method)
    assert [word for word, *_ in methods] == list(said["chain"].names) != []
    positionals = len(head) - len(_options(head, own))
    last = {option for word, *_ in methods for option in fields.of_method(word).options}
    moved = [o for o in _grouped(_options(head, own)) if _name(o) not in last]
    kept = [o for o in _grouped(_options(head, own)) if _name(o) in last]
    chained = [*methods[0], *(token for method in methods[1:] for token in ("+", *method))]
    flat = itertools.chain.from_iterable
    again = [*head[:positionals], *flat(kept), *chained, *flat(sorted(moved, reverse=True, key=_name))]
    assert repr(asked(*group, name, *again)) == repr(said)  # a mask is equal to itself alone


def _options(head: list[str], own: Grammar) -> list[str]:
    at = next((i for i, token in enumerate(head) if token.partition("=")[0] in own.options), len(head))
    return head[at:]


def _name(option: list[str]) -> str:
    return option[0].partition("=")[0]


def _grouped(tokens: list[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    for token in tokens:
        if argv.OPTION.fullmatch(token) or not groups:
            groups.append([])
        groups[-1].append(token)
    return groups


def test_what_the_field_calls_an_option_is_it_where_there_is_no_other():
    assert split("x", "-s", "3", "-o", "d")[0] == ["x", "--seed=3", "--out=d"]
    assert split("x", "p2p", "-s=3")[1] == [["p2p", "--seed=3"]]
    own = Grammar({"--lr": 1, "--rate": 1}, (0, 0))
    assert split("--lr", "1", "--learning-rate", "2", command=own)[0] == ["--lr=1", "--rate=2"]
    with pytest.raises(SfumatoError, match="unknown option -n; "):
        split("x", "-n", "3")
    with pytest.raises(SfumatoError, match="--lr is an option of lora; it stands behind that word; here it is --rate"):
        argv.split(["--lr", "1", "lora"], Grammar({}), ["lora"], lambda word: Grammar({"--rate": 1}))
    batches = (Grammar({"--n": 1, "--batch": 1}), Grammar({"--n": 1}))
    assert [split("--batch-size", "2", command=each)[0] for each in batches] == [["--batch=2"], ["--n=2"]]


def test_two_sides_are_a_size_and_a_place_is_no_option():
    sized = Grammar({"--size": 1, "--n": 1}, (1, 1), ("PROMPT",))
    for line in ("x --height 64 --width 96", "--W=96 x --H 64", "x p2p --width 96 --height=64"):
        assert split(*line.split(), command=sized)[0] == ["x", "--size=96x64"]
    assert split("--width", "3", command=Grammar({"--width": 1, "--size": 1}))[0] == ["--width=3"]
    for line, why in (
        ("x --height 64", "--height alone is no size; give both, or --size WIDTHxHEIGHT"),
        ("--prompt x", "PROMPT is given as it is, without --prompt before it"),
        ("x --strength 3", "--strength is an option of sdedit; name the method, and it behind that word"),
    ):
        with pytest.raises(SfumatoError, match=why):
            argv.split(line.split(), sized, ["p2p", "sdedit"], METHODS.__getitem__)


def test_options_behind_a_method_reach_the_command(asked):
    said = asked("segment", "x.png", "diff-seg", "--out", "d", "--threshold", "0.5", "--json", "--side=64")
    assert (said["out"], said["json"], said["side"]) == (Path("d"), True, 64)
    (method,) = said["chain"].items
    assert method.threshold == 0.5
    said = asked(
        "edit", "x.png", "p2p", "--from", "-a", "--to", "b", "--box", "b", "0,0,1,1", "--also", "y.png", "z.png"
    )
    assert (said["source"], said["box"], said["also"]) == ("-a", (("b", "0,0,1,1"),), (Path("y.png"), Path("z.png")))
    assert (
        asked(
            "generate",
            "sdedit",
            "--",
        )["prompt"]
        == "sdedit"
    )
    assert asked("generate", "p2p", "--n", "2", "--", "-x-y")["prompt"] == "-x-y"
    assert asked("segment", "x.png", "propagation", "--box", "1", "2", "3", "4")["chain"].items[0].box == (1, 2, 3, 4)


def test_the_grammar_is_tyros():
    def command(
        image: tyro.conf.Positional[Path],
        more: tyro.conf.Positional[tuple[Path, ...]] = (),
        *,
        size: int = 1,
        pair: tuple[int, int] = (1, 2),
        many: tuple[str, ...] = (),
        flag: bool = False,
    ) -> None: ...

    found = fields.grammar(command, preset=1)
    counts = {
        "--size": 1,
        "--pair": 2,
        "--many": None,
        "--flag": 0,
        "--no-flag": 0,
        "--preset": 1,
        "--help": 0,
        "-h": 0,
    }
    assert found.options == counts and found.positionals == (2, math.inf)
    assert fields.of_method("p2p").options["--cross"] == 1 and fields.of_method("p2p").options["--blend"] is None
