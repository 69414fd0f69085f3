"""Images seen as tiles of one: laws of putting together and taking apart, and runs against runs of the whole grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from rounding import assert_same_but_for_rounding
from torch import Tensor

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise, plan
from sfumato.core.grids import RAVE, ZERO123, Grids
from sfumato.core.rows import Rows
from sfumato.core.schedule import Schedule
from sfumato.core.steppers import DDIM
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.control import AttendAndExcite, PerturbedAttention
from sfumato.methods.edit import PlugAndPlay

PROMPT = "a red cube"
OPTIONS: dict[str, Any] = {"steps": 2, "guide": 3.0, "size": 64}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "views",
    [Grids(), Grids(seed=3), RAVE, ZERO123, Grids(1, 1), Grids(1, 4, seed=0)],
    ids=lambda v: f"{v.rows}x{v.columns}-{v.seed}",
)
@pytest.mark.parametrize("images", [1, 4, 7, 18])
def test_what_is_put_together_is_taken_apart(views, images):
    x, tiles = noise(2 * images, 3, 4, 6), views.rows * views.columns
    for i in range(3):
        order = views.order(images, i)
        assert len(order) == views.grids(images) * tiles < images + tiles
        assert set(order.tolist()) == set(range(images)) and order.bincount().max() - order.bincount().min() <= 1
        seen = views.gather(x, images, i)
        assert seen.shape == (2 * views.grids(images), 3, 4 * views.rows, 6 * views.columns)
        assert_same_but_for_rounding(views.scatter(seen, images, i), x)
        row, column = views.rows - 1, views.columns - 1  # the last tile of the second stream's first grid
        last = seen[views.grids(images), :, 4 * row : 4 * row + 4, 6 * column :]
        assert torch.equal(last, x[images + int(order[tiles - 1])])


def test_images_are_shuffled_by_the_seed_and_the_step():
    kept = [Grids(seed=s).order(12, i).tolist() for s, i in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in kept}) == 3 and Grids(seed=0).order(12, 0).tolist() == kept[0]
    assert Grids().order(6, 5).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_an_image_that_is_shown_twice_is_the_mean_of_both():
    views = Grids(1, 2)
    tiles = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(2, 1, 1, 2)  # images 0, 1 and 2, 0
    assert views.scatter(tiles, 3, 0).flatten().tolist() == [3.0, 2.0, 3.0]


def test_a_grid_of_one_tile_is_plain_sampling_bit_for_bit(sd):
    prompts = {"a": [PROMPT] * 3, "b": ["a blue duck"] * 3}
    options: dict[str, Any] = {**OPTIONS, "stepper": DDIM(1.0)}
    plain = denoise(sd, prompts, **options)
    for views in (Grids(1, 1), Grids(1, 1, seed=4)):
        seen = denoise(sd, prompts, views=views, **options)
        assert all(torch.equal(seen[name].latents, plain[name].latents) for name in prompts)


def test_a_grid_is_the_image_that_its_tiles_make(sd):
    start, views = noise(4, 4, 8, 8), Grids()
    seen = denoise(sd, [PROMPT] * 4, views=views, start=start, steps=2, guide=3.0).latents
    whole = denoise(sd, PROMPT, start=views.gather(start, 4, 0), steps=2, guide=3.0).latents
    assert_same_but_for_rounding(views.gather(seen, 4, 0), whole)
    apart = denoise(sd, [PROMPT] * 4, start=start, steps=2, guide=3.0).latents
    assert (seen - apart).abs().max() > 1e-3


def test_streams_do_not_mix_and_each_reads_its_prompt(sd):
    prompts = {"a": [PROMPT] * 5, "b": ["a blue duck"] * 5}
    both = denoise(sd, prompts, views=Grids(seed=1), **OPTIONS)
    for name, some in prompts.items():
        alone = denoise(sd, some, views=Grids(seed=1), **OPTIONS).latents
        torch.testing.assert_close(both[name].latents, alone, atol=1e-5, rtol=1e-5)


def test_shuffled_grids_of_an_exact_denoiser_are_each_image_by_itself():
    """Where each tile is a Gaussian of its own no tile knows of others, however they are put together."""
    mean, start = noise(3, 4, 6), noise(5, 3, 4, 6).flip(0)
    schedule = Schedule.read(
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    )
    views, options = Grids(seed=2), {"steps": 10, "guide": 1.0, "start": start}
    tiled = Exact({"x": Mixture(mean.repeat(1, 2, 2)[None], 0.4)}, schedule)
    alone = Exact({"x": Mixture(mean[None], 0.4)}, schedule)
    for stepper in (DDIM(), DDIM(1.0)):
        seen = denoise(tiled, ["x"] * 5, views=views, stepper=stepper, **options).latents
        wanted = denoise(alone, ["x"] * 5, stepper=stepper, **options).latents
        torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-4)


def test_methods_take_part_or_are_refused(sd):
    prompts, method = [PROMPT] * 4, PerturbedAttention()
    seen = denoise(sd, prompts, views=Grids(), methods=[method], **OPTIONS).latents
    assert (seen - denoise(sd, prompts, views=Grids(), **OPTIONS).latents).abs().max() > 1e-4
    for run in (denoise, plan):
        with pytest.raises(SfumatoError, match="sees whole images, and these are seen as tiles of grids"):
            run(sd, prompts, views=Grids(), methods=[AttendAndExcite(words=("cube",))], **OPTIONS)
        with pytest.raises(SfumatoError, match="read one prompt, got 'a duck' and 'a red cube'"):
            run(sd, [PROMPT, "a duck"], views=Grids(), **OPTIONS)
    with pytest.raises(SfumatoError, match="a row and a column at least, got 0 x 2"):
        Grids(0)


@pytest.mark.parametrize("frames", [3, 5])
def test_frames_are_edited_in_shuffled_grids_and_their_sources_are_found_again(sd, frames):
    images = torch.rand(frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = {"source": [PROMPT] * frames, "target": ["a blue cube"] * frames}
    path = invert(sd, images, prompts["source"], Direct(steps=3))
    options: dict[str, Any] = {"start": path, "methods": [PlugAndPlay()], "guide": 3.0}
    apart, seen = denoise(sd, prompts, **options), denoise(sd, prompts, views=Grids(seed=0), **options)
    assert torch.equal(seen["source"].latents, apart["source"].latents)
    assert seen["target"].latents.isfinite().all()
    assert (seen["target"].latents - apart["target"].latents).abs().flatten(1).amax(1).min() > 1e-4
    again = denoise(sd, prompts, views=Grids(seed=1), **options)
    assert (again["target"].latents - seen["target"].latents).abs().max() > 1e-5


def test_what_belongs_to_images_is_a_grid_s_if_it_is_the_same():
    rows = Rows(("a", "b"), ("cond",), of_stream=5, grids=2)
    assert rows["b", "cond"] == slice(2, 4) and rows.images("b") == slice(5, 10) and len(rows) == 4 and not rows.whole
    assert rows.spread(torch.ones(5, 3)).shape == (2, 3)
    with pytest.raises(SfumatoError, match="seen as one differ"):
        rows.spread(torch.arange(5.0)[:, None])
