"""``sfumato illusion``: files of both views and of the way between them; what is wrong in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from families import write
from PIL import Image


@pytest.fixture
def tiny(tmp_path):
    """A tiny model's folder."""
    return write("sd", tmp_path / "sd")


def test_it_writes_both_views_and_a_film(run, here, tiny, tmp_path):
    call = ("illusion", "a red cube", "a red duck", "--view", "turn", "--model", tiny, "--size", 64, "--steps", 2)
    call = (*call, "--n", 2, "--seed", 5, "--device", "cpu", "--out", tmp_path / "out")
    code, out, _ = run(*call, "--json")
    found = json.loads(out)["images"]
    assert code == 0 and [row["seed"] for row in found] == [5, 6]
    for row in found:
        assert row["image"].endswith(f"-{row['seed']}.png")
        upright, other = (np.asarray(Image.open(row[which]), int) for which in ("image", "other"))
        assert upright.shape == (64, 64, 3) and abs(upright[::-1, ::-1] - other).max() <= 1
        film = Image.open(row["film"])
        assert film.n_frames > 10 and film.size == (64, 64)
        assert Image.open(row["image"]).text["other"] == "a red duck" and row["view"] == "turn"
    assert run(*call)[1].split() == [row[which] for row in found for which in ("image", "other", "film")]


def test_what_is_wrong_is_said_before_the_model_is_loaded(run, here, tmp_path):
    for wrong, why in (
        (("--view", "wave"), "unknown view 'wave'"),
        (("--view", "turn:45"), "turn by quarters"),
        (("--n", 0), "--n"),
        (("--guidance", -1), "--guidance is a number from 0"),
    ):
        code, _, err = run("illusion", "a red cube", "a red duck", "--model", "no/where", *wrong, "--out", tmp_path)
        assert code == 2 and why in err and err.count("\n") == 1, err
