"""Diff3F: what goes back to vertices, against closed forms; turned shapes; the built-in model on two people."""

from __future__ import annotations

import math
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
    sums = lifted([only.half(), only[:, 2:] * 5], at, found.float()[..., None])
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
    return VertexFeatures(mesh, values, torch.ones(len(values), dtype=torch.bool), standard=standard)


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


def test_channels_are_brought_to_mean_0_and_variance_1_over_both_shapes():
    a, b = torch.tensor([[1.0, 10.0], [3.0, 30.0], [1.0, 70.0]]), torch.tensor([[2.0, 60.0], [5.0, 20.0], [4.0, 40.0]])
    one, two = features(a, True)._compared(features(b))
    both = torch.cat([a, b])
    wanted = F.normalize((both - both.mean(0)) / both.std(0), dim=1)
    torch.testing.assert_close(torch.cat([one, two]), wanted)
    constant = torch.cat([a, torch.ones(3, 1)], 1)
    assert features(constant, True).match(features(constant)).tolist() == [0, 1, 2]


def around_it(turn: float) -> torch.Tensor:
    a = torch.tensor(turn)
    return torch.tensor([[a.cos(), 0, a.sin()], [0, 1, 0], [-a.sin(), 0, a.cos()]])


def test_places_tell_left_from_right_where_features_do_not():
    """Features that a mirror leaves as they are; the other shape is turned, and half of it is matched with the wrong
    side."""
    draws = torch.Generator().manual_seed(0)
    half = torch.randn(40, 3, generator=draws).abs() * torch.tensor([1.0, 2.0, 0.5])
    vertices = torch.cat([half, half * torch.tensor([-1.0, 1, 1])])
    values = torch.randn(40, 6, generator=draws).repeat(2, 1)
    faces, every = torch.tensor([[0, 1, 2]]), torch.arange(80)
    noisy = values + 0.02 * torch.randn(80, 6, generator=draws)
    one = VertexFeatures(Mesh(vertices, faces), values, every >= 0, places=0.5)
    two = VertexFeatures(Mesh(vertices @ around_it(2.0).T, faces), noisy, every >= 0)
    alone = replace(one, places=0.0).match(two)
    assert torch.equal(alone % 40, every % 40) and 20 < (alone == every).sum() < 60
    index, scores = one.found(two)
    assert torch.equal(index, every)
    torch.testing.assert_close(scores, F.cosine_similarity(values, noisy))  # of features alone
    torch.testing.assert_close(one.turn(two, index), around_it(-2.0), atol=1e-5, rtol=0)
    # what counts is how far they are: a mirror image is not turned into the shape
    flipped = replace(two, shape=Mesh(two.shape.vertices * torch.tensor([-1.0, 1, 1]), faces))
    assert torch.linalg.det(one.turn(flipped, every)) > 0.99


def test_places_weigh_as_distances_do():
    draws = torch.Generator().manual_seed(1)
    x, y = torch.rand(9, 3, generator=draws), 3 * torch.rand(12, 3, generator=draws)
    a, b = (F.normalize(torch.randn(n, 4, generator=draws), dim=1) for n in (9, 12))
    faces = torch.tensor([[0, 1, 2]])
    one = VertexFeatures(Mesh(x, faces), a, torch.ones(9) > 0, places=0.7)
    two = VertexFeatures(Mesh(y, faces), b, torch.ones(12) > 0)
    turn = around_it(0.4)
    far = torch.cdist(a, b).square() + 0.49 * torch.cdist(x, y @ turn.T).square()
    assert torch.equal(one._placed(two, a, b, turn), far.argmin(1))


@pytest.mark.parametrize("fov", [0.0, 40.0])
def test_sides_are_where_a_camera_stands_of_a_vertex(fov):
    mesh = Mesh(*sphere(3))
    cameras = around([0, 50, 310], [0, 30, 30], 3.0, fov or None)
    found = diff3f.sides(mesh, cameras)
    front = (mesh.vertices - torch.tensor([0.0, 0, 1])).norm(dim=1).argmin()
    level = math.sin(math.radians(50)) * math.cos(math.radians(30))  # of the way to the second camera, to the right
    way = 3 * level / math.dist((3 * level, 1.5, 3 * level / math.tan(math.radians(50))), (0, 0, 1)) if fov else level
    torch.testing.assert_close(found[:, front], torch.tensor([0.0, way, -way]), atol=2e-3, rtol=0)
    torch.testing.assert_close(diff3f.sides(Mesh(mesh.vertices, mesh.faces.flip(1)), cameras), found)
    mirror = torch.tensor([-1.0, 1, 1])
    other = diff3f.sides(Mesh(mesh.vertices * mirror, mesh.faces), around([0, 310, 50], [0, 30, 30], 3.0, fov or None))
    torch.testing.assert_close(other, -found, atol=1e-5, rtol=0)


def test_changes_are_of_features_from_views_of_the_left_to_views_of_the_right(sd, monkeypatch):
    """Each view has a channel of its own: the mean is how often it sees a vertex, the change how far to the side."""
    monkeypatch.setattr(diff3f, "BATCH", 3)
    drawn: list[int] = []

    def maps(self, model, views):
        at = torch.arange(len(drawn), len(drawn) + len(views))
        drawn.extend(at.tolist())
        return [F.one_hot(at, 4).float()[:, :, None, None].expand(-1, -1, 2, 2)]

    monkeypatch.setattr(Diff3F, "maps", maps)
    method = replace(SMALL, ball=0.0, sided=True)
    found = method(sd, blob())
    mesh, cameras = blob().unit(), method.cameras
    size = 2 * method.side(sd)
    _, seen = visible(rasterise(mesh.vertices, mesh.faces, cameras, size), cameras, mesh.vertices)
    weight = (seen / seen.sum(0).clamp_min(1)).T
    side = diff3f.sides(mesh, cameras).T
    mean = (weight * side).sum(1, keepdim=True)
    assert found.changes is not None and found.seen.sum() > 100
    torch.testing.assert_close(found.values[found.seen], weight[found.seen])
    torch.testing.assert_close(found.changes[found.seen], (weight * (side - mean))[found.seen], atol=1e-6, rtol=0)
    drawn.clear()
    plain = replace(method, sided=False)(sd, blob())
    assert plain.changes is None
    torch.testing.assert_close(plain.values, found.values)
    same, scores = found.found(found)
    assert torch.equal(found.values[same], found.values) and torch.equal(found.changes[same], found.changes)
    torch.testing.assert_close(scores, torch.ones(len(scores)))
    other = replace(found, changes=-found.changes)  # as a mirror has them
    assert found.found(other)[1].mean() < 0.99


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
        ({"azimuths": ()}, "one azimuth"),
        ({"distance": 0.9}, "outside of the unit ball"),
        ({"blocks": ()}, "one block or several"),
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
