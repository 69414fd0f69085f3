"""Surfaces of fields: where the field says, closed, outwards, checked; nothing is made of what has none."""

from __future__ import annotations

import builtins
import math

import pytest
import torch
from balls import Balls
from solids import cube, plane, sphere
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh
from sfumato.scene.fields import Matter, Voxels
from sfumato.scene.mesh import check, chosen_level, cleaned, closed, inner, pieces, sampled, surface, vertex_normals
from sfumato.scene.regions import Box, Space

AWAY = Box((1.0, -2.0, 3.0), 1.5)


def test_a_ball_away_from_the_origin_is_a_closed_sphere_where_it_stands():
    x, y, z = AWAY.centre
    field = Balls((x + 0.3, y - 0.2, z + 0.1, 0.8), region=AWAY, soft=0.05)
    made = surface(field, 64, level=30.0)  # half of its density: where the ball ends
    middle = torch.tensor([x + 0.3, y - 0.2, z + 0.1])
    out = made.mesh.vertices - middle
    assert (out.norm(dim=1) - 0.8).abs().max() < 0.01
    assert made.checks.watertight and made.checks.pieces == 1 and made.notes == ()
    assert made.checks.volume == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.01)  # above 0: outwards
    assert made.checks.area == pytest.approx(4 * math.pi * 0.8**2, rel=0.01)
    normals = vertex_normals(made.mesh)
    assert (normals * torch.nn.functional.normalize(out, dim=1)).sum(1).min() > 0.95


def test_axes_are_the_worlds():
    made = surface(Balls((0.5, 0.0, 0.0, 0.3), (0.5, 0.5, 0.0, 0.2), (0.5, 0.5, -0.3, 0.15)), 48, level=30.0)
    low, high = made.mesh.vertices.amin(0), made.mesh.vertices.amax(0)
    torch.testing.assert_close(low, torch.tensor([0.2, -0.3, -0.45]), atol=0.02, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.8, 0.7, 0.3]), atol=0.02, rtol=0)


@pytest.mark.parametrize(("dense", "soft"), [(60.0, 0.01), (400.0, 0.01), (30.0, 0.03)])
def test_the_level_that_a_field_chooses_is_at_its_border(dense, soft):
    field = Balls((0.1, 0.0, -0.1, 0.5), dense=dense, soft=soft)
    made = surface(field, 48)
    out = made.mesh.vertices - torch.tensor([0.1, 0.0, -0.1])
    assert (out.norm(dim=1) - 0.5).abs().max() < 5 * soft + 0.01 and made.notes == ()
    assert chosen_level(field, Box()).agreement > 0.98


def test_the_mean_of_what_is_above_0_would_leave_nothing_where_the_chosen_level_has_the_thing():
    """A dense spot within a thing of ordinary density: the level is the thing's, not a mean that the spot pulls up."""

    class Spot(Balls):
        def forward(self, points: Tensor, directions: Tensor | None = None) -> Matter:
            spot = 2e5 * (points.norm(dim=1) < 0.1)
            return Matter(super().forward(points).density + spot, points)

    field = Spot((0.0, 0.0, 0.0, 0.6))
    density = sampled(field, Box(), 48)
    by_mean = surface(field, 48, level=float(density[density > 0].mean()))
    assert by_mean.mesh.vertices.norm(dim=1).max() < 0.2
    assert surface(field, 48).mesh.vertices.norm(dim=1).min() > 0.55


def test_small_pieces_are_floaters_and_named_so():
    two = Balls((-0.3, 0.0, 0.0, 0.5), (0.7, 0.0, 0.0, 0.12))
    assert surface(two, 64, 30.0).checks.pieces == 2  # 6 % of the other's area
    made = surface(two, 64, 30.0, least=0.1)
    assert made.checks.pieces == 1 and made.mesh.vertices[:, 0].max() < 0.25
    assert any("1 floaters are left out, 5.3 % of the area" in line for line in made.notes), made.notes
    assert any("2 pieces" in line for line in surface(two, 64, 30.0).notes)


