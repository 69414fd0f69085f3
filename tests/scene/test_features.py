"""Feature fields: what they show, what they leave alone, and that they go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.loop import learn
from sfumato.scene.cameras import Rays, orbit
from sfumato.scene.features import FeatureField, Lift, load_features, save_features
from sfumato.scene.fields import Voxels
from sfumato.scene.fields_hash import HashGrid
from sfumato.scene.fields_networks import NeRF
from sfumato.scene.render import FieldScene, Sampling

VIEWS, CHANNELS = 4, 3
CAMERAS = orbit(VIEWS, (8, 12))


def scene(kind: str = "voxels") -> FieldScene:
    made: Any = {
        "voxels": lambda: Voxels(6, shift=0.0),
        "hash": lambda: HashGrid(levels=2, log_size=6, base=4),
        "nerf": lambda: NeRF(width=8, depth=2, frequencies=2),
    }[kind]()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p))
    return FieldScene(made, sampling=Sampling(8))


def maps(h: int = 4, w: int = 6) -> torch.Tensor:
    return torch.randn(VIEWS, CHANNELS, h, w, generator=torch.Generator().manual_seed(2))


def run(problem: Lift, steps: int, rate: float = 0.05, **options):
    return learn(problem, torch.optim.Adam(problem.groups(), lr=rate), steps=steps, about="it", **options)


@pytest.mark.parametrize("kind", ["simple", "dual"])
@pytest.mark.parametrize("of", ["voxels", "hash", "nerf"])
def test_features_leave_density_and_colours_alone(of, kind):
    made = scene(of)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    problem = Lift(FeatureField(made, CHANNELS, kind), CAMERAS, maps(), rays=256)
    problem.loss(0).backward()
    assert all(p.grad is None for p in made.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in problem.features.parameters())
    run(problem, 3)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    joint = Lift(FeatureField(made, CHANNELS, kind, stopped=False), CAMERAS, maps(), rays=256)
    with torch.no_grad():
        joint.features.behind.fill_(1.0)
    joint.loss(0).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in made.field.parameters())


@pytest.mark.parametrize("kind", ["simple", "dual"])
def test_one_value_in_all_views_is_one_value_at_every_place(kind):
    """Of whatever view, seen or not, and whatever the scene's opacity there."""
    value = torch.tensor([0.3, -2.0, 5.0])
    same = value.view(1, -1, 1, 1).expand(VIEWS, -1, 4, 6)
    features = FeatureField(scene(), CHANNELS, kind)
    if kind == "simple":
        with torch.no_grad():
            features.branch.last.zero_()
    run(Lift(features, CAMERAS, same, rays=64), 2)
    shown = features.view(orbit(3, (5, 5), elevation=50.0, first=17.0))
    torch.testing.assert_close(shown, value.view(1, -1, 1, 1).expand(3, -1, 5, 5), atol=1e-5, rtol=1e-5)


def test_rays_show_features_by_the_weights_of_their_colours():
    """A grid that has the scene's own colours shows the scene."""
    made = scene()
    features = FeatureField(made, 3, "dual", resolution=6)
    with torch.no_grad():
        features.branch.own.grid[:, 1:] = made.field.grid[:, 1:]
        made.field.latent = True
        made.background.latent = True
        made.background.value.fill_(0.7)
        features.behind.fill_(0.7)
        shown = features.view(CAMERAS)
    torch.testing.assert_close(shown, made.view(CAMERAS).images, atol=0.02, rtol=0)


def test_a_ray_has_what_its_map_has_there():
    """Between the cells as bilinear interpolation, or of the cell that it goes through."""
    problem = Lift(FeatureField(scene(), CHANNELS), CAMERAS, maps())
    part = torch.rand(50, 2, generator=torch.Generator().manual_seed(5))
    for camera in range(VIEWS):
        grid = (2 * part - 1).view(1, 1, -1, 2)
        for between, mode in ((True, "bilinear"), (False, "nearest")):
            problem.between = between
            wanted = torch.nn.functional.grid_sample(
                problem.maps[camera : camera + 1], grid, mode, "border", align_corners=False
            )
            found = problem._at(torch.full((50,), camera), part)
            torch.testing.assert_close(found, wanted[0, :, 0].T, atol=1e-5, rtol=1e-5)


def test_maps_are_learned_and_seen_again():
    made = scene()
    truth = FeatureField(made, 1, resolution=6)
    with torch.no_grad():
        truth.branch.own.grid.normal_(generator=torch.Generator().manual_seed(1))
        wanted = truth.view(CAMERAS)
    features = FeatureField(made, 1, resolution=6)
    problem = Lift(features, CAMERAS, wanted, rays=512)
    run(problem, 150, 0.1)
    error = (features.view(CAMERAS) - wanted).square().mean() / wanted.var()
    assert error < 0.1
    torch.testing.assert_close(problem.features.middle, wanted.mean((0, 2, 3)))
    soft = features.view(CAMERAS, smooth=2.0)
    assert soft.diff(dim=-1).abs().mean() < 0.7 * features.view(CAMERAS).diff(dim=-1).abs().mean()


def test_features_turn_with_the_view_where_they_may():
    rays = Rays(*(x.flatten(0, -2) for x in CAMERAS.rays()))
    for degree in (0, 1):
        features = FeatureField(scene(), CHANNELS, degree=degree, resolution=8)
        with torch.no_grad():
            for p in features.parameters():
                p.normal_(generator=torch.Generator().manual_seed(1))
        points, ways = torch.zeros(2, 3), rays.directions[[0, 40]]
        here, there = features.branch(features.scene.field, points, ways)
        assert torch.equal(here, there) == (degree == 0)


def test_a_lift_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    whole = Lift(FeatureField(scene(), CHANNELS), CAMERAS, maps(), rays=64)
    run(whole, 4)
    keep, part = tmp_path / "lift.safetensors", Lift(FeatureField(scene(), CHANNELS), CAMERAS, maps(), rays=64)
    loss, calls = part.loss, []

    def cut(step):
        calls.append(step)
        if step == 2:
            raise KeyboardInterrupt
        return loss(step)

    part.loss = cut
    with pytest.raises(KeyboardInterrupt):
        run(part, 4, keep=keep)
    rest = Lift(FeatureField(scene(), CHANNELS), CAMERAS, maps(), rays=64)
    run(rest, 4, keep=keep)
    state = whole.features.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in rest.features.state_dict().items())
    file = save_features(tmp_path / "f.safetensors", rest.features, {"words": ["cube"]})
    again, about = load_features(file, scene())
    assert about == {"words": ["cube"]} and torch.equal(again.view(CAMERAS), rest.features.view(CAMERAS))
    with pytest.raises(SfumatoError, match="holds no features"):
        load_features(keep, scene())


def test_what_cannot_be_lifted_is_said():
    with pytest.raises(SfumatoError, match="simple or dual"):
        FeatureField(scene(), 1, "triple")  # type: ignore[arg-type]
    with pytest.raises(SfumatoError, match="knows no direction"):
        FeatureField(scene(), 1, "simple", degree=1)
    with pytest.raises(SfumatoError, match="a map each"):
        Lift(FeatureField(scene(), 2), CAMERAS, maps())
    with pytest.raises(SfumatoError, match="finite"):
        Lift(FeatureField(scene(), CHANNELS), CAMERAS, maps() * torch.nan)
