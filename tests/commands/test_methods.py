"""``sfumato methods``: what it reads in files is what the methods are, and it is found by any word."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from sfumato.core.method import Requires
from sfumato.errors import SfumatoError
from sfumato.methods import about, index
from sfumato.tasks import starts


def test_files_tell_what_methods_are():
    for entry in index.METHODS:
        found, required = about.about(entry), getattr(entry.method, "requires", Requires())
        unusual = [f.name for f in fields(Requires) if getattr(required, f.name) != f.default]
        assert {*found.asks} == {about._ASKED[name] for name in unusual if name in about._ASKED}, entry.word
        assert entry.is_function or {*found.presets} == {*entry.presets}, entry.word
        assert found.summary == " ".join((entry.module.__doc__ or "").split("\n\n")[0].split())
        assert (found.needs and found.families) or entry.is_function, entry.word


def test_inversions_are_those_that_are_made():
    for word, home in starts.HOMES.items():
        kind = type(starts.inversion_of(word))
        assert home == f"{kind.__module__.removeprefix('sfumato.')}:{kind.__name__}"
        found = about.described(*home.split(":"), alone=False)
        assert found.summary == " ".join((kind.__doc__ or "").split("\n\n")[0].split()) and found.needs


@pytest.mark.parametrize(
    ("families", "asks", "on", "off"),
    [
        ("all.", (), {*about.FAMILIES}, set()),
        ("any; the network is not asked.", (), {"DDPM"}, set()),
        ("all. In Flux another.", ("a model that reads prompts",), {"Flux"}, {"DDPM", "Stable Video Diffusion"}),
        (
            "Stable Diffusion 1, 2, XL.",
            (),
            {"Stable Diffusion 2", "Stable Diffusion XL"},
            {"Stable Diffusion 3", "Flux"},
        ),
        ("UNets of Stable Diffusion 1, 2 and XL; others no.", (), {"Stable Diffusion XL"}, {"Stable Diffusion 3"}),
        ("those: all but Stable Diffusion 3 and Flux.", (), {"PixArt"}, {"Stable Diffusion 3", "Flux"}),
        ("transformers, which are Stable Diffusion 3 and Flux.", (), {"Stable Diffusion 3", "Flux"}, {"PixArt"}),
        ("all.", ("frames of a clip, by a model with motion",), {"AnimateDiff"}, {"Flux"}),
    ],
)
def test_families_are_read_as_they_are_written(families, asks, on, off):
    found = about.About("X: y.", (), families=families, asks=asks)
    assert all(found.works_on(name) for name in on) and not any(found.works_on(name) for name in off)


def test_a_model_is_of_a_family():
    words = {"stilllife": 1, "sd-1.5": 1, "sd15": 1, "sd-2.1": 2, "sdxl": "XL", "sd-3.5-medium": 3}
    assert {word: about.family(word) for word in words} == {w: f"Stable Diffusion {n}" for w, n in words.items()}
    assert about.family("flux-dev") == "Flux" and about.family("DeepFloyd IF") == about.family("if-i-m")
    with pytest.raises(SfumatoError, match="unknown family of models 'llama'; known: Stable Diffusion 1, "):
        about.family("llama")


def test_methods_that_have_an_option_are_found_in_their_files():
    found = about.having_field("strength", index.words(command="edit"))
    own = [e for e in index.METHODS if e.word in index.words(command="edit") and not e.is_function]
    assert found == [e.word for e in own if "strength" in {f.name for f in fields(e.method)}] and "sdedit" in found


def test_what_works_on_a_family_says_so():
    """A method's paragraph of families begins with all of them, or names some."""
    for entry in index.METHODS:
        found = about.about(entry)
        assert entry.is_function or any(found.works_on(name) for name in about.FAMILIES), (entry.word, found.families)


def test_methods_are_listed_by_the_words_that_commands_take(run):
    code, out, _ = run("methods")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert code == 0 and {*lines} == {
        *index.words((*index.PAINTING, *index.READING, "distill", "personalise")),
        *starts.HOMES,
    }
    assert (
        "(p2p)" in lines["prompt-to-prompt"]
        and "presets: pie-bench, edit-friendly, still-life" in lines["prompt-to-prompt"]
    )
    rows = {row["method"]: row for row in json.loads(run("methods", "--json")[1])}
    assert rows["prompt-to-prompt"]["paper"] == "Hertz et al. 2023, arXiv 2208.01626"
    assert all(row["needs"] and row["families"] and row["does"] for row in rows.values())


def test_methods_are_found_by_group_word_and_family(run):
    def listed(*words: str) -> set[str]:
        return {row["method"] for row in json.loads(run("methods", *words, "--json")[1])}

    assert listed("edit", "distill") == listed("edit") | listed("distill") == {*index.words(("edit", "distill"))}
    assert "sync-diffusion" in listed("panorama", "sets") == listed("panorama") & listed("sets")
    assert listed("style images") == listed("style", "images") >= {"style-aligned"}
    assert listed("p2p", "masactrl") == {"prompt-to-prompt", "masactrl"}
    assert "stable-flow" in listed("edit", "--for", "flux") and "plug-and-play" not in listed("edit", "--for", "flux")
    assert run("methods", "p2p")[1].startswith("prompt-to-prompt (p2p)\n  Prompt-to-Prompt (Hertz et al. 2023")
    for words, says in (
        (("nosuchthing",), "unknown group or method 'nosuchthing'; groups: edit, control"),
        (("p2p", "masctrl"), "unknown method 'masctrl'; did you mean masactrl? groups"),
        (("stable-flow", "--for", "sdxl"), "none of stable-flow works on Stable Diffusion XL"),
    ):
        code, out, err = run("methods", *words)
        assert code == 2 and not out and says in err and err.count("\n") == 1
