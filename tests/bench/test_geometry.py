"""Shapes against the truth: the same one is right, one that is moved, larger or empty is as wrong as it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sfumato.bench.geometry import aligned, geometry, shape_seen, unseen
from sfumato.distill.generators import Pixels, Rendering
from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh
from sfumato.metrics.geometry import depth_error, silhouette_iou
from sfumato.scene.mesh import check
from sfumato.scene.render import FieldScene, Sampling
from sfumato.stilllife.captures import cameras_around, capture
from sfumato.stilllife.matter import Solids, true_mesh
from sfumato.stilllife.scene import Scene, Thing

SCENE = Scene((Thing("robot", "red", x=0.3, yaw=40.0), Thing("cube", "blue", size="large", x=-0.8, z=0.2)))


def test_silhouettes_and_depths_by_hand():
    found, true = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    found[0, 0], true[0, 0, :2] = 0.9, 1.0
    assert silhouette_iou(found, true).tolist() == [0.5, 1.0]
    deep = torch.full((1, 4, 4), 2.0)
    deep[0, 2:] = 0
    moved = deep.clone()
    moved[0, 0] += 1
    moved[0, 3] += 9  # where not both are seen
    assert depth_error(moved, deep).tolist() == [0.5] == depth_error(deep, moved).tolist()
    with pytest.raises(SfumatoError, match="view 0 no pixel"):
        depth_error(deep, deep * 0)
    with pytest.raises(SfumatoError, match="same views"):
        silhouette_iou(found, true[:1])


def test_the_true_mesh_has_the_renderers_silhouettes_and_depths():
    mesh = true_mesh(SCENE, 96)
    assert check(mesh).watertight and check(mesh).pieces >= 2 and check(mesh).volume > 0
    shots, truth = capture(SCENE, cameras_around(SCENE, 3), 96)
    there, depth = shape_seen(mesh, shots.cameras)
    on_thing = truth.thing >= 0
    assert silhouette_iou(there, on_thing).min() > 0.96
    axis = torch.einsum("nhwi,ni->nhw", shots.cameras.rays().directions, -shots.cameras.poses[:, :3, 2])
    both = there & on_thing
    assert depth_error(depth * both, torch.where(both, truth.depth, 0) / axis).max() < 0.015


def test_a_perfect_field_is_right_and_its_depth_is_along_the_ray():
    scene = FieldScene(Solids(SCENE), sampling=Sampling(128))
    found = geometry(scene, true_mesh(SCENE, 64), unseen(true_mesh(SCENE, 32), 1, 64))
    assert found["iou"] > 0.93 and found["depth"] < 0.01  # a sample a hundredth of the way


def test_what_is_moved_larger_or_elsewhere_is_wrong():
    mesh = true_mesh(SCENE, 48)
    same = geometry(mesh, mesh)
    assert same == {"iou": 1.0, "depth": 0.0}
    nearer = geometry(replace(mesh, vertices=mesh.vertices + torch.tensor([0.1, 0.0, 0.0])), mesh)
    assert nearer["iou"] < 0.9 and nearer["depth"] > 0.01
    assert geometry(replace(mesh, vertices=mesh.vertices + 9.0), mesh, unseen(mesh)) == {"iou": 0.0, "depth": 1.0}


def test_depths_of_what_is_hardly_seen_do_not_count():
    mesh = true_mesh(SCENE, 32)
    cameras = unseen(mesh, 1, 32)
    there, depth = shape_seen(mesh, cameras)

    class Faint(Pixels):
        def render(self, viewpoints=None):
            half = torch.ones(1, 1, 32, 32)
            half[..., 16:] = 0.3
            return Rendering(self.images, half * there[:, None], torch.where(half < 0.5, 9.0, depth[:, None]))

    found = geometry(Faint(torch.zeros(1, 3, 32, 32)), mesh, cameras)
    assert found["depth"] == 0 and 0.3 < found["iou"] < 0.7


def test_shapes_without_a_place_are_turned_and_scaled_first():
    mesh = true_mesh(Scene((Thing("robot", yaw=0.0),)), 48)
    a = 2 * math.pi * 5 / 16
    turn = torch.tensor([[math.cos(a), 0.0, math.sin(a)], [0.0, 1.0, 0.0], [-math.sin(a), 0.0, math.cos(a)]])
    other = Mesh(mesh.vertices @ turn.T * 3 + 1, mesh.faces)
    assert geometry(*aligned(other, mesh))["iou"] > 0.97
    assert geometry(other, mesh)["iou"] < 0.5


def test_what_has_no_depth_is_refused():
    class Flat(Pixels):
        def render(self, viewpoints=None):
            return super().render()

    with pytest.raises(SfumatoError, match="Flat renders no opacity"):
        shape_seen(Flat(torch.zeros(1, 3, 8, 8)), unseen(true_mesh(SCENE, 32), 1, 8))
