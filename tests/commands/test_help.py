"""What ``--help`` and Tab tell."""

from __future__ import annotations

import argparse
import re
import subprocess
from contextlib import suppress

import pytest

from sfumato import cli
from sfumato.commands import completion, fields, help
from sfumato.errors import SfumatoError
from sfumato.methods import index


@pytest.mark.parametrize("words", [(), ("edit",), ("edit", "p2p"), ("experiment",), ("show",), ("show", "plan")])
def test_help_is_shown(run, words):
    code, out, err = run(*words, "--help")
    assert code == 0 and not err and out.startswith(f"usage: {' '.join(['sfumato', *words[:1]])}")


@pytest.mark.parametrize("columns", [60, 200])
def test_all_help_fits_the_terminal_and_says_a_default_once(monkeypatch, columns):
    """Of each command, experiment and method."""
    monkeypatch.setenv("COLUMNS", str(columns))
    texts = [help.command(f, f"sfumato {name}", cli._methods(name, False, name)) for name, f in cli.COMMANDS.items()]
    texts += [help.command(f, f"sfumato show {name}") for name, f in cli.GROUPS["show"]("").items()]
    experiments = cli.GROUPS["experiment"]
    texts += [help.command(experiments(word, True)[word], f"sfumato experiment {word}") for word in experiments("")]
    for entry in (entry for entry in index.METHODS if not entry.is_function):
        for head in (False, True)[: 1 + bool(entry.head)]:
            with suppress(SfumatoError):  # of one that takes a function
                texts.append(fields.help_of(entry.word, "sfumato edit", head))
    assert len(texts) > len(index.METHODS)
    for text in texts:
        long = [line for line in text.splitlines() if len(line) > columns]
        assert all(line.startswith(("Example: ", "Then: ")) for line in long), long
        assert not re.search(r"default: (None|none|''|False|)\)|\{None|\x1b|`", text)
        assert not re.search(r"\[default:[^\]]*\]\.?\s*\(default", text)


def test_a_default_that_the_text_has_is_not_said_again():
    assert help._meaning("Steps [default: 30, or 4]. (default: 5)") == "Steps [default: 30, or 4]."
    assert help._meaning("Steps. (default: None)") == help._meaning("Steps. (default: '')") == "Steps."
    assert help._meaning("Steps. (default: 5)") == "Steps. (default: 5)"
    for metavar, shown in (("{None}|INT", "INT"), ("{None,a,b}", "{a,b}"), ("INT|{None}", "INT"), ("{a,b}", "{a,b}")):
        assert help._metavar(argparse.Action(["-x"], "x", metavar=metavar)) == shown


def test_what_takes_long_says_so():
    """By names of commands that there are."""
    known = {*cli.COMMANDS} | {f"experiment {word}" for word in cli.GROUPS["experiment"]("")}
    assert {*help.TAKES} <= known
    assert "\n\nTakes: on the built-in model about 75 s of one core by --how null-text in 50 steps.\n" in _of("invert")
    assert "Takes: " not in _of("render")


def test_an_option_of_a_letter_is_shown():
    assert re.search(r"^  -n, --n INT +Images; .*?^  -s, --seed N .*?^  -o, --out PATH", _of("generate"), re.S | re.M)


def _of(name: str) -> str:
    return help.command(cli.COMMANDS[name], f"sfumato {name}")


def test_usage_says_where_methods_go(run):
    out = " ".join(run("edit", "--help")[1].split())
    assert "usage: sfumato edit IMAGE ... --from STR --to STR [options] [METHOD [its options] [+ METHOD ...]]" in out
    assert "prompt-to-prompt" in out
    assert "METHOD" not in run("render", "--help")[1].partition("\n\n")[0]


def test_a_methods_options_have_its_presets(run):
    code, out, _ = run("edit", "photo.png", "p2p", "--help")
    assert code == 0 and "--preset WORD         One of: pie-bench, edit-friendly, still-life." in out
    assert "--cross FLOAT" in out and "default: 0.8)" in out


def test_a_methods_options_say_what_they_are_and_lie_in(run):
    said = {word: " ".join(run("edit", word, "--help")[1].split()) for word in ("sdedit", "p2p")}
    assert "default. (0 to 1; default: 0.8)" in said["sdedit"] and "(parts 0 to 1; default: 0.5)" in said["p2p"]
    assert "--seed INT The same seed gives the same result. (default: 0) --steps INT How many steps" in said["sdedit"]
    assert "one. (above 0) --topk" in " ".join(run("match", "dift", "--help")[1].split())


def test_groups_open_with_their_own_words(run):
    assert "Measure a source's figure or table again" in run("experiment", "--help")[1]
    assert run("show")[1] == run("show", "-h")[1] and "sfumato show COMMAND" in run("show")[1]


def test_titles_are_bold_on_a_terminal_unless_colours_are_refused(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in help.command(cli.COMMANDS["render"], "sfumato render")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in help.command(cli.COMMANDS["render"], "sfumato render")


@pytest.mark.parametrize(
    ("words", "known", "unknown"),
    [
        (["ed"], {"edit", "edit-scene"}, {"render"}),
        (["show", ""], {"models", "plan"}, {"edit"}),
        (["show", "plan", "--js"], {"--json"}, {"--seed"}),
        (["edit", "a.png", "p"], {"p2p", "pnp", "prompt-to-prompt"}, {"masactrl", "--from"}),
        (["edit", "a.png", "--invert", ""], {"null-text", "edict"}, {"None", "p2p", "--from"}),
        (["edit", "a.png", "p2p", "--c"], {"--cross", "--compare"}, {"--from", "masactrl"}),
        (["edit", "a.png", "p2p", "+", "mas"], {"masactrl"}, set()),
        (["edit", "a.png", "p2p", "--pre"], {"--preset"}, set()),
        (["edit", "a.png", "p2p", "--preset", ""], {"pie-bench"}, {"defaults", "--from", "+"}),
        (["edit", "a.png", "universal-guidance", "--s"], {"--seed"}, set()),
        (["nope", ""], set(), {"edit"}),
    ],
)
def test_tab(run, words, known, unknown):
    code, out, _ = run(completion.ASKED, *words)
    found = {*out.split()}
    assert code == 0 and known <= found and not unknown & found, found


def test_bash_asks_with_the_words_before_the_cursor():
    script = f'''{completion.SCRIPTS["bash"]}
    sfumato() {{ printf '%s\\n' "$#" "$@"; }}
    COMP_WORDS=(sfumato edit "a b.png" "" rest); COMP_CWORD=3; _sfumato; printf '%s|' "${{COMPREPLY[@]}}"'''
    out = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
    assert out.startswith(f"4|{completion.ASKED}|edit|a b.png|")
