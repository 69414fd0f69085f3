"""Surfaces of things as triangles: closed, on the distance's zero, of the right volume, with their places known."""

from __future__ import annotations

import math

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.ops import surfaces
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.sdf import solid
from sfumato.stilllife.surfaces import surface


def volume(found) -> float:
    a, b, c = found.vertices.double()[found.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def test_a_sphere_has_a_spheres_volume_and_faces_outwards():
    (ball,) = KINDS["sphere"].reference()
    found = surface("sphere", (), 24)
    wanted = 4 / 3 * math.pi * math.prod(float(h) for h in ball.half)
    assert 0 < wanted - volume(found) < 0.02 * wanted  # triangles lie inside of it
    normals = surfaces.vertex_normals(found.vertices, found.faces)
    assert (normals * (found.vertices - torch.tensor(ball.centre))).sum(1).min() > 0
    torch.testing.assert_close(found.canonical, found.vertices)


@pytest.mark.parametrize("kind", ["duck", "mug", "chair"])
def test_a_surface_is_closed_and_lies_where_the_distance_is_nothing(kind):
    shape = [0.5, -0.7, 0.9]
    found = surface(kind, shape, 16)
    body = solid(kind, torch.tensor([shape])).take(torch.zeros(len(found.vertices), dtype=torch.long))
    off = body.distance(found.vertices.T).abs()
    assert off.quantile(0.95) < 1e-3 and off.max() < 0.03  # but where primitives meet
    assert found.faces.unique().tolist() == list(range(len(found.vertices)))
    assert surfaces.components(found.vertices, found.faces) == 1
    assert volume(found) > 0
    edges = torch.cat([found.faces[:, [0, 1]], found.faces[:, [1, 2]], found.faces[:, [2, 0]]]).sort(1).values
    _, many = edges.unique(dim=0, return_counts=True)
    assert (many == 2).float().mean() > 0.98  # slivers are left out


def test_canonical_places_are_those_of_the_reference():
    """Whatever its shape, a thing's vertices lie on the reference's surface, by their own primitives."""
    found = surface("robot", [0.8, -0.8, 0.4], 20)
    reference = solid("robot", torch.zeros(1, 3)).take(torch.zeros(len(found.vertices), dtype=torch.long))
    near = reference.distance(found.canonical.T)
    assert near.quantile(0.9) < 2e-3  # inside where primitives overlap otherwise
    assert (found.canonical - found.vertices).norm(dim=1).max() > 0.03
    same = surface("robot", (), 20)
    torch.testing.assert_close(same.canonical, same.vertices, atol=1e-5, rtol=0)


def test_what_is_no_thing_is_refused():
    with pytest.raises(SfumatoError, match="unknown kind 'cow'"):
        surface("cow")
    with pytest.raises(SfumatoError, match="a duck has 3 shape parameters"):
        surface("duck", [0.0])
    with pytest.raises(SfumatoError, match="longest side lies between"):
        surface("duck", (), 2)
