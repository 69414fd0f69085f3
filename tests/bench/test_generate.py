"""The bench of the built-in model: what it asks, how it judges, what it reports."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.bench import generate, report
from sfumato.stilllife import change
from sfumato.stilllife.captions import parse
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.oracle import Reading, ReadThing
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import STYLES, Scene, Thing

SCENE = Scene((Thing("cube", "red", x=-0.6), Thing("duck", "blue", x=0.6)), ground="sand", light="night")


def read(scene: Scene) -> Reading:
    """A reading that sees everything."""
    order = sorted(range(len(scene.things)), key=lambda i: scene.things[i].x)
    things = tuple(
        ReadThing(t.kind, t.colour, t.material, (20 + 40 * k, 50, 50 + 40 * k, 90), (35.0 + 40 * k, 70.0), 900, False)
        for k, t in enumerate(scene.things[i] for i in order)
    )
    return Reading(things, scene.ground, scene.light, scene.style, np.zeros((128, 128), int))


@pytest.mark.parametrize("key", generate.PROMPTS)
def test_prompts_say_what_they_are_judged_by(key):
    rng = np.random.default_rng(0)
    for i in range(40):
        said = generate.PROMPTS[key](rng, i)
        assert parse(said.phrase(rng)) == said
        assert all(t.colour and not KINDS[t.kind].held_out for t in said.things)
        assert len(said.things) == (2 if key in ("pair", "relation") else 1)
        assert (said.ground is not None and said.light is not None) == (key == "single_scene")
        assert (said.relation is not None) == (key == "relation")
        assert said.style == (STYLES[i % 4] if key == "style" else None)
        assert said.things[0].view == (("front", "back")[i % 2] if key == "view" else None)
        if len(said.things) == 2:
            a, b = said.things
            assert a.kind != b.kind and a.colour != b.colour


def test_prompts_depend_on_the_seed_and_not_on_the_other_measures():
    def draws(seed):
        rng = generate.GenerateSession(4, seed, torch.device("cpu")).rng("pair")
        return [generate.PROMPTS["pair"](rng, i) for i in range(4)]

    assert draws(1) == draws(1) and draws(1) != draws(2)


@pytest.mark.parametrize(
    ("what", "half_done"),
    [
        (change.Recolour(0, "green"), SCENE),
        (change.Reshape(1, "car"), SCENE),
        (change.Rematerial(0, "striped"), SCENE),
        (change.Reground("snow"), replace(SCENE, ground="water")),
        (change.Relight("day"), replace(SCENE, light="fog")),
        (change.Restyle("mosaic"), SCENE),
        (change.Remove(0), SCENE),
        (change.Add(Thing("ring", "white", z=1.4)), SCENE),
        (change.Recolour(0, "green"), SCENE.with_thing(0, colour="green").with_thing(1, colour="green")),
    ],
)
def test_an_edit_counts_when_it_is_seen_and_the_other_things_are_as_they_were(what, half_done):
    edit = change.counterfactual(SCENE, what)
    assert generate.applied(read(edit.after), edit)
    assert not generate.applied(read(half_done), edit)


def test_the_true_silhouette_implies_the_true_depth_to_within_its_own_relief():
    seen = render(SCENE)
    thing = seen.thing[0] >= 0
    true = generate.depth_error(thing, SCENE, seen.depth[0], thing)
    nothing = generate.depth_error(torch.zeros_like(thing), SCENE, seen.depth[0], thing)
    shifted = generate.depth_error(thing.roll(30, 1), SCENE, seen.depth[0], thing)
    assert true < 1e-5 < 0.01 < nothing and true < shifted


def test_the_ground_is_as_deep_as_it_renders():
    seen = render(SCENE)
    ground = generate.ground_depth(SCENE, 128)
    torch.testing.assert_close(ground[seen.ground[0]], seen.depth[0][seen.ground[0]], atol=1e-3, rtol=1e-4)


def test_a_whole_run(here, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "STEPS", 2)
    out = generate.run(2, 0, "cpu", tmp_path)
    found = json.loads(json.dumps(out.to_dict(), allow_nan=False))
    assert set(found) == {"suite", "n", "seed", "environment", "results", "methods", "seconds"}
    assert list(found["results"]) == list(generate.MEANINGS)
    assert all(isinstance(v, float) for v in found["results"].values())
    quick = {k: v for k, v in generate.MEANINGS.items() if "seconds" not in k}  # which are others each time
    monkeypatch.setattr(generate, "MEANINGS", quick)
    monkeypatch.setattr(generate, "MEASURES", [row for row in generate.MEASURES if row[1] is not generate.speed])
    assert generate.run(2, 0, "cpu").results == {k: found["results"][k] for k in quick}
    assert (tmp_path / "pair.png").is_file() and len((tmp_path / "pair.txt").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "generate.json").read_text())["results"] == found["results"]


def test_what_does_not_ship_is_null_with_the_reason(shipped, here, monkeypatch, capsys):
    from sfumato.errors import SfumatoError

    def absent(name, device):
        raise SfumatoError(f"this version ships no {name}")

    monkeypatch.setattr(generate.weights, "pipeline", absent)
    monkeypatch.setattr(generate, "MEASURES", [m for m in generate.MEASURES if m[0][0] != "vae_psnr"])
    monkeypatch.setattr(generate, "MEANINGS", {k: v for k, v in generate.MEANINGS.items() if not k.startswith("vae_")})
    out = generate.run(2, 0, "cpu")
    assert set(out.results.values()) == {None} and set(out.why) == set(out.results)
    assert "ships no stilllife-depth" in out.to_dict()["why"]["depth"]
    report.show(out, as_json=False)
    assert "not measured, this version ships no stilllife" in capsys.readouterr().out


def test_intervals_hold_the_mean_and_narrow_with_samples():
    rng = np.random.default_rng(0)
    few, many = (rng.random(n) < 0.7 for n in (50, 5000))
    a, b = report.interval(few.astype(float)), report.interval(many.astype(float))
    assert a[0] < few.mean() < a[1] and b[0] < many.mean() < b[1]
    assert 0.2 < a[1] - a[0] < 0.3 and 0.02 < b[1] - b[0] < 0.03  # 2 x 1.96 sqrt(p q / n)


def test_the_table_tells_what_is_met(capsys):
    out = report.Report("s", 4, 0, "cpu", {"a": "first", "b": "second"}, {"a": report.Target(0.5)})
    out.figures = {"a": np.array([1.0, 1.0, 0.0, 1.0]), "b": 2.0}
    assert [row[-1] for row in report.rows(out)] == [True, False]
    assert out.results == {"a": 0.75, "b": 2.0}
    report.show(out, as_json=False)
    assert "≥ 0.5" in capsys.readouterr().out
    assert report.Target(3, at_least=False).met(2.9) and not report.Target(3, at_least=False).met(3.1)
