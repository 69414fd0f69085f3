"""MultiDiffusion's regions: in closed form where the denoiser is exact, beside the published loop, on any views."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from laws.traces import calls
from PIL import Image

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise, plan
from sfumato.core.grids import Grids
from sfumato.core.noise import drawing
from sfumato.core.schedule import Level, Schedule
from sfumato.core.views import Looks, Ring, Tiles, Turned
from sfumato.errors import SfumatoError
from sfumato.methods.sets import MultiDiffusion, SpotDiffusion, SyncTweedies
from sfumato.methods.sets.multi_diffusion import AUTHORS, Regions
from sfumato.prompts.layout import Layout, Mask, Region

HALVES = Layout((Region("left", (0, 0, 0.5, 1)), Region("right", (0.5, 0, 1, 1))))
WHOLE = Layout((Region("right", (0, 0, 1, 1)),))
APART = Layout((Region("left", (0.1, 0, 0.4, 0.8)), Region("right", (0.3, 0.25, 0.9, 1))))
"""Two that overlap, and a rest."""
MEANS = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
NAMES = ("rest", "left", "right")


def exact(means: Any, std: float = 0.4) -> Exact:
    schedule = Schedule.read(
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    )
    return Exact({name: Mixture(mean, std, (1 / len(mean),) * len(mean)) for name, mean in means.items()}, schedule)


@pytest.fixture
def gaussians() -> Exact:
    return exact({name: mean[:1] for name, mean in zip(NAMES, MEANS, strict=True)})


@pytest.fixture
def mixtures() -> Exact:
    """Of two Gaussians each, so that what is predicted for a cell depends on all others."""
    return exact(dict(zip(NAMES, MEANS, strict=True)))


def run(model: Exact, method: MultiDiffusion, views: Any = None, size: Any = (4, 4), **options: Any) -> torch.Tensor:
    standard: dict[str, Any] = {"steps": 10, "guide": 1.0, "seed": [4, 5], "size": size}
    return denoise(model, ["rest", "rest"], methods=[method], views=views, **{**standard, **options}).latents


@pytest.mark.parametrize("views", [None, Tiles(2), Ring(2)], ids=repr)
def test_one_region_over_all_is_plain_sampling_bit_for_bit(mixtures, views):
    size = (4, 4) if views is None else (4, 8)
    options: dict[str, Any] = {"steps": 5, "guide": 1.0, "seed": 1, "size": size}
    plain = denoise(mixtures, "right", views=views, **options).latents
    for layout, prompt in ((WHOLE, "rest"), (Layout((Region("{}", (0, 0, 1, 1)),)), "right")):
        for part in (0.0, 1.0):
            seen = denoise(mixtures, prompt, methods=[MultiDiffusion(layout, bootstrap=part)], views=views, **options)
            assert torch.equal(seen.latents, plain)


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize("layout", [HALVES, APART], ids=["partition", "overlap"])
@pytest.mark.parametrize("views", [None, Tiles(2), Ring(1)], ids=repr)
def test_regions_of_gaussians_are_a_gaussian_put_together_by_masks(gaussians, layout, part, views):
    """A cell's score does not depend on others, so that the mean of what is said of it is the score of a mean."""
    size = (4, 4) if views is None else (4, 8)
    masks = layout.masks(size)
    masks = torch.stack([(masks.sum(0) == 0).float(), *masks])
    total, weight = torch.zeros(3, *size), torch.zeros(size)
    for _, left in ((0, 0),) if views is None else views.places(*size, (4, 4)):
        columns = (torch.arange(4) + left) % size[1]
        for mask, mean in zip(masks, MEANS[:, 0], strict=True):
            total[..., columns] += mask[:, columns] * mean
            weight[:, columns] += mask[:, columns]
    wanted = exact({"rest": (total / weight)[None]})
    ours = run(gaussians, MultiDiffusion(layout, bootstrap=part), views, size)
    plain = denoise(wanted, ["rest", "rest"], steps=10, guide=1.0, seed=[4, 5], size=size).latents
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def published(model: Exact, layout: Layout, width: int, stride: int, steps: int, until: int) -> torch.Tensor:
    """The authors' loop, written down in float64: windows, regions, a colour and noise around each, DDIM, the mean."""
    levels = [tuple(v.double() for v in (level.t, level.alpha, level.sigma)) for level in model.levels(steps, (4, 4))]
    x = model.latents([7], 4, width).double()
    draw = drawing([7 + 0x5F0], (3, 4, width))
    around = draw().double() if until else x
    masks = layout.masks((4, width)).double()
    masks = torch.stack([(masks.sum(0) == 0).double(), *masks])
    for i in range(steps):
        (_, alpha, sigma), (_, then, to) = levels[i], levels[i + 1]
        value, count = torch.zeros_like(x), torch.zeros(4, width).double()
        if i < until:
            numbers = draw().flatten(1)[0, :6].double()
            colours = (1 + torch.erf(numbers / 2**0.5)).view(2, 3, 1, 1) / 2
        for left in range(0, width - 4 + 1, stride):
            here = slice(left, left + 4)
            for k, name in enumerate(NAMES):
                if not masks[k, :, here].any():
                    continue
                seen = x[..., here]
                if i < until and k:
                    noisy = alpha * (2 * colours[k - 1] - 1) + sigma * around[..., here]
                    seen = seen * masks[k, :, here] + noisy * (1 - masks[k, :, here])
                x0, eps = model.mixtures[name].posterior(seen, Level(torch.zeros(()), alpha, sigma))
                value[..., here] += masks[k, :, here] * (then * x0 + to * eps)
                count[:, here] += masks[k, :, here]
        x = value / count
    return x


