"""Diff3F: what goes back to vertices, against closed forms; turned shapes; the built-in model on two people."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from solids import cube, soup, sphere

from sfumato.backbones import controlnets
from sfumato.backbones.load import load
from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh
from sfumato.methods.perceive import diff3f
from sfumato.methods.perceive.diff3f import LOOKS, Diff3F, VertexFeatures, lifted, nearness, shown
from sfumato.ops.raster import around, rasterise, visible
from sfumato.reading.reader import read

SMALL = Diff3F((0, 90, 180, 270), (20,), fov=40, distance=3.2, size=48, look="shaded")


def blob(seed: int = 0) -> Mesh:
    vertices, faces = sphere(2)
    draws = torch.Generator().manual_seed(seed)
    return Mesh(vertices * (1 + 0.3 * torch.rand(3, generator=draws)) + 0.2 * vertices.roll(1, 1).square(), faces)


def test_the_defaults_are_the_published_views():
    cameras = Diff3F().cameras
    assert len(cameras) == 100 and cameras.pinhole and abs(cameras.half - 1) < 1e-9  # 90 degrees
    eyes = cameras.poses[:, :3, 3]
    torch.testing.assert_close(eyes.norm(dim=1), torch.full((100,), 1.3).double())
    torch.testing.assert_close(eyes[0], torch.tensor([0, 0, 1.3]).double())
    assert (cameras.poses[:, 1, 1] < 0).sum() == 50  # beyond 90 degrees up is down
    assert not Diff3F(fov=0).cameras.pinhole


def test_a_vertex_takes_what_the_views_that_see_it_have_there():
    """A map whose direction tells the place: it comes back as the vertex's own place, of each view that sees it."""
    mesh = blob().unit()
    cameras = around([0, 60], [0, 30], 3.2, 40)
    at, found = visible(rasterise(mesh.vertices, mesh.faces, cameras, 64), cameras, mesh.vertices)
    middles = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    place = torch.stack([x, y, torch.ones_like(x)])
    only = torch.stack([place, torch.cat([place[:2] * 0, place[2:]])])  # the second view tells nothing
    sums = lifted([only.half(), only[:, 2:] * 5], at, found)
    assert sums.shape == (len(mesh.vertices), 4) and sums.dtype == torch.float32
    inner = ((at[0] > 1 / 16) & (at[0] < 15 / 16)).all(1)
    one, both = found[0] & ~found[1] & inner, found.all(0) & inner
    assert one.sum() > 15 and both.sum() > 15
    true = F.normalize(torch.cat([at[0], torch.ones(len(at[0]), 1)], 1), dim=1)
    torch.testing.assert_close(sums[one, :3], true[one], atol=2e-3, rtol=0)  # of halves
    torch.testing.assert_close(sums[both, :3], true[both] + torch.tensor([0.0, 0, 1]), atol=2e-3, rtol=0)
    torch.testing.assert_close(sums[:, 3], found.sum(0).float())
    assert (sums[~found.any(0)] == 0).all()


def test_balls_weigh_what_was_seen_and_the_unseen_take_the_nearest():
    vertices = torch.tensor([[-1.0, 0, 0], [-0.99, 0, 0], [0, 0.5, 0], [1, 0, 0], [0.9, 0, 0]])
    mesh = Mesh(vertices, torch.tensor([[0, 2, 3], [1, 2, 4]]))
    sums, counts = torch.tensor([[6.0], [1.0], [8.0], [0.0], [0.0]]), torch.tensor([2.0, 1.0, 2.0, 0.0, 0.0])
    found = SMALL.spread(mesh, sums, counts)
    torch.testing.assert_close(found[:, 0], torch.tensor([7 / 3, 7 / 3, 4, 4, 4]))
    plain = replace(SMALL, ball=0.0).spread(mesh, sums, counts)
    torch.testing.assert_close(plain[:, 0], torch.tensor([3.0, 1, 4, 4, 4]))
    with pytest.raises(SfumatoError, match="sees any vertex"):
        SMALL.spread(mesh, sums, counts * 0)


