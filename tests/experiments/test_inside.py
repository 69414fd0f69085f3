"""Looking inside: each measurement against what it must be where that is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import made, side
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.experiments import corrupted_inversion, equivariance, joint_pca, patches
from sfumato.experiments.attention_over_steps import AttentionOverSteps
from sfumato.reading.reader import read


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return made(tmp_path_factory.mktemp("families"))


def images(n: int, size: int) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_joint_components_are_the_directions_of_all_values():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6))[0]
    values = torch.randn(500, 6) * torch.tensor([9.0, 5, 2, 0.1, 0.1, 0.1]) @ basis.T
    _, directions, variances = joint_pca.principal(values)
    assert (directions.T @ basis[:, :3]).abs().diag().min() > 0.99
    expected = np.linalg.eigvalsh(np.cov(values.numpy().T))[::-1]
    np.testing.assert_allclose(variances.numpy(), expected, rtol=1e-4)
    assert joint_pca.held(values, directions) == pytest.approx(float(variances[:3].sum() / variances.sum()), rel=1e-4)
    maps = values.view(1, 1, 20, 25, 6).movedim(-1, 2)
    alone = joint_pca.components(maps)
    assert alone.joint == pytest.approx(alone.own)
    both = joint_pca.components(torch.cat([maps, torch.randn(1, 1, 6, 20, 25)], 1))
    assert both.joint < both.own


EVERY = ["sd", "sdxl", "deepfloyd", "pixart", "sd3", "flux"]


def pair(models, name):
    """Two images as a family's model reads them."""
    model = models(name)
    s = side(model)
    return model, s, [read(model, x, s) for x in images(2, s)]


@pytest.mark.parametrize("name", EVERY)
def test_features_of_every_family_have_joint_components(models, name):
    model, s, readers = pair(models, name)
    for what in ("tokens", "queries"):
        maps = joint_pca.read_features(readers, what, times=(1, 300))
        found = joint_pca.joint_pca(maps)
        assert all(m.shape[:2] == (2, 2) for m in maps.values())
        alone = joint_pca.read_features(readers[1:], what, times=(300,))
        assert all(torch.equal(m[1, 1], alone[layer][0, 0]) for layer, m in maps.items())
        assert all(0 < one.joint <= one.own + 1e-5 <= 1 + 2e-5 for one in found.values())
    with pytest.raises(SfumatoError, match="has layers tokens 0 to"):
        joint_pca.read_features(readers, "tokens", layers=(99,))
    with pytest.raises(SfumatoError, match="images of one shape"):
        joint_pca.read_features([readers[0], read(model, torch.rand(3, s, 2 * s), s)])


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "flux" else [pytest.mark.slow]) for n in EVERY])
def test_they_are_drawn(models, name, tmp_path):
    """A figure of many axes takes a second, whosever features it shows."""
    _, _, readers = pair(models, name)
    found = joint_pca.joint_pca(joint_pca.read_features(readers, "queries", times=(1, 300)))
    joint_pca.draw(readers, found, (1, 300), tmp_path / "a.png", name)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_attention_is_kept_at_every_step(models, tmp_path):
    model = models("sd")
    course = AttentionOverSteps("a red cube on grass", ("red", "red cube"), steps=3).run(model)
    assert {k: len(v) for k, v in course.maps.items()} == {"red": 3, "red cube": 3}
    assert float(course.likeness("red")[-1]) == pytest.approx(1)
    assert (course.spread("red") <= 1 + 1e-6).all()
    assert (course.maps["red cube"] >= course.maps["red"] - 1e-7).all()
    course.draw(tmp_path / "a.png")
    every = AttentionOverSteps("a red, red cube.", steps=2).run(model)
    assert list(every.maps) == ["a", "red", "cube"] == list(every.numbers()["words"])
    with pytest.raises(SfumatoError, match="has no 'duck'"):
        AttentionOverSteps("a red cube", ("duck",), steps=2).run(model)


def test_an_equivariant_autoencoder_loses_only_what_the_warp_loses(models, tmp_path):
    """DeepFloyd's images are their own latents, so the decoded and the true are the same image."""
    model = models("deepfloyd")
    found = equivariance.equivariance(model, images(2, 16))
    assert set(found.compared) == set(found.numbers()) == set(equivariance.PUBLISHED)
    for name, each in found.compared.items():
        assert (each.psnr > 90).all(), name
    found.draw(tmp_path / "a.png")
    lossy = equivariance.equivariance(models("sd"), images(1, 64))
    assert lossy.compared["identity"].psnr < 60


