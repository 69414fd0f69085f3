"""Errors of matched vertices in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from solids import cube, plane, sphere

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh
from sfumato.metrics import shapes


def test_errors_are_parts_of_the_diameter():
    mesh = Mesh(*sphere(3))
    true = torch.arange(len(mesh.vertices))
    assert (shapes.euclidean(mesh, true, true) == 0).all() and (shapes.geodesic(mesh, true, true) == 0).all()
    opposite = (mesh.vertices @ mesh.vertices.T).argmin(1)
    torch.testing.assert_close(shapes.euclidean(mesh, opposite, true), torch.ones(len(true)).double())
    assert shapes.geodesic(mesh, opposite, true, 40).min() > 0.97  # lengths along faces differ by a few per cent
    large = Mesh(mesh.vertices * 40, mesh.faces)
    torch.testing.assert_close(shapes.euclidean(large, opposite, true), shapes.euclidean(mesh, opposite, true))


def test_a_flat_shape_and_a_stray_vertex():
    vertices, faces = plane(4)
    mesh = Mesh(torch.cat([vertices, torch.tensor([[50.0, 0, 0]])]), faces)
    found = shapes.euclidean(mesh, torch.tensor([4]), torch.tensor([0]))
    assert abs(float(found) - 1 / math.sqrt(2)) < 1e-6
    assert abs(float(shapes.geodesic(mesh, torch.tensor([4]), torch.tensor([0]))) - 1 / math.sqrt(2)) < 1e-6


def test_pieces_that_do_not_touch_are_one_apart():
    vertices, faces = cube()
    mesh = Mesh(torch.cat([vertices, vertices + 2]), torch.cat([faces, faces + 8]))
    assert shapes.geodesic(mesh, torch.tensor([8]), torch.tensor([0])).tolist() == [1.0]


def test_shares_within_parts_of_the_diameter():
    errors = torch.tensor([0, 0.01, 0.015, 0.04, 0.5]).double()
    assert shapes.within(errors) == [0.4, 0.6, 0.8, 0.8]
    with pytest.raises(SfumatoError, match="same vertices"):
        shapes.euclidean(Mesh(*cube()), torch.arange(3), torch.arange(4))
