"""A default that is named does what the default does, and what is said counts before what suits a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato import cli
from sfumato.commands import fields
from sfumato.commands.options import Loading
from sfumato.methods.perceive.diff_seg import COCO, DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.graph_cut import GraphCut
from sfumato.methods.personalise.textual_inversion import TextualInversion
from sfumato.tasks import recipes


class _Loaded(Exception):
    """As far as these tests go: a model would be loaded now."""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a command has found that methods and sides are, where it would load the model."""
    for name in ("a", "b"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / f"{name}.png")
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"
    (tmp_path / "a.obj").write_text(corners)
    monkeypatch.chdir(tmp_path)

    def load(*args: Any, **kwargs: Any) -> None:
        raise _Loaded

    def run(line: str) -> dict[str, Any]:
        monkeypatch.setattr(Loading, "load", load)
        with pytest.raises(_Loaded) as found:
            cli.main(line.split())
        file = f"{line.split()[0].replace('-', '_')}.py"
        (frame,) = (entry.frame for entry in found.traceback if Path(str(entry.path)).name == file)
        seen = {name: frame.f_locals.get(name) for name in ("method", "source", "side")}
        return seen | {"methods": list(frame.f_locals["chain"].items) or None, "items": frame.f_locals.get("items")}

    return run


@pytest.mark.parametrize("model", ["stilllife", "sd-1.5"])
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("segment a.png", "diff-seg"),
        ("match a.png b.png", "dift"),
        ("keypoints a.png b.png", "unsupervised-keypoints"),
        ("shapes a.obj", "diff3f"),
        ("learn a.png --as <duck>", "textual-inversion"),
        ("train-head stilllife:2 stego", "+ dift"),
        ("lift cube", "sir"),
    ],
)
def test_a_default_that_is_named_does_what_the_default_does(asked, line, word, model):
    plain, named = (asked(f"{said} --model {model}") for said in (line, f"{line} {word}"))
    if line.startswith(("learn", "train-head", "lift")):  # there the methods as asked are filled beside the chain
        plain, named = ({k: v for k, v in seen.items() if k not in ("methods", "items")} for seen in (plain, named))
    assert plain == named and any(v is not None for v in plain.values())


def test_what_is_said_counts_before_what_suits(asked):
    suiting = DiffSeg(threshold=0.07, least=1.0)
    assert asked("segment a.png diffseg")["items"] == [suiting] and asked("segment a.png diffseg")["side"] == 256
    found = asked("segment a.png --side 64 diff-seg --threshold 0.5 + graph-cut")
    assert found["items"] == [DiffSeg(threshold=0.5, least=1.0), GraphCut(smooth=4.0, neighbours=8)]
    assert found["side"] == 64
    assert asked("segment a.png diff-seg --preset defaults") == asked("segment --model sd-1.5 a.png")
    assert asked("segment a.png diff-seg --preset still-life") == asked("segment a.png")
    assert asked("segment a.png diff-seg --preset coco")["items"] == [COCO]
    assert asked("match a.png b.png dift --preset defaults")["method"] == DIFT()
    found = asked("match a.png b.png dift --blocks 1")["method"]
    assert found.blocks == (1,) and found.layers == () and found.ensemble == 2, "layers stand in the place of blocks"
    # a published value that is asked for is not what suits
    assert asked(f"segment a.png diff-seg --threshold {DiffSeg.threshold}")["items"][0].threshold == DiffSeg.threshold


def test_a_preset_is_all_of_its_settings(asked):
    found = asked("learn a.png --as <duck> textual-inversion --preset defaults")
    assert found["method"] == TextualInversion() != recipes.find("textual-inversion").method
    found = asked("learn a.png --as <duck> textual-inversion --preset defaults --vectors 3")
    assert found["method"] == TextualInversion(vectors=3)


def test_a_value_that_lift_is_asked_for_is_obeyed_though_it_is_the_published_one(asked):
    from sfumato.tasks import lift_recipes

    own: Any = lift_recipes.recipe("sds", "stilllife").method
    published = type(own).guidance
    assert own.guidance != published, "else this shows nothing"
    assert asked("lift cube sds")["method"] == own
    assert asked(f"lift cube sds --guidance {published}")["method"].guidance == published


def test_help_says_what_methods_are_by_default():
    said = " ".join(fields.help_of("diff-seg", "sfumato segment").split())
    assert "defaults [default: still-life on stilllife, else defaults]." in said
    assert "defaults" not in fields.help_of("p2p", "sfumato edit")
