"""FreeInit: its filter and its runs beside diffusers', and what of a clip it keeps."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from diffusers.pipelines import free_init_utils

from sfumato.core.denoising import denoise
from sfumato.methods.sets import FreeInit
from sfumato.methods.sets.free_init import clips

PROMPT = "a red cube on grass"


def theirs(method: FreeInit, shape: tuple[int, ...]) -> torch.Tensor:
    mixin: Any = free_init_utils.FreeInitMixin()
    return mixin._get_free_init_freq_filter(shape, "cpu", method.filter, method.order, method.space, method.time)


@pytest.mark.parametrize(
    "method",
    [FreeInit(), FreeInit(order=2, space=0.4, time=0.1), FreeInit(filter="gaussian", time=0.6), FreeInit(space=0.0)],
    ids=["published", "wide", "gaussian", "nothing"],
)
def test_the_filter_is_diffusers(method):
    """Of even sides; of odd ones theirs is not in its middle, and mixes what is not real."""
    shape = (8, 6, 4)
    torch.testing.assert_close(method.low(shape), theirs(method, shape), atol=1e-6, rtol=1e-6)
    slow, fast = torch.randn(2, 2, 3, *shape, generator=torch.Generator().manual_seed(0))
    mixin: Any = free_init_utils.FreeInitMixin()
    wanted = mixin._apply_freq_filter(slow, fast, theirs(method, (1, 1, *shape)))
    torch.testing.assert_close(method.mixed(slow, fast), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 6, 4), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("kind", ["butterworth", "gaussian", "ideal"])
def test_low_and_high_are_one_whole_and_real(shape, kind):
    method = FreeInit(filter=kind)
    x, y = torch.randn(2, 1, 2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.mixed(x, x), x, atol=1e-5, rtol=1e-5)
    low = method.low(shape)
    middle = tuple(n // 2 for n in shape)
    assert low[middle] == low.max() == 1 and low.min() >= 0
    # a real mixture: what is thrown away of the inverse transform is nothing, as the filter is the same both ways
    assert method.mixed(x, y).mean() == pytest.approx(float(x.mean()), abs=1e-6)  # the slowest of all is the first's
    back = torch.fft.ifftn(torch.fft.ifftshift(low * torch.fft.fftshift(torch.fft.fftn(x[0, 0]))))
    inner = low[tuple(slice(1, None) if n % 2 == 0 else slice(None) for n in shape)]
    assert torch.equal(inner, inner.flip(0, 1, 2)) and back.imag.abs().max() < 1e-5


def test_slow_waves_are_kept_and_fast_ones_are_drawn():
    t = torch.arange(16) / 16 * 2 * torch.pi
    still, flicker = (x.view(1, 1, 16, 1, 1).expand(1, 1, 16, 8, 8) for x in (t.cos(), (8 * t).cos()))
    none = torch.zeros(1, 1, 16, 8, 8)
    method = FreeInit()
    torch.testing.assert_close(method.mixed(still, none), still, atol=1e-2, rtol=0)
    assert method.mixed(flicker, none).abs().max() < 1e-3
    torch.testing.assert_close(method.mixed(none, flicker), flicker, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_runs_are_those_of_diffusers(scheduler, monkeypatch):
    """Their noise of later runs given to ours: theirs comes from the generator that drew the first."""
    import diffusers

    options = {} if scheduler == "ddim" else {"scheduler": diffusers.EulerDiscreteScheduler(**families.BETAS)}
    pipe: Any = families.seeded(lambda: families.animatediff(**options))
    pipe.set_progress_bar_config(disable=True)
    from sfumato.backbones.load import load

    model, frames, drawn = load(pipe, device="cpu"), 4, []

    def noise(shape: Any, **_: Any) -> torch.Tensor:
        drawn.append(torch.randn(shape, generator=torch.Generator().manual_seed(90 + len(drawn))))
        return drawn[-1]

    monkeypatch.setattr(free_init_utils, "randn_tensor", noise)
    x = model.latents([3], 32, 32, frames)
    run: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 32, "width": 32}
    if scheduler == "ddim":
        pipe.enable_free_init(num_iters=3)
        wanted = pipe(PROMPT, num_frames=frames, latents=clips(x, frames), output_type="latent", **run).frames
        wanted = wanted.transpose(1, 2).flatten(0, 1)
        again = iter(drawn)
    else:  # theirs takes noise that is spread by the scheduler for noise; each run by itself instead
        drawn = [noise((1, 4, frames, 4, 4)) for _ in range(2)]
        start, wanted, last = x, x, len(drawn)
        for i in range(3):
            spread = pipe(PROMPT, num_frames=frames, latents=clips(start, frames), output_type="latent", **run).frames
            wanted = spread.transpose(1, 2).flatten(0, 1)
            if i < last:
                square = model.schedule.at(999).alpha ** 2
                z = square.sqrt() * wanted + (1 - square).sqrt() * x
                start = FreeInit().mixed(clips(z.float(), frames), drawn[i]).transpose(1, 2).flatten(0, 1)
        again = iter(drawn)
    from sfumato.core import denoising

    first = denoising._noise
    monkeypatch.setattr(
        denoising, "_noise", lambda x, *more: (first(x, *more), lambda: next(again).transpose(1, 2).flatten(0, 1))[1]
    )
    out = denoise(model, PROMPT, frames=frames, steps=3, guide=4.0, seed=3, size=32, methods=[FreeInit()])
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)
    assert len(drawn) == 2


def test_each_iteration_is_a_run(models):
    model, seen = models("animatediff"), []
    options: dict[str, Any] = {"frames": 3, "steps": 2, "guide": 3.0, "size": 32}
    out = denoise(model, PROMPT, methods=[FreeInit(3)], **options, callback=lambda step: seen.append(step))
    assert [(s.passed, s.i) for s in seen] == [(p, i) for p in range(3) for i in range(2)]
    plain = denoise(model, PROMPT, **options)
    torch.testing.assert_close(seen[1].x_next, plain.latents)  # the first is the plain run
    assert (out.latents - plain.latents).abs().max() > 1e-2
    none = denoise(model, PROMPT, methods=[FreeInit(2, space=0.0)], **options, callback=lambda step: seen.append(step))
    assert (seen[-2].x - seen[0].x).abs().max() > 0.1 and none.latents.isfinite().all()  # all of the noise is new
