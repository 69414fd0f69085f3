"""Runs seen step by step: closed forms of the measures, streams that are runs alone, and the command."""

from __future__ import annotations

import json
import math

import pytest
import torch
from families import SCHEDULES
from PIL import Image

from sfumato import cli
from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.results import Trajectory
from sfumato.core.schedule import PREDICTIONS, Schedule
from sfumato.errors import SfumatoError
from sfumato.experiments import trajectory
from sfumato.stilllife import networks

PROMPT = "a red cube on grass"
VP = {"_class_name": "DDIMScheduler", **networks.scheduler().config, "set_alpha_to_one": True}


def turning(angles, shape=(1, 1, 2)):
    """Unit vectors in a plane, a step an angle."""
    return torch.stack([torch.tensor([math.cos(a), math.sin(a)]).view(1, *shape) for a in angles])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_similarities_are_those_of_the_noise_whatever_the_network_predicts(prediction):
    schedule = SCHEDULES[prediction]
    levels = schedule.levels(4)
    x = torch.randn(4, 1, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    eps = {"uncond": turning([0, 0.3, 0.9, 2.5]), "cond": turning([1, 1, 1.5, 4.0])}
    eps["cond"] = eps["uncond"] + 0.1 * eps["cond"]  # so that the guidance term turns by 0, 0.5 and 2.5
    kept = Trajectory(("x", "uncond", "cond"))
    for i, level in enumerate(list(levels)[:-1]):
        if level.alpha == 0:  # the start of a flow: x is the noise, and what is said of it is said of the data
            assert prediction == "flow"
            said = {k: x[i] - v[i] for k, v in eps.items()}
        else:
            said = {
                k: schedule.prediction_of((x[i] - level.sigma * v[i]) / level.alpha, v[i], level)
                for k, v in eps.items()
            }
        kept.steps.append({"x": x[i], **said})
    found = trajectory.similarities(kept, schedule, levels)
    turned = torch.tensor([0.3, 0.6, 1.6]).cos()
    if prediction == "flow":
        turned[0] = torch.cosine_similarity(x[0].flatten(), eps["uncond"][1].flatten(), dim=0)
    close = dict(atol=1e-4, rtol=0)
    torch.testing.assert_close(found["unconditional"][:, 0], turned, **close)
    guidance = torch.tensor([0.0, 0.5, 2.5]).cos()
    if prediction == "flow":
        guidance[0] = -guidance[0]  # what turned at the start was the data, and data = x - flow there
    torch.testing.assert_close(found["guidance"][:, 0], guidance, **close)


def test_what_has_no_direction_is_like_nothing():
    values = torch.stack([torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]), torch.eye(3)[:2]])
    assert trajectory.successive(values).tolist() == [[0, 0], [1, 0]]


def test_a_linear_denoiser_never_turns():
    """For N(m, s^2) the noise is sigma (x - alpha m) / variance, so unguided DDIM keeps it on one line.

    And for two of one s the guidance term is a multiple of the difference of their means at every scale.
    """
    means = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Exact({"": Mixture(means[0], 0.5), "b": Mixture(means[1], 0.5)}, Schedule.read(VP))
    course = trajectory.follow(model, "b", (1.0, 4.0), steps=20, pixels=1)
    ones = torch.ones(19)
    close = dict(atol=1e-5, rtol=0)
    torch.testing.assert_close(course.similarity["conditional"][:, 0], ones, **close)
    torch.testing.assert_close(course.similarity["guidance"], torch.stack([ones, ones], 1), **close)
    assert course.similarity["conditional"][:, 1].min() < 0.999 > course.similarity["unconditional"][:, 0].min()
    assert course.rows()[0]["similarity"]["guidance"] == pytest.approx(1)


