"""Views of a scene painted with what is lifted: its attention, its depth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, controlnet, randomised, seeded

from sfumato.backbones.load import family
from sfumato.core.choice import choose
from sfumato.distill.generators import Rendering
from sfumato.methods.control.given_attention import GivenAttention
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene, Sampling
from sfumato.tasks import inject_maps as task

PROMPT = "a red cube and a duck"


@pytest.fixture(scope="module")
def unet():
    pipe = seeded(FAMILIES["sd"])
    randomised(*pipe.components.values())
    return family("tiny", pipe)


def test_a_soft_threshold_keeps_the_ends_and_the_middle():
    maps = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0]).view(1, 1, 1, 5)
    wanted = 1 / (1 + torch.exp(-10 * (torch.arange(5) / 4 - 0.5)))
    wanted = (wanted - wanted[0]) / (wanted[-1] - wanted[0])
    torch.testing.assert_close(task.soft(maps).flatten(), wanted)
    assert float(task.soft(maps).flatten()[2]) == pytest.approx(0.5)
    assert not task.soft(torch.ones(1, 1, 2, 2)).any()


def test_depth_is_disparity_along_the_axis():
    """Of two planes before the camera, one twice as far, and nothing in the last row."""
    cameras = orbit(1, (4, 6), distance=3.0, fov=70.0)
    z = torch.tensor([2.0, 4.0]).repeat_interleave(3).expand(1, 4, 6)
    alpha = torch.ones(1, 1, 4, 6)
    alpha[..., -1, :] = 0
    shown = Rendering(torch.zeros(1, 3, 4, 6), alpha, (z * cameras.slant())[:, None])
    found = task.nearness(SimpleNamespace(view=lambda cameras: shown), cameras)
    torch.testing.assert_close(found[0, 0], torch.where(alpha[0, 0] > 0, 2 / z[0], 0.0))
    assert torch.equal(found, found[:, :1].expand(1, 3, 4, 6))


def test_lifted_heads_go_back_to_where_they_were_read():
    names = ("up.0, head 0", "up.0, head 1", "up.1, head 0", "up.1, head 1")
    values = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 4, 4)
    features = SimpleNamespace(view=lambda cameras, smooth: values)
    found = task.SceneAttention(("cube", "duck"), names, features).view(orbit(2, (4, 4)))
    assert {w: {p: x[1, :, 0, 0].tolist() for p, x in of.items()} for w, of in found.items()} == {
        "cube": {"up.0": [0, 1], "up.1": [2, 3]},
        "duck": {"up.0": [4, 5], "up.1": [6, 7]},
    }


def test_views_are_painted_by_depth_and_by_what_is_lifted(unet):
    made = FieldScene(Voxels(8), sampling=Sampling(16))
    with torch.no_grad():
        made.field.grid[0, 0] = -10.0
        made.field.grid[0, 0, 2:6, 2:6, 2:6] = 10.0
    cameras = orbit(2, (64, 64), distance=3.0)
    shots = Capture(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)), cameras, ("a", "b"))
    lifted = task.lift_attention(unet, shots, made, PROMPT, ("cube", "duck"), times=(101,), steps=2)
    maps = lifted.view(cameras)
    paths = {site.path for site in choose(unet, "image->text", (8, 8)) if site.stage == "up"}
    assert set(maps) == {"cube", "duck"} and set(maps["duck"]) == paths
    network = controlnet("sd", unet.network)

    def painted(scene, methods=(), **options):
        return task.paint_views(unet, scene, cameras, PROMPT, network, methods, steps=2, **options)

    plain, with_maps = painted(made), painted(made, [GivenAttention(maps)])
    assert plain.shape == (2, 3, 64, 64) and torch.equal(painted(made), plain)
    assert not torch.allclose(with_maps, plain) and not torch.allclose(painted(made, eta=1.0), plain)
    assert not torch.allclose(painted(made, seed=1), plain)
    assert not torch.allclose(painted(FieldScene(Voxels(8), sampling=Sampling(16))), plain)