def test_patches_of_the_same_place_correlate_and_of_others_do_not():
    torch.manual_seed(0)
    base = torch.rand(3, 64, 64)
    moved = torch.roll(base, (5, 7), (1, 2))
    points = torch.rand(200, 2) * 30 + 15.5
    there = patches.patches(base, points, 9, (64, 64))
    same = patches.patches(moved, points + torch.tensor([7.0, 5.0]), 9, (64, 64))
    assert patches.correlation(there, same).min() > 0.999
    assert patches.correlation(there, patches.patches(moved, points, 9, (64, 64))).abs().mean() < 0.1
    brighter = patches.correlation(there, there * 0.3 + torch.tensor([0.1, 0.4, 0.2]).view(3, 1, 1))
    assert brighter.min() > 0.999


def test_matches_of_the_drawn_scene_fall_with_the_angle_in_pixels(here):
    from sfumato.backbones.load import load

    shown, matched = patches.still_life(3, views=5, full=60.0)
    assert sorted(round(m.angle / 13) for m in matched) == [1, 1, 2, 2]
    found = patches.patch_correlations(load("stilllife", device="cpu"), shown, matched)
    rows = found.rows()
    near, far = (f(rows, key=lambda r: r["angle"]) for f in (min, max))
    assert near["pixels"] > far["pixels"]
    assert near["pixels"] > 0.4


def strayed(model):
    nothing = corrupted_inversion.Corruption("rotation", 0.0)
    strong = corrupted_inversion.Corruption("jitter", 0.5)
    return corrupted_inversion.corrupted_inversion(model, images(1, 64), steps=4, corruptions=(nothing, strong))


@pytest.mark.parametrize("name", ["sd", "sd2", "sd3"])
def test_noise_estimates_are_the_inversions_own(models, name):
    same, other = strayed(models(name)).strayed
    torch.testing.assert_close(same.estimates, torch.ones(4), atol=1e-4, rtol=0)
    assert same.end == pytest.approx(1, abs=1e-4) and same.aligned == pytest.approx(1, abs=1e-4)
    assert other.end < same.end


@pytest.mark.parametrize("name", ["sd3", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd", "sd2"))])
def test_how_they_stray_is_drawn(models, name, tmp_path):
    strayed(models(name)).draw(tmp_path / "a.png")


def test_the_commands_draw_and_tell(run, here, tmp_path):
    Image.new("RGB", (128, 128), (90, 120, 30)).save(tmp_path / "photo.png")
    calls = {
        "attention": ("a red cube", "--words", "red,cube", "--steps", 2),
        "equivariance": (tmp_path / "photo.png",),
        "patches": ("--views", 3, "--arc", 20),
        "inversion": (tmp_path / "photo.png", "--prompt", "a cube", "--steps", 2),
    }
    keys = {"attention": {"prompt", "words"}, "patches": {"views"}, "inversion": {"prompt", "corruptions"}}
    for word, call in calls.items():
        code, out, err = run("experiment", word, *call, "--out", tmp_path / "out", "--device", "cpu")
        assert code == 0, err
        picture, document = (tmp_path / "out" / f"{word}{end}" for end in (".png", ".json"))
        assert out.splitlines() == [str(picture), str(document)] and Image.open(picture).width > 300
        assert set(json.loads(document.read_text())) == keys.get(word, set(equivariance.PUBLISHED))
        assert word in run("experiment")[1] and word in run("experiment", "--help")[1]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (("attention", "a cube", "--words", "duck"), "has no 'duck'"),
        (("patches", "--arc", 0), "--arc lies between 1 and 360, got 0"),
        (("equivariance", "none.png"), "there is no file"),
        (("inversion", "none.png", "--steps", 0), "--steps lies between"),
    ],
)
def test_what_the_commands_refuse(run, here, tmp_path, call, why):
    code, out, err = run("experiment", *call, "--out", tmp_path / "out")
    assert code == 2 and not out and why in err and len(err.splitlines()) == 1, err