def test_paths_are_where_the_algebra_puts_them():
    """Two points a and b: every step aims at a + s (b - a), and what is not yet that is the noise at the start."""
    a, b = torch.full((1, 3, 4, 4), -0.2), torch.full((1, 3, 4, 4), 0.4)
    b[:, 2] = -0.2
    model = Exact({"": Mixture(a, 0.0), "b": Mixture(b, 0.0)}, Schedule.read(VP))
    scales = (1.0, 2.0, 3.0)
    course = trajectory.follow(model, "b", scales, steps=10, seed=5, many=4, pixels=7)
    levels = list(model.schedule.levels(10))
    start, (_, alpha, sigma) = model.latents([5], 4, 4)[0], levels[0]
    aims = torch.stack([a[0] + s * (b - a)[0] for s in scales])
    wanted = torch.stack([to.alpha * aims + to.sigma * (start - alpha * aims) / sigma for to in levels])
    torch.testing.assert_close(course.latents, wanted, atol=1e-4, rtol=0)
    assert course.times == (*(level.t for level in levels[:-1]), 0)
    assert course.rgb.shape == (11, 3, 4, 1, 3)  # a cell is one pixel here
    for k, (row, column) in enumerate(course.cells.tolist()):
        torch.testing.assert_close(course.rgb[:, :, k, 0], wanted[..., row, column] / 2 + 0.5, atol=1e-4, rtol=0)
    numbers = course.rows()
    assert [n["border"] for n in numbers] == pytest.approx([0, 2 / 3, 2 / 3])  # red and green end at .7, 1 and 1.3
    assert [n["border_points"] for n in numbers] == pytest.approx([0, 2 / 3, 2 / 3])
    spread = wanted.amax(0) - wanted.amin(0)
    assert [n["range"] for n in numbers] == pytest.approx(spread.mean((1, 2, 3)).tolist(), abs=1e-4)
    rows, columns = course.cells.T
    assert [n["range_points"] for n in numbers] == pytest.approx(
        spread[..., rows, columns].mean((1, 2)).tolist(), abs=1e-4
    )
    estimates = trajectory.follow(model, "b", scales, steps=10, seed=5, many=4, decoded="x0")
    torch.testing.assert_close(estimates.rgb, course.rgb[-1:].expand(11, -1, -1, -1, -1), atol=1e-3, rtol=0)


def test_places_are_drawn_once_each_and_pixels_lie_in_their_cell():
    generator = torch.Generator().manual_seed(0)
    cells = trajectory.some_cells(3, 5, 15, generator)
    assert sorted(map(tuple, cells.tolist())) == [(r, c) for r in range(3) for c in range(5)]
    pixels = trajectory.some_pixels(cells, 8, 6, generator)
    assert pixels.shape == (15, 6, 2) and torch.equal(pixels // 8, cells[:, None].expand(-1, 6, -1))
    assert all(len(set(map(tuple, some))) == 6 for some in pixels.tolist())
    assert trajectory.some_pixels(cells, 2, 6, generator).shape == (15, 4, 2)
    with pytest.raises(SfumatoError, match="3 x 5 have 15 points, so 16 cannot be followed"):
        trajectory.some_cells(3, 5, 16, generator)
    values = torch.arange(2 * 3 * 4 * 8 * 8).view(2, 3, 4, 8, 8)
    found = trajectory.points(values, torch.tensor([[[1, 2], [7, 0]]]))
    assert found.shape == (2, 3, 1, 2, 4) and torch.equal(found[1, 2, 0, 1], values[1, 2, :, 7, 0])


def test_the_border_is_what_a_file_holds_as_0_or_255():
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.4 / 255, 254.6 / 255, 1.0])
    written = (values * 255).round()
    assert torch.equal(trajectory.at_border(values), (written == 0) | (written == 255))


