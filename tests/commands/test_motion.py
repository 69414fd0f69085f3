"""Clips on the command line: a GIF beside the sheet of its frames, and what there is no clip of."""

from __future__ import annotations

import json

import pytest
from families import write
from PIL import Image


def test_clips_are_films_and_sheets(run, tmp_path, models):
    adapter = write("animatediff", tmp_path) / "motion_adapter"
    options = ("--model", models("sd").name, "--size", 32, "--device", "cpu")
    given = ("generate", "a duck", *options, "--motion", adapter, "--steps", 1, "--json")

    def painted(*more):
        code, out, err = run(*given, *more)
        assert code == 0, err
        return json.loads(out)["images"]

    rows = painted("--n", 2, "--frames", 3, "--out", tmp_path / "out")
    assert [row["frames"] for row in rows] == [3, 3] and rows[0]["seed"] == 0
    for row in rows:
        sheet, film = Image.open(row["image"]), Image.open(row["film"])
        assert sheet.size == (3 * 32 + 4, 32) and sheet.info["frames"] == "3"
        assert film.size == (32, 32) and getattr(film, "n_frames", 0) == 3
    # more than it attends over with FreeNoise alone
    code, _, err = run(*given, "--frames", 12, "--out", tmp_path / "long")
    assert code == 2 and "attends over at most 8 frames, got 12; take fewer, or the method free-noise" in err
    windows = ("--n", 1, "--frames", 12, "--out", tmp_path / "long", "free-noise", "--context", 4)
    assert painted(*windows)[0]["frames"] == 12


@pytest.mark.slow
def test_there_are_as_many_frames_as_it_attends_over(run, tmp_path, models):
    adapter = write("animatediff", tmp_path) / "motion_adapter"
    options = ("--model", models("sd").name, "--size", 32, "--device", "cpu", "--motion", adapter, "--steps", 1)
    code, out, err = run("generate", "a duck", *options, "--n", 1, "--out", tmp_path / "most", "--json")
    assert code == 0 and json.loads(out)["images"][0]["frames"] == 8, err


def test_what_there_is_no_clip_of_is_said(run, tmp_path, models):
    adapter = write("animatediff", tmp_path) / "motion_adapter"
    options = ("--model", models("sd").name, "--size", 32, "--device", "cpu")
    code, _, err = run("generate", "a duck", *options, "--frames", 3)
    assert code == 2 and "paints images, not clips of 3 frames" in err
    code, _, err = run("generate", "a duck", *options, "--motion", adapter, "--show-attention")
    assert code == 2 and "--show-attention is of images" in err
    code, _, err = run("generate", "a duck", *options, "--motion", adapter, "--frames", 0)
    assert code == 2 and "--frames lies between 1 and 4000, got 0" in err


def test_sites_say_their_axis(run, tmp_path, models):
    adapter = write("animatediff", tmp_path) / "motion_adapter"
    code, out, _ = run("show", "sites", models("sd").name, "--motion", adapter, "--json")
    assert code == 0 and [row["axis"] for row in json.loads(out)].count("time") == 14
