"""ZoomOut: what is smooth stays, what is noise goes."""

from __future__ import annotations

import pytest
import torch
from solids import sphere

from sfumato.errors import SfumatoError
from sfumato.ops.functional_maps import zoomed_out


def blob():
    """A sphere without symmetries, whose smooth functions are not several to a frequency."""
    vertices, faces = sphere(3)
    x, y, z = vertices.unbind(1)
    return torch.stack([1.5 * x + 0.3 * y * z, y * (1 + 0.4 * x), 0.7 * z + 0.2 * x * x], 1), faces


def test_a_shape_matches_itself_and_stays_so():
    shape = blob()
    match = torch.arange(len(shape[0]))
    assert torch.equal(zoomed_out(match, shape, shape, 30), match)


def test_scattered_matches_come_back_and_renumbered_vertices_are_followed():
    vertices, faces = blob()
    draws = torch.Generator().manual_seed(0)
    order = torch.randperm(len(vertices), generator=draws)  # vertex i of the target is vertex order[i] of the source
    place = order.argsort()
    target = vertices[order] * 1.1, place[faces]
    wrong = torch.rand(len(vertices), generator=draws) < 0.4
    match = torch.where(wrong, torch.randint(len(vertices), (len(vertices),), generator=draws), place)

    def error(found):
        return (target[0][found] / 1.1 - vertices).norm(dim=1).mean()

    assert error(match) > 0.4 and error(zoomed_out(match, (vertices, faces), target, 40)) < 0.02


def test_a_shape_that_was_stretched_is_followed_too():
    """Its smooth functions are other ones, so that the map between them is no diagonal."""
    vertices, faces = blob()
    stretched = vertices * torch.tensor([1.0, 1.0, 1.8]) + 0.3 * vertices[:, [1]] * torch.tensor([0.0, 0.0, 1.0])
    draws = torch.Generator().manual_seed(0)
    every = torch.arange(len(vertices))
    wrong = torch.rand(len(vertices), generator=draws) < 0.3
    match = torch.where(wrong, torch.randint(len(vertices), (len(vertices),), generator=draws), every)
    found = zoomed_out(match, (vertices, faces), (stretched, faces), 40)
    before, after = ((vertices[m] - vertices).norm(dim=1).mean() for m in (match, found))
    assert after < before / 2


def test_it_says_what_it_needs():
    with pytest.raises(SfumatoError, match="2 functions at least"):
        zoomed_out(torch.arange(3), sphere(1), sphere(1), 1)