@pytest.mark.parametrize("until", [0, 2, 6])
@pytest.mark.parametrize("layout", [HALVES, APART], ids=["partition", "overlap"])
def test_it_is_the_published_loop(mixtures, layout, until):
    method = MultiDiffusion(layout, bootstrap=until / 8)
    ours = denoise(
        mixtures, "rest", methods=[method], views=Tiles(2), size=(4, 8), steps=8, guide=1.0, seed=7
    ).latents.double()
    wanted = published(mixtures, layout, 8, 2, 8, until)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    if until:
        assert (ours - published(mixtures, layout, 8, 2, 8, 0)).abs().max() > 0.05


def test_the_parts_of_the_steps_are_the_published_ones():
    assert MultiDiffusion().bootstrap == 0.2 and AUTHORS.bootstrap == 0.4


def test_a_mask_is_as_good_as_a_box(mixtures):
    pixels = (torch.arange(8) < 4).expand(8, 8)
    masks = Layout((Region("left", mask=Mask(pixels)), Region("right", mask=Mask(~pixels))))
    assert torch.equal(run(mixtures, MultiDiffusion(masks)), run(mixtures, MultiDiffusion(HALVES)))


def test_the_rest_reads_its_own_prompt_if_it_has_one(gaussians):
    layout = Layout((Region("{}", (0, 0, 0.5, 1)),))
    ours = run(gaussians, MultiDiffusion(layout, background="right"))
    other = run(gaussians, MultiDiffusion(Layout((Region("rest", (0, 0, 0.5, 1)), Region("right", (0.5, 0, 1, 1))))))
    torch.testing.assert_close(ours, other)


def test_regions_that_a_window_does_not_show_are_not_asked_for(mixtures):
    method = MultiDiffusion(Layout((Region("left", (0, 0, 0.25, 1)),)), bootstrap=0.5)
    views = method.seeing(Tiles(4))
    assert isinstance(views, Regions)
    assert views.prompts_of("rest", (4, 16), (4, 4)) == ("left", "rest", "rest", "rest")
    planned = plan(mixtures, "rest", methods=[method], views=Tiles(2), size=(4, 16), guide=1.0)
    assert planned.run.rows.views == 7 + 1  # the second window shows half of it
    assert float(views.coverage(4, 16, (4, 4)).min()) == 1


def test_regions_in_pixels_are_those_of_cells():
    views = Regions(Looks((Turned(),)), APART, NAMES)
    cells, pixels = views.of((8, 8), (8, 8)), views.of((32, 32), (32, 32), 4)
    for one, other in zip(cells, pixels, strict=True):
        weights = one.unproject(torch.ones(1, 1, 8, 8), (8, 8))[1].repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(other.unproject(torch.ones(1, 1, 32, 32), (32, 32))[1], weights)


