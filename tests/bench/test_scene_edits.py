"""The bench of scene edits and of what is lifted: it measures what it says, and judges as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.bench import report
from sfumato.bench.scene import edits, features
from sfumato.bench.session import Session
from sfumato.bench.units import Units


@pytest.fixture(scope="module")
def world():
    return edits.World.drawn(np.random.default_rng(3))


@pytest.mark.parametrize("bench", [edits, features], ids=["edits", "features"])
def test_every_key_is_said_and_measured_once(bench):
    measured = [key for keys, _ in bench.MEASURES for key in keys]
    assert sorted(measured) == sorted(bench.MEANINGS) and set(bench.TARGETS) <= set(bench.MEANINGS)


def test_pictures_of_the_true_scene_go_together_and_others_do_not(world):
    true = world.apart(world.after.images[world.learned])
    assert true < 0.02 and world.apart(world.before.images[world.learned]) < 0.02
    shades = torch.linspace(0.8, 1.2, len(world.learned)).view(-1, 1, 1, 1)
    turned = world.after.images[world.learned] * shades
    assert world.apart(turned) > 1.5 * true
    assert world.apart(world.after.images[world.learned].flip(0)) > 3 * true, "each into its own neighbour"


def test_what_both_see_is_at_the_same_place(world):
    x, y, same = world._into(2, 3)
    assert 0.3 < same.float().mean() < 1
    a, b = world.seen.position[2][same], world.seen.position[3][y[same], x[same]]
    assert (a - b).norm(dim=-1).median() < 0.1


def test_edits_are_judged_by_views_that_were_held_out(world, here):
    session = Session(1, 0, torch.device("cpu"))

    class Shown:
        """A scene that shows these pictures."""

        def __init__(self, images):
            self.images = images

        def view(self, cameras):
            at = [int((world.before.cameras.eyes - eye).norm(dim=1).argmin()) for eye in cameras.eyes]
            return type("Rendering", (), {"images": self.images[at]})

    views = world.after.images[world.learned]
    row, picture = world.judged(session, Shown(world.after.images), views)  # type: ignore[arg-type]
    assert row["to_truth"] == float("inf") and row["to_own_pictures"] == 100
    assert picture.shape == (3, 128, 128 * len(edits.HELD))
    other, _ = world.judged(session, Shown(world.before.images), views)  # type: ignore[arg-type]
    assert 5 < other["to_truth"] < 40 and other["warp_error"] == row["warp_error"]


@pytest.mark.slow
def test_every_way_is_run_from_the_same_scene(here, monkeypatch, tmp_path):
    for name, value in {"COUNT": 50, "FIT": 1, "STEPS": 2, "PAINTED": 1, "AGAIN": 1}.items():
        monkeypatch.setattr(edits, name, value)
    session = Session(1, 0, torch.device("cpu"), tmp_path)
    found = report.gather(report.Report("s", 1, 0, "cpu", edits.MEANINGS, edits.TARGETS), edits.MEASURES, session)
    assert not found.why and set(found.figures) == set(edits.MEANINGS)
    lines = (tmp_path / "scene-edits.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(edits.METHODS) + 2
    assert not [*tmp_path.glob("**/*.part.safetensors")], "what a unit had when it was stopped goes when it is whole"
    monkeypatch.setattr(edits, "first_gaussians", None)  # what is kept is not measured again
    again = report.gather(report.Report("s", 1, 0, "cpu", edits.MEANINGS, edits.TARGETS), edits.MEASURES, session)
    assert again.results == found.results


@pytest.mark.slow
def test_what_is_lifted_is_measured(here, monkeypatch):
    for name, value in {"FIT": 1, "LIFT": 1, "TUNED": 1, "VIEWS": 4, "HELD": (1,)}.items():
        monkeypatch.setattr(features, name, value)
    session = Session(1, 0, torch.device("cpu"))
    found = report.gather(report.Report("s", 1, 0, "cpu", features.MEANINGS, {}), features.MEASURES, session)
    assert not found.why and set(found.figures) == set(features.MEANINGS)
    assert {f"latents in a scene, as table 4.1: {name}" for name in features.ROWS} <= set(session.methods)


def test_what_a_map_explains():
    truth = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = truth.mean((0, 2, 3), keepdim=True).expand_as(truth)
    assert features.explained(truth, truth) == 1 and abs(features.explained(mean, truth)) < 1e-5
    assert features.explained(-truth, truth) < -1


def test_miou_counts_the_background_too():
    truth = torch.zeros(1, 4, 4, dtype=torch.long)
    truth[0, :2, :2], truth[0, 2:, 2:] = 1, 2
    assert features.miou(truth, truth) == 1
    assert features.miou(torch.where(truth > 0, 3 - truth, 0), truth) == pytest.approx(1 / 3)
    assert features.miou(0 * truth, truth) == pytest.approx(8 / 16 / 3)


def test_a_decoder_is_tuned_on_its_own(here):
    model = Session(1, 0, torch.device("cpu")).model
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = model.encode(images)
        before = model.decode(latents)
    own = features.tuned(model, latents, images, 3)
    with torch.no_grad():
        assert torch.equal(model.decode(latents), before) and not torch.equal(own.decode(latents), before)
        assert torch.equal(own.encode(images), latents)


def test_the_first_scene_of_a_world_is_fitted_once_and_never_written_to(world, tmp_path, monkeypatch):
    for name, value in {"COUNT": 50, "FIT": 2}.items():
        monkeypatch.setattr(edits, name, value)
    units, photos = Units(tmp_path / "units.jsonl", of="a"), world.before[[0, 1, 2]]
    begun = edits.Begun(photos, 0, units, "fit")

    def stop(*_, **__):
        raise RuntimeError

    scene, other = begun.scene(), begun.scene()
    with torch.no_grad():
        other.means.add_(1)
    assert torch.equal(begun.scene().means, scene.means) and not torch.equal(other.means, scene.means)
    monkeypatch.setattr(edits, "first_gaussians", stop)
    again = edits.Begun(photos, 0, units, "fit").scene()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in scene.state_dict().items())
    with pytest.raises(RuntimeError):
        edits.Begun(photos, 0, units, "fit of another").scene()
    with pytest.raises(RuntimeError):
        edits.Begun(photos, 0, Units(None), "fit").scene()
