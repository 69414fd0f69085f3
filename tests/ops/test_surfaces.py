"""Measures of surfaces in closed form: spheres, planes, cubes."""

from __future__ import annotations

import math

import pytest
import torch
from solids import cube, plane, sphere

from sfumato.errors import SfumatoError
from sfumato.ops import surfaces


def cut(vertices, faces):
    """The same surface with every face's corners its own vertices."""
    return vertices[faces].reshape(-1, 3), torch.arange(3 * len(faces)).view(-1, 3)


def test_areas_and_normals_are_those_of_the_sphere():
    vertices, faces = sphere(4)
    area = surfaces.vertex_areas(vertices, faces)
    assert abs(float(area.sum()) / (4 * math.pi) - 1) < 2e-3 and (area > 0).all()
    assert (surfaces.vertex_normals(vertices, faces) * vertices).sum(1).min() > 0.9995


def test_a_surface_cut_open_is_still_whole():
    vertices, faces = sphere(2)
    opened, own = cut(vertices, faces)
    assert surfaces.components(opened, own) == 1
    torch.testing.assert_close(
        surfaces.vertex_normals(opened, own), surfaces.vertex_normals(vertices, faces)[faces.flatten()]
    )
    whole = surfaces.geodesics(vertices, faces, torch.tensor([0]))
    start = int((opened == vertices[0]).all(1).nonzero()[0])
    apart = surfaces.geodesics(opened, own, torch.tensor([start]))
    torch.testing.assert_close(apart[0], whole[0][faces.flatten()])


def test_lengths_along_a_sphere_are_great_circles():
    vertices, faces = sphere(3)
    found = surfaces.geodesics(vertices, faces, torch.tensor([0, 5]))
    true = (vertices[[0, 5]].double() @ vertices.double().T).clamp(-1, 1).acos()
    chord = (vertices[[0, 5]].double()[:, None] - vertices.double()).norm(dim=-1)
    assert (found >= chord - 1e-6).all()
    far = true > 0.3
    ratio = (found / true)[far]
    assert ratio.min() > 0.985 and ratio.max() < 1.06


def test_lengths_on_a_plane_are_straight_where_ways_across_faces_are():
    vertices, faces = plane(8)
    found = surfaces.geodesics(vertices, faces, torch.tensor([0]))[0].view(9, 9)
    assert abs(found[8, 8] - math.sqrt(2)) < 1e-6 and abs(found[0, 8] - 1) < 1e-6
    knight = found[4, 8]  # (8, 4) cells away: four ways across of (2, 1)
    assert abs(knight - math.hypot(1, 0.5)) < 1e-6
    assert (found - vertices.view(9, 9, 3).norm(dim=-1)).min() > -1e-6


def test_pieces_that_do_not_touch_are_endlessly_far():
    vertices, faces = cube()
    two = torch.cat([vertices, vertices + 2]), torch.cat([faces, faces + 8])
    assert surfaces.components(*two) == 2 and surfaces.components(vertices, faces) == 1
    found = surfaces.geodesics(*two, torch.tensor([0]))[0]
    assert found[:8].isfinite().all() and found[8:].isinf().all()


def test_the_diameter_is_the_largest_distance():
    assert abs(surfaces.diameter(cube(0.5)[0]) - math.sqrt(3)) < 1e-6
    assert abs(surfaces.diameter(sphere(3)[0]) - 2) < 1e-6
    assert abs(surfaces.diameter(plane(30)[0]) - math.sqrt(2)) < 1e-6  # flat, and more than a few points


def test_smooth_functions_on_a_sphere_are_its_harmonics():
    """Eigenvalues l (l + 1), each 2 l + 1 times; orthonormal by area."""
    vertices, faces = sphere(4)
    found, area = surfaces.harmonics(vertices, faces, 9)
    gram = found.T @ (area[:, None] * found)
    torch.testing.assert_close(gram, torch.eye(9).double(), atol=1e-6, rtol=0)
    stiff, _, index = surfaces.laplacian(vertices, faces)
    flat = torch.zeros(len(area), 9).double()
    flat[index] = found
    energy = (flat * torch.from_numpy(stiff @ flat.numpy())).sum(0)
    torch.testing.assert_close(energy, torch.tensor([0, 2, 2, 2, 6, 6, 6, 6, 6.0]).double(), atol=0.06, rtol=0)
    with pytest.raises(SfumatoError, match="fewer than 8"):
        surfaces.harmonics(*cube(), 8)


def test_the_laplacian_of_a_linear_function_is_nothing_inside_a_plane():
    vertices, faces = plane(6)
    stiff, _, index = surfaces.laplacian(vertices, faces)
    value = torch.zeros(49).double()
    value[index] = (2 * vertices[:, 0] - vertices[:, 1]).double()
    inner = (vertices[:, :2] - 0.5).abs().amax(1) < 0.49
    assert abs((stiff @ value.numpy())[index[inner].numpy()]).max() < 1e-6
    assert stiff.diagonal().min() > 0 and abs(stiff.sum(1)).max() < 1e-6


def test_what_is_near_is_within_the_radius():
    vertices = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.25, 0, 0], [1.0, 0, 0]])
    wanted = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert surfaces.near(vertices, 0.2).toarray().tolist() == wanted
    assert surfaces.nearest(torch.tensor([[0.9, 0, 0]]), vertices).tolist() == [3]


def test_the_nearest_rotation_is_found_and_is_never_a_mirror():
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(30, 3, generator=draws, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=draws, dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    found = surfaces.rotation(points, points @ turn + 5)  # wherever both lie
    torch.testing.assert_close(found, turn)
    mirror = torch.tensor([1.0, 1, -1]).double()
    found = surfaces.rotation(points, points * mirror)
    assert torch.linalg.det(found) > 0.99
    angle = torch.linspace(0, 6.28, 100).double()  # no small turn brings them nearer

    def far(turn):
        return (points - points.mean(0) - (points - points.mean(0)) * mirror @ turn.T).square().sum()

    for a in angle:
        for i, j in ((0, 1), (1, 2), (0, 2)):
            small = torch.eye(3).double()
            small[i, i] = small[j, j] = a.cos()
            small[i, j], small[j, i] = a.sin(), -a.sin()
            assert far(small @ found) >= far(found) - 1e-9