def test_a_shape_turned_from_view_to_view_has_the_same_features(sd):
    mesh = blob()
    turned = Mesh(mesh.vertices[:, [2, 1, 0]] * torch.tensor([1.0, 1, -1]), mesh.faces)  # a quarter about y
    one, two = (SMALL(sd, shape) for shape in (mesh, turned))
    assert (one.seen != two.seen).sum() <= 2  # rounding at outlines
    apart = (one.values - two.values).norm(dim=1)
    other = (SMALL(sd, blob(1)).values - one.values).norm(dim=1)
    assert other.median() > 20 * apart.median()


def test_a_view_is_read_as_an_image_is(sd):
    """By DIFT's own reading of the rendered picture."""
    method = replace(SMALL, blocks=(0, 1), ensemble=2, t=100, prompt="a cow", seed=3)
    mesh = blob().unit()
    views = method.views(sd, mesh, method.cameras)
    assert views.shape == (4, 3, method.side(sd), method.side(sd)) and views.min() >= 0 and views.max() <= 1
    maps = method.maps(sd, views)
    with read(sd, views[2], method.side(sd)) as reader:
        for layer, wanted in zip(maps, method.reading.maps(reader), strict=True):
            torch.testing.assert_close(layer[2], wanted, atol=1e-4, rtol=1e-3)


def test_views_in_parts_are_the_same(sd, monkeypatch):
    whole = SMALL(sd, blob()).values
    monkeypatch.setattr(diff3f, "BATCH", 3)
    torch.testing.assert_close(SMALL(sd, blob()).values, whole, atol=1e-4, rtol=0)


def test_renders_look_as_they_should():
    mesh = Mesh(*sphere(4))
    cameras = around([0, 200], [0, 50], 3.0)
    seen = rasterise(mesh.vertices, mesh.faces, cameras, 65)
    for look in LOOKS[1:]:
        image = shown(mesh, cameras, seen, look, 0.75)
        assert image.shape == (2, 3, 65, 65)
        assert (image.movedim(1, -1)[~seen.there] == (0 if look == "depth" else 0.75)).all()
    normals = shown(mesh, cameras, seen, "normals")  # those of the camera, whichever it is
    torch.testing.assert_close(normals[:, :, 32, 32], torch.tensor([0.5, 0.5, 1]).expand(2, 3), atol=0.01, rtol=0)
    torch.testing.assert_close(normals[:, 0, 32, 48], torch.full((2,), 0.5 + 16 / 65), atol=0.01, rtol=0)
    torch.testing.assert_close(normals[:, 1, 16, 32], torch.full((2,), 0.5 + 16 / 65), atol=0.01, rtol=0)
    shaded = shown(mesh, cameras, seen, "shaded")[:, 0]
    assert (shaded[:, 32, 32] > 0.89).all() and (shaded[:, 32, 62] < 0.55).all()


def test_depth_is_shown_from_the_farthest_to_the_nearest():
    depth, there = torch.tensor([[[2.0, 3.0], [4.0, torch.inf]]]), torch.tensor([[[True, True], [True, False]]])
    seen: Any = SimpleNamespace(depth=depth, there=there)
    assert nearness(seen, "linear")[0, 1].tolist() == [[1, 0.5], [0, 0]]
    torch.testing.assert_close(nearness(seen, "disparity")[0, 2], torch.tensor([[1, 2 / 3], [0.5, 0]]))