@pytest.mark.parametrize("other", [SpotDiffusion(), SyncTweedies(5)], ids=repr)
def test_it_goes_with_other_views_in_any_order(mixtures, other):
    method = MultiDiffusion(APART, bootstrap=0.5)
    options: dict[str, Any] = {"views": Tiles(), "size": (4, 12), "steps": 4, "guide": 1.0}
    one, two = (denoise(mixtures, "rest", methods=m, **options).latents for m in ([method, other], [other, method]))
    assert torch.equal(one, two)
    alone = denoise(mixtures, "rest", methods=[other], **options).latents
    assert one.isfinite().all() and (one - alone).abs().max() > 0.1


def test_what_it_cannot_do_is_said(mixtures):
    halves = MultiDiffusion(HALVES)

    def refused(match: str, method: Any = halves, *more: Any, **options: Any) -> None:
        standard: dict[str, Any] = {"size": (4, 8), "views": Tiles(2), "steps": 2, "guide": 1.0}
        with calls(mixtures) as rows, pytest.raises(SfumatoError, match=match) as error:
            denoise(mixtures, "rest", methods=[method, *more], **{**standard, **options})
        assert not rows and "\n" not in str(error.value)

    refused("needs a layout", MultiDiffusion())
    refused("outside of the image", MultiDiffusion(Layout((Region("left", (0, 0, 4, 4)),))))
    refused("paints images, not clips", frames=2)
    refused("of one canvas", views=Tiles(2, side="instance"))
    refused("of one canvas", views=Grids())
    refused("of one canvas", halves, SyncTweedies(2))


# -- the commands


BOXES = ("--box", "a red cube", "0,0,64,128", "--box", "a duck", "0.5,0,1,1")


def test_a_command_says_regions_as_boxes(run, here, tmp_path):
    """Of a picture that is seen whole, a canvas, a panorama; with a label picture as well."""
    label = np.repeat(np.array([[1] * 8 + [0] * 4 + [2] * 12], np.uint8), 16, 0)
    Image.fromarray(label).save(tmp_path / "regions.png")
    (tmp_path / "regions.json").write_text(json.dumps({"1": "a red cube", "2": "a duck"}))
    images = {}
    for name, words in (
        ("whole", ["generate", "grass", "--n", 1, *BOXES]),
        ("canvas", ["generate", "grass", "--n", 1, "--canvas", 192, 128, "--stride", 8, *BOXES]),
        ("panorama", ["panorama", "grass", "--size", "192x128", "--stride", 8, *BOXES]),
        ("plain", ["panorama", "grass", "--size", "192x128", "--stride", 8]),
        ("label", ["panorama", "grass", "--size", "192x128", "--stride", 8]),
    ):
        method = [] if name == "plain" else ["multi-diffusion", "--background", "sand"]
        method += ["--layout", tmp_path / "regions.png"] if name == "label" else []
        code, out, err = run(*words, "--steps", 1, "--out", tmp_path / f"{name}.png", "--json", *method)
        assert code == 0, err
        images[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
        if name == "panorama":
            assert json.loads(out)["cost"]["windows"] == 2 * 2 + 1  # the first window shows the rest, too
    assert images["whole"].shape == (128, 128, 3) and images["canvas"].shape == (128, 192, 3)
    assert (images["canvas"] == images["panorama"]).all() and (images["plain"] != images["panorama"]).any()
    assert (images["label"] != images["plain"]).any()


def test_a_command_says_what_boxes_are_of(run, here, tmp_path):
    wide = ["panorama", "grass", "--size", "192x128", "--out", tmp_path / "out"]
    for words, why in (
        ([*wide, *BOXES], "--box is of methods with a layout"),
        ([*wide, "multi-diffusion"], "multi-diffusion needs a layout"),
        ([*wide, "--sphere", *BOXES, "multi-diffusion"], "are of one canvas"),
        ([*wide, "--box", "a duck", "0,0,400,128", "multi-diffusion"], "outside of the image of 192 x 128"),
    ):
        code, _, err = run(*words)
        assert code == 2 and why in err.splitlines()[-1], err
