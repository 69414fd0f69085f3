"""The sources' experiments: what they measure against closed forms, and each command on a tiny model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import SCHEDULES
from PIL import Image

from sfumato import experiments
from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.guidance import CFG
from sfumato.distill import Distillation, GuidedModel
from sfumato.errors import SfumatoError
from sfumato.experiments import baseline, guidance_grid, index, kappa_error, saturation
from sfumato.experiments.common import Subjects, apart, guided, listed, mosaic, percent
from sfumato.io.progress import heard
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion
from sfumato.metrics import looks

STD = 0.5


def exact(kind: str = "epsilon") -> Exact:
    mean = torch.linspace(-1, 1, 3 * 4 * 4).view(1, 3, 4, 4)
    one = Mixture(mean, STD)
    return Exact({"one": one, "": one}, SCHEDULES[kind])


def images(n: int, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- what images look like ---------------------------------------------------------------------------


def test_saturation_is_that_of_hsv():
    import colorsys

    x = images(2, 4)
    x[0, :, 0, 0] = 0.0
    expected = [
        sum(colorsys.rgb_to_hsv(*pixel.tolist())[1] for pixel in image.flatten(1).T) / image[0].numel() for image in x
    ]
    assert looks.saturation(x).tolist() == pytest.approx(expected, abs=1e-6)


def test_detail_is_none_in_a_flat_image_and_grows_with_the_square_of_contrast():
    x = images(1, 32)
    assert float(looks.detail(torch.full((1, 3, 8, 8), 0.3))) < 1e-12
    assert float(looks.detail(3 * x) / looks.detail(x)) == pytest.approx(9, rel=1e-5)
    assert looks.detail(torch.cat([x, x.flip(3)])).tolist() == pytest.approx(looks.detail(x).repeat(2).tolist())


def test_spread_is_the_mean_over_pairs_of_different_images():
    x = images(3)
    pairs = [(x[i] - x[j]).square().mean().sqrt() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert looks.spread(x) == pytest.approx(float(sum(pairs)) / 3, rel=1e-5)
    assert looks.spread(x[:1].repeat(2, 1, 1, 1)) == 0
    with pytest.raises(SfumatoError, match="two images or more, got 1"):
        looks.spread(x[:1])


# --- the error of a noise in eq. 4.4 --------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("t", [100, 500, 900])
def test_the_error_of_any_noise_is_its_closed_form_and_none_at_the_solution(kind, t):
    model, n = exact(kind), 2
    prior, at = GuidedModel(model, ("one",) * n, CFG(1.0)), model.schedule.at(t)
    (_, alpha, sigma), variance = at, STD**2
    rng = torch.Generator().manual_seed(1)
    away, kappa = (torch.randn(n, 3, 4, 4, generator=rng) for _ in range(2))
    mean = model.mixtures["one"].means
    seen = alpha * variance / (alpha**2 * variance + sigma**2) * (alpha * away + sigma * kappa)  # less the mean
    expected = (away - seen).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(kappa_error.error(prior, mean + away, kappa, at), expected, atol=2e-5, rtol=1e-4)
    solution = sigma / (alpha * variance) * away
    torch.testing.assert_close(kappa_error.error(prior, mean + away, solution, at), torch.zeros(n), atol=5e-4, rtol=0)


def test_random_noises_have_one_error_and_all_choices_are_of_their_own_noise():
    model, n = exact(), 64
    prior, at = GuidedModel(model, ("one",) * n, CFG(1.0)), model.schedule.at(600)
    state = kappa_error.State(at, model.mixtures["one"].means.expand(n, -1, -1, -1))
    method = ScoreDistillationViaInversion(guidance=1.0, inversion_guidance=1.0, per_unit=50)
    errors = kappa_error.measured(method, prior, [state], seed=0)
    assert list(errors) == list(kappa_error.CHOICES)
    assert float(errors["resampled"]) == pytest.approx(float(errors["fixed"]), rel=0.05)
    assert float(errors["inversion"]) < 0.02 * float(errors["resampled"])


def test_a_run_is_looked_at_from_its_first_level_to_its_last():
    asked = SimpleNamespace(stated=(None, None), prompts=("one", "one"))
    method = ScoreDistillationViaInversion(guidance=1.0, inversion_guidance=1.0)
    shown, states = kappa_error.along(exact(), asked, method, 6, 0, 3)  # pyright: ignore[reportArgumentType]
    assert [s.at.t for s in states] == [999, 733, 333]
    assert shown.shape == (2, 3, 4, 4) and all(s.x.shape == (2, 3, 4, 4) for s in states)
    with pytest.raises(SfumatoError, match="give the method times"):
        kappa_error.along(exact(), asked, replace(method, times=None), 6, 0, 3)  # pyright: ignore[reportArgumentType]


# --- what is said of numbers -----------------------------------------------------------------------------


def test_numbers_are_put_in_words():
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert apart(1.2, 1.0) == "20 % above" and apart(0.9, 1.0) == "10 % below" and percent(0.125, 1) == "12.5 %"
    x = images(5, 4)
    assert mosaic(x).shape == (3, 8, 8)
    torch.testing.assert_close(mosaic(x)[:, 4:, :4], x[2])
    torch.testing.assert_close(mosaic(x[:3]), x[0])


def test_guidance_varies_with_that_of_the_inversion_against_it():
    sdi = guided("sdi", ScoreDistillationViaInversion(guidance=7.5, inversion_guidance=-7.5), 30.0)
    assert (sdi.guidance, sdi.inversion_guidance) == (30.0, -30.0)
    assert guided("sds", ScoreDistillation(), 3.0) == ScoreDistillation(guidance=3.0)

    @dataclass(frozen=True)
    class Plain(Distillation):
        weight: float = 1.0

    with pytest.raises(SfumatoError, match="plain has no guidance to vary"):
        guided("plain", Plain(), 3.0)


def test_our_sentences_follow_the_numbers():
    def cell(views: bool, scale: float, right: float, fine: float) -> guidance_grid.Cell:
        return guidance_grid.Cell("sds", scale, views, images(1), {"right": right, "detail": fine, "saturation": 0.1})

    grid = guidance_grid.Grid("latent", (cell(False, 1, 0.0, 2.0), cell(False, 30, 1.0, 2.0), cell(True, 30, 0.0, 1.0)))
    said = grid.ours()
    assert "sds straight is read right most (100 %) first at a guidance of 30" in said
    assert "sds with random views is never read right" in said and "0.25 times for sds" in said
    curve = saturation.Curve("sds", {}, {1.0: {"saturation": 0.1}, 7.5: {"saturation": 0.3}})
    falls = saturation.Curve("sdi", {}, {1.0: {"saturation": 0.3}, 7.5: {"saturation": 0.2}})
    said = saturation.Curves((curve, falls), images(1), {"saturation": 0.2}).ours()
    assert "sds is 50 % below at 1 and 50 % above at 7.5 (it grows with guidance)" in said
    assert said.endswith("sdi is 50 % above at 1 and 0 % above at 7.5.")
    errors = {name: torch.tensor([1.0, float(i)]) for i, name in enumerate(kappa_error.CHOICES)}
    said = kappa_error.Errors((0.9, 0.1), {"run": errors}).ours()
    assert "resampled 0.5, fixed 1, fixed point 1.5" in said and "inversion the least at 0 of 2 levels" in said


# --- the set of an edit -------------------------------------------------------------------------------


def test_a_world_is_one_thing_from_several_sides_in_another_colour():
    said = Subjects.of("a red cube on grass", 1, 3).stated[0]
    world = baseline.World.drawn(said, "blue", 3, 128, 0)
    assert world.stated.phrase() == "a red cube on grass" and world.asked.phrase() == "a blue cube on grass"
    changed = (world.before - world.after).abs().amax(1)
    assert float(changed[world.kept].max()) <= 1.01 / 255 and (changed.flatten(1).amax(1) > 0.2).all()
    assert looks.spread(world.before) > 0.01
    with pytest.raises(SfumatoError, match=r"a red cube becomes another colour, one of green, blue.*got 'red'"):
        baseline.World.drawn(said, "red", 2, 128, 0)


# --- the commands -----------------------------------------------------------------------------------

NOT_EXPERIMENTS = {"__init__", "index", "experiment", "common", "joint_pca"}
QUICK = {
    "guidance-grid": ("--methods", "sds,vsd:still-life", "--guidances", 1, 7.5, "--steps", 2),
    "saturation": ("--methods", "sds", "--guidances", 1, 7.5, "--steps", 2, "--n", 1),
    "smoothness": ("--guidances", 1, 7.5, "--steps", 3),
    "one-noise": ("--steps", 3, "--sds-steps", 2, "--n", 1),
    "kappa-error": ("--steps", 3, "--levels", 2, "--n", 1),
    "inversion-guidance": ("--steps", 2, "--trajectory", 2, "--n", 1),
    "inversion-steps": ("--counts", 1, 2, "--steps", 2, "--n", 1),
    "collaboration": ("--steps", 2, "--n", 2),
    "baseline": ("--steps", 2, "--n", 2, "--prompt", "a blue cube on grass"),
}


def test_the_table_has_every_experiment_once_and_those_with_a_source_are_tried_here():
    files = {f.stem for f in Path(experiments.__file__).parent.glob("*.py")}
    assert sorted(e.home.partition(":")[0] for e in index.EXPERIMENTS) == sorted(files - NOT_EXPERIMENTS)
    assert {e.word for e in index.EXPERIMENTS if e.experiment.source} == set(QUICK)
    assert all(len(e.about) > 30 and e.experiment.__module__.endswith(e.home.split(":")[0]) for e in index.EXPERIMENTS)
    with pytest.raises(
        SfumatoError, match=r"unknown experiment 'kappa'; did you mean kappa-error\? known: trajectory, .*kappa-error"
    ):
        index.find("kappa")


@pytest.mark.parametrize("name", QUICK)
def test_each_writes_a_figure_and_the_findings_of_both(run, here, tmp_path, monkeypatch, name):
    monkeypatch.setattr(kappa_error, "regressed", partial(kappa_error.regressed, rounds=2))
    events = []
    with heard(events.append):
        code, out, err = run("experiment", name, *QUICK[name], "--out", tmp_path, "--seed", 1, "--device", "cpu")
    first, inner = [e for e in events if not e.depth], [e for e in events if e.depth == 1 and e.over]
    assert sum(e.over for e in first) == 1 and (first[0].what != name or first[0].of == len(inner)), "one bar over all"
    assert code == 0, err
    picture, document = map(Path, out.splitlines()[-2:])
    told = json.loads(document.read_text())
    assert Image.open(picture).size[0] > 200 and picture.with_suffix(".json") == document
    assert {"source", "ours", "settings", "found"} <= set(told)
    assert f"source: {told['source']}" in out and f"ours: {told['ours']}" in out
    assert "figure" in told["source"] and told["settings"]["seed"] == 1 and told["settings"]["prompts"]


def test_the_same_seed_gives_the_same_numbers_and_json_is_one_document(run, here, tmp_path):
    call = ("experiment", "collaboration", *QUICK["collaboration"], "--out", tmp_path, "--json")
    code, out, err = run(*call)
    assert code == 0, err
    first = json.loads(out)
    assert set(first) == {"figure", "source", "ours", "settings", "found"}
    assert list(first["found"]["sets"]) == ["off", "on", "repulsion x 1000"]
    assert json.loads(run(*call)[1]) == first
    before = Path(first["figure"]).read_bytes()
    other = json.loads(run(*call, "--seed", 3)[1])["figure"]
    assert other == first["figure"].replace(".png", ".2.png") and Path(first["figure"]).read_bytes() == before


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (("guidance-grid", "--methods", "sdss"), "unknown method that distils 'sdss'; did you mean sds? known: "),
        (("guidance-grid", "--methods", "masactrl"), "unknown method that distils 'masactrl'"),
        (("guidance-grid", "--methods", ""), "methods are different words with commas, got ''; known: "),
        (("guidance-grid", "--methods", "sds:none"), "unknown preset of score-distillation 'none'"),
        (("saturation", "--guidances", 3, 3), "guidances: different values are meant, got 3 3"),
        (("one-noise", "--guidance", "nan"), "--guidance is a finite number, got nan"),
        (("inversion-steps", "--counts"), "counts: different values are meant, got none"),
        (("one-noise", "--n", 0), "--n lies between 1 and 64"),
        (("one-noise", "--high", 7.5), "guidance and high: different values"),
        (("kappa-error", "--levels", 40, "--steps", 30), "levels lies between 2 and 30"),
        (("inversion-guidance", "--guidance", 1), "guidance is another than 0 and 1"),
        (("inversion-steps", "--counts", 3, 3), "counts: different values are meant, got 3 3"),
        (("baseline", "--prompt", "a red cube", "--colour", "mauve"), "a red cube becomes another colour"),
        (("one-noise", "--prompt", "a red zebra"), "zebra"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, here, tmp_path, call, why):
    code, out, err = run("experiment", *call, "--out", tmp_path)
    assert code == 2 and not out and why in err and len(err.splitlines()) == 1, err
