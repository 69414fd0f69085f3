"""Numbers that make no sense are refused in one line, by every command and method, before anything is written."""

from __future__ import annotations

import pytest
from PIL import Image

from sfumato import cli
from sfumato.commands import fields
from sfumato.commands.plan import plan
from sfumato.methods import index

CALLS = {
    "generate": ("generate", "a cube"),
    "edit": ("edit", "photo.png", "--from", "a cube", "--to", "a duck", "sdedit"),
    "invert": ("invert", "photo.png", "a cube"),
    "distill2d": ("distill2d", "a cube", "sds"),
    "render": ("render", "a red cube"),
    "plan": ("show", "plan", "p2p"),
    "sites": ("show", "sites"),
    "features": ("features", "photo.png"),
    "segment": ("segment", "photo.png", "diff-seg"),
    "match": ("match", "photo.png", "photo.png", "dift"),
    "keypoints": ("keypoints", "photo.png", "unsupervised-keypoints"),
    "bench": ("bench", "core"),
    "tour": ("tour",),
}
"""A call of each command that has numbers."""
WHOLE = ("-1", "1000000000000", "1e9", "nan", "2.5", "")
REAL = ("nan", "inf", "-inf", "-1", "1e400")
VALUES = {
    "--n": ("0", *WHOLE), "--steps": ("0", *WHOLE), "--seed": WHOLE, "--side": ("0", *WHOLE),
    "--size": ("0", "0x64", "64x0", "64x", *WHOLE), "--every": ("0", *WHOLE), "--stride": ("0", *WHOLE),
    "--canvas": tuple((v, "64") for v in ("0", *WHOLE)), "--clip-skip": WHOLE, "--control-mode": WHOLE,
    "--memory": REAL, "--guidance": REAL, "--rate": ("0", *REAL), "--turn": REAL,
    "--zoom": tuple((v, "1") for v in ("0", *REAL)), "--saturation": REAL, "--hue": REAL, "--histogram": REAL,
    "--times": REAL, "--layers": WHOLE,
}  # fmt: skip
"""What an option is given, as one word or as several."""
FEW = ("1000000000000", "inf", "nan", ("nan", "64"), ("nan", "1"))


def options(name: str) -> list[str]:
    command = {"plan": plan, "sites": cli.SHOWN["sites"]}.get(name) or cli.COMMANDS[name]
    return [o for o in fields.grammar(command).options if o in VALUES]


def values(name: str, option: str) -> tuple[str | tuple[str, ...], ...]:
    """All for the first command that has the option; for others the first, one too large, and none that is a number."""
    first = next(other for other in CALLS if option in options(other))
    return VALUES[option] if name == first else (VALUES[option][0], *(v for v in VALUES[option] if v in FEW))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), (90, 120, 30)).save("photo.png")
    return tmp_path


@pytest.mark.parametrize("name", CALLS)
def test_commands_refuse_absurd_numbers(run, here, place, name):
    head, *tail = CALLS[name]
    at = 2 if head == "show" else 1
    for option in options(name):
        for value in dict.fromkeys(values(name, option)):
            words = value if isinstance(value, tuple) else (value,)
            args = (head, *tail)[:at], (head, *tail)[at:]
            more = (option, *words) if len(words) > 1 else (f"{option}={words[0]}",)
            code, out, err = run(*args[0], *more, *args[1])
            assert code == 2 and not out, (option, value, out, err)
            lines = [line for line in err.splitlines() if not line.startswith("note: ")]
            assert len(lines) == 1 and option.strip("-")[:4] in lines[0], (option, value, err)
            assert [p.name for p in place.rglob("*") if p.is_file()] == ["photo.png"], (option, value)


def test_methods_refuse_absurd_seeds_and_steps(run, here, place):
    for word in index.words(("edit", "control"))[::3]:
        if word in ("classifier-guidance", "universal-guidance"):  # take a function
            continue
        for option, value in (("--seed", "-1"), ("--steps", "0"), ("--steps", "-1"), ("--seed", "nan")):
            if option in fields.of_method(word).options:
                code, out, err = run(*CALLS["edit"][:-1], word, f"{option}={value}")
                lines = [line for line in err.splitlines() if not line.startswith("note: ")]
                assert code == 2 and not out and len(lines) == 1, (word, option, value, err)
    assert not list(place.rglob("*-edited.png"))