def test_each_scale_is_a_run_alone(here):
    model = load("stilllife", device="cpu")
    scales = (1.0, 7.5)
    course = trajectory.follow(model, PROMPT, scales, steps=4, seed=3, many=2)
    for i, scale in enumerate(scales):
        kept = Trajectory(("x", "cond"))
        alone = denoise(model, PROMPT, guide=scale, steps=4, seed=3, trajectory=kept)
        torch.testing.assert_close(course.latents[:-1, i], kept["x"][:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(course.latents[-1, i], alone.latents[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(course.images[i], alone.images[0], atol=1e-4, rtol=1e-4)
        similar = trajectory.successive(kept["cond"])[:, 0]
        torch.testing.assert_close(course.similarity["conditional"][:, i], similar, atol=1e-4, rtol=0)
    assert course.similarity["unconditional"].shape == (3, 2) and course.rgb.shape == (5, 2, 2, 8, 3)


@pytest.fixture
def run(capsys):
    """Run the command; returns (exit code, stdout, stderr)."""

    def call(*args: object):
        code = cli.main(["experiment", "trajectory", *map(str, args)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_the_command_draws_and_tells(run, here, tmp_path):
    prompt = "a $5 duck, $3 🐈 & кот\n" + "and a red cube " * 20
    options = [prompt, "--scales", 1, 7.5, "--steps", 3, "--points", 1, "--decode", "estimate", "--device", "cpu"]
    code, out, err = run(*options, "--out", tmp_path / "a", "--json")
    assert code == 0 and err.count("\n") == 1 and "the rest is left out: a red cube" in err, err
    told = json.loads(out)
    for name in ("similarity", "latents", "pixels"):
        with Image.open(told[name]) as image:
            assert image.width > 400 and image.text["prompt"] == prompt and image.text["steps"] == "3"
    record = json.loads((tmp_path / "a" / "trajectory.json").read_text(encoding="utf-8"))
    assert [row["scale"] for row in record["scales"]] == [1, 7.5] and len(record["times"]) == 4
    assert record["decode"] == "estimate" and len(record["cells"]) == 1
    for row, short in zip(record["scales"], told["scales"], strict=True):
        assert row == short
        for name, curve in row["curves"].items():
            assert len(curve) == 2 and sum(curve) / 2 == pytest.approx(row["similarity"][name], abs=1e-6)
        assert 0 <= row["border"] <= 1 and row["range"] > 0
    again = run(*options, "--out", tmp_path / "b")
    assert again[0] == 0 and "at border" in again[1] and again[1].split()[-1] == str(tmp_path / "b" / "trajectory.json")
    for name in ("similarity.png", "latents.png", "pixels.png", "trajectory.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(list((tmp_path / "a").glob("[!.]*"))) == 4
    other = [prompt, "--scales", 1, "--steps", 2, "--points", 1, "--decode", "estimate", "--out", tmp_path / "a"]
    assert run(*other)[0] == 0 and len(list((tmp_path / "a").glob("[!.]*.2.*"))) == 4, "nothing is written over"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--scales", "nan", "3"], ["scales", "a finite number, got nan"]),
        (["--scales", "3", "3"], ["different", "3 3"]),
        (["--scales", *map(str, range(9))], ["one to eight"]),
        (["--scales"], ["scales", "got none"]),
        (["--scales", "1", "1e38"], ["1e+38", "not finite; take a lower guidance"]),
        (["--steps", "1"], ["steps", "between 2 and 1000, got 1"]),
        (["--points", "0"], ["points"]),
        (["--points", "7"], ["points", "between 1 and 6, got 7"]),
        (["--seed", "-1"], ["seed"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--model", "no/such"], ["unknown model"]),
    ],
)
def test_what_the_command_refuses(run, here, tmp_path, args, words):
    code, out, err = run(PROMPT, "--steps", "3", "--out", tmp_path, *args)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("sfumato: "), err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_a_scale_is_a_number_and_a_prompt_says_something(run, here, tmp_path):
    assert run(PROMPT, "--scales", "much", "--out", tmp_path)[0] == 2
    code, _, err = run(" ", "--out", tmp_path)
    assert code == 2 and "the prompt is empty" in err
    (tmp_path / "file").write_text("")
    assert "cannot write" in run(PROMPT, "--out", tmp_path / "file" / "x")[2]
    model = load("stilllife", device="cpu")
    with pytest.raises(SfumatoError, match="scales are given once each, got: 3, 3"):
        trajectory.follow(model, PROMPT, (3, 3))
    with pytest.raises(SfumatoError, match="at least 2, got 1"):
        trajectory.follow(model, PROMPT, (1, 3), steps=1)