def test_walls_of_hollows_are_left_out():
    class Hollow(Balls):
        def forward(self, points: Tensor, directions: Tensor | None = None) -> Matter:
            density = super().forward(points).density
            return Matter(torch.where(points.norm(dim=1) < 0.3, 0, density), points)

    made = surface(Hollow((0.0, 0.0, 0.0, 0.6)), 48, 30.0)
    assert made.mesh.vertices.norm(dim=1).min() > 0.55 and made.checks.pieces == 1
    assert any("1 hollows" in line for line in made.notes)


def test_what_reaches_the_border_is_closed_there_and_named():
    made = surface(Balls((0.0, -0.9, 0.0, 0.5)), 48, 30.0)
    assert made.checks.watertight and made.mesh.vertices[:, 1].min() == pytest.approx(-1, abs=0.03)
    (line,) = made.notes
    assert "border: bottom (19 %)" in line


def test_of_all_space_the_cube_is_taken_that_is_not_drawn_near():
    assert inner(Space((1.0, 0.0, 0.0), 2.0)) == Box((1.0, 0.0, 0.0), 2.0)
    made = surface(Balls((1.0, 0.0, 0.0, 0.8), region=Space((1.0, 0.0, 0.0), 2.0)), 48, 30.0)
    assert made.mesh.vertices[:, 0].mean() == pytest.approx(1, abs=0.01) and "cube" in made.notes[0]


def test_what_has_no_surface_is_refused():
    with pytest.raises(SfumatoError, match=r"empty or nearly so, no ray .* more than 0 %"):
        surface(Balls((0.0, 0.0, 0.0, 0.5), dense=1e-4), 16)
    with pytest.raises(SfumatoError, match=r"at most 60.* level is 70"):
        surface(Balls((0.0, 0.0, 0.0, 0.5)), 16, 70.0)
    with pytest.raises(SfumatoError, match="100 % of the region"):
        surface(Balls((0.0, 0.0, 0.0, 9.0)), 16)
    with pytest.raises(SfumatoError, match="above 0, got -1"):
        surface(Balls((0.0, 0.0, 0.0, 0.5)), 16, -1.0)
    with pytest.raises(SfumatoError, match="8 to 512"):
        surface(Balls((0.0, 0.0, 0.0, 0.5)), 4)
    field = Voxels(8)
    with torch.no_grad():
        field.grid[0, 0, 2, 2, 2] = torch.nan
    with pytest.raises(SfumatoError, match="density became not finite"):
        surface(field, 16)


def test_a_haze_is_named():
    field = Voxels(16)
    with torch.no_grad():
        field.grid[0, 0] = 3 + torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert any("haze" in line for line in surface(field, 32).notes)


def test_voxels_have_surfaces_too():
    field = Voxels(24)
    at = (torch.arange(24) + 0.5) / 12 - 1
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    with torch.no_grad():  # longest along x, shortest along z
        field.grid[0, 0] = 10 * (1 - ((x / 0.8) ** 2 + (y / 0.5) ** 2 + (z / 0.3) ** 2)) + 8
    made = surface(field, 48)
    size = made.mesh.vertices.amax(0) - made.mesh.vertices.amin(0)
    assert size[0] > size[1] > size[2] and made.checks.watertight


def test_open_meshes_are_seen():
    vertices, faces = sphere(2)
    whole = check(Mesh(vertices, faces))
    assert whole.watertight and whole.pieces == 1 and whole.volume == pytest.approx(4.19, rel=0.05)
    assert not check(Mesh(vertices, faces[1:])).watertight  # a face less
    assert not closed(torch.cat([faces[:1, [0, 2, 1]], faces[1:]]))  # one turned round
    assert not closed(torch.cat([faces, faces]))  # each twice
    assert check(Mesh(vertices, faces[:, [0, 2, 1]])).volume < 0  # inwards
    assert not check(Mesh(*plane(3))).watertight


def test_an_open_mesh_keeps_its_pieces():
    vertices, faces = cube()
    two = Mesh(torch.cat([vertices, vertices + 3]), torch.cat([faces, faces[1:] + 8]))
    assert pieces(two).tolist() == [0] * 8 + [1] * 8
    assert len(cleaned(two)[0].faces) == len(two.faces) and cleaned(two)[1] == []


def test_without_scikit_image_one_line_names_the_extra(monkeypatch):
    kept = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("skimage"):
            raise ImportError(name)
        return kept(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SfumatoError, match=r"sfumato\[3d\]"):
        surface(Balls((0.0, 0.0, 0.0, 0.5)), 16)