def test_painting_is_steered_by_depth(here, monkeypatch):
    model = load("stilllife")
    network = controlnets.read("stilllife-depth", model)
    method = replace(SMALL, azimuths=(0, 90), size=None, look="painted", steps=2, prompt="a cow", depth="disparity")
    given = []
    plain = diff3f.denoise

    def watched(*args, **options):
        given.append((args[1], options))
        return plain(*args, **options)

    monkeypatch.setattr(diff3f, "denoise", watched)
    mesh = blob().unit()
    found = method(model, mesh, network)
    assert found.values.isfinite().all()
    ((prompts, options),) = given
    assert prompts == ["a cow"] * 2 and options["seed"] == [0, 0] and options["guide"] == 7.0
    seen = rasterise(mesh.vertices, mesh.faces, method.cameras, 2 * method.side(model))
    wanted = F.avg_pool2d(nearness(seen, "disparity"), 2)
    torch.testing.assert_close(options["controls"][0].image, wanted)
    with pytest.raises(SfumatoError, match="none is given; give one, or take another look: shaded, normals"):
        method(model, mesh)


def features(values: torch.Tensor, standard: bool = False) -> VertexFeatures:
    mesh = Mesh(torch.rand(len(values), 3), torch.tensor([[0, 1, 2]]))
    return VertexFeatures(mesh, values, torch.ones(len(values), dtype=torch.bool), standard)


def test_a_vertex_is_matched_to_the_most_alike(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(50, 8, generator=draws)
    order = torch.randperm(50, generator=draws)
    other = values[order] * torch.rand(50, 1, generator=draws).add(0.5)  # lengths do not count
    index, scores = features(values).found(features(other))
    assert torch.equal(order[index], torch.arange(50))
    torch.testing.assert_close(scores, torch.ones(50))
    monkeypatch.setattr("sfumato.ops.memory.BUDGET", 120)
    assert torch.equal(features(values).match(features(other)), index)
    with pytest.raises(SfumatoError, match="different networks"):
        features(values).match(features(other[:, :4]))


def test_a_channel_that_outweighs_all_is_brought_down():
    values = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    values[:, 0] *= 1000
    noisy = values + 0.1 * values.std(0) * torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    right = [(features(values, s).match(features(noisy, s)) == torch.arange(50)).sum() for s in (False, True)]
    assert right[1] == 50 > right[0]


def test_parts_are_what_has_like_features():
    draws = torch.Generator().manual_seed(0)
    kinds = torch.randint(3, (60,), generator=draws)
    values = F.one_hot(kinds, 3).float() + 0.05 * torch.randn(60, 3, generator=draws)
    values = values * (1 + 5 * torch.rand(60, 1, generator=draws))  # lengths do not count
    labels = features(values).segment(3)
    assert len({(int(a), int(b)) for a, b in zip(kinds, labels, strict=True)}) == 3 == len(labels.unique())
    assert torch.equal(labels, features(values).segment(3))
    with pytest.raises(SfumatoError, match="between 2 and 60"):
        features(values).segment(1)


def test_matches_are_smoothed_where_that_is_asked(sd, monkeypatch):
    one = SMALL(sd, blob())
    found = one.match(one)
    torch.testing.assert_close(one.values[found], one.values)  # those that were filled are alike
    smooth = replace(one, smooth=20)
    monkeypatch.setattr(diff3f, "zoomed_out", lambda index, source, target, most: index * 0 + most)
    assert torch.equal(smooth.match(one), found * 0 + 20) and torch.equal(one.match(smooth), found)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"look": "oil"}, "unknown look 'oil'; known: painted"),
        ({"depth": "metres"}, "unknown depth"),
        ({"azimuths": ()}, "one azimuth"),
        ({"ball": 1.0}, "part of the diameter"),
        ({"fov": 180.0}, "field of view"),
        ({"distance": 0.9}, "outside of the unit ball"),
        ({"blocks": ()}, "one block or several"),
        ({"smooth": -1}, "smooth lies between"),
        ({"size": 4}, "size lies between"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_settings_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(SfumatoError, match=reason):
        replace(SMALL, **settings)


def test_shapes_that_are_no_solid_are_read_all_the_same(sd):
    for shape in (soup(), cube()):
        found = SMALL(sd, Mesh(*shape))
        assert found.values.isfinite().all() and found.seen.any()
