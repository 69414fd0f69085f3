"""Windows that agree: against the published formulas written down once more in double precision, and their laws."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from families import randomised, vae
from rounding import assert_same_but_for_rounding
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.transformers import positions
from sfumato.core.attention import Call
from sfumato.core.denoising import denoise, plan
from sfumato.core.look import foresee
from sfumato.core.method import Edit, Run
from sfumato.core.results import Sample, Trajectory
from sfumato.core.rows import Rows
from sfumato.core.schedule import Level, Schedule
from sfumato.core.steppers import DDIM, Stepper, posterior_std
from sfumato.core.views import Looks, Ring, Tiles, Turned
from sfumato.errors import SfumatoError
from sfumato.methods.sets import MergeAttendDiffuse, SpotDiffusion, SyncDiffusion, SyncTweedies
from sfumato.methods.sets.spot_diffusion import Spots
from sfumato.methods.sets.sync_diffusion import perceptual
from sfumato.methods.sets.sync_tweedies import CASES
from sfumato.metrics.perceptual import apart, coloured, scales

SIDE, STD, STEPS = 4, 0.5, 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def exact() -> Exact:
    """Two Gaussians, so that the denoiser is no linear map."""
    config = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    mixtures = {"x": Mixture(0.4 * noise(2, 3, SIDE, SIDE, seed=5), STD, (0.4, 0.6))}
    return Exact(mixtures | {"": Mixture(0.2 * noise(1, 3, SIDE, SIDE, seed=6), 0.7)}, Schedule.read(config))


def unlike(a: Tensor, b: Tensor) -> Tensor:
    """A distance of images that is neither linear nor the same at all places."""
    return ((a - b).square() * torch.linspace(0.5, 2.0, a.shape[-1]).to(a)).flatten(1).sum(1).tanh()


def foreseen(x: Tensor, alpha: Tensor, sigma: Tensor, exact: Exact, scale: float = 1.0) -> Tensor:
    """x0, guided, in double precision."""
    prompted, empty = (data(x, alpha, sigma, exact.mixtures[name]) for name in ("x", ""))
    return empty + scale * (prompted - empty)


def data(x: Tensor, alpha: Tensor, sigma: Tensor, mixture: Mixture) -> Tensor:
    """E[x0 | x] of a mixture."""
    means = mixture.means.double()
    variance = alpha**2 * mixture.std**2 + sigma**2
    away = x[None] - alpha * means
    logits = torch.tensor(mixture.weights).double().log() - away.square().flatten(1).sum(1) / (2 * variance)
    each = means + alpha * mixture.std**2 / variance * away
    return (logits.softmax(0)[:, None, None, None] * each).sum(0)


def published(
    exact: Exact, x: Tensor, lefts: list[int], anchor: int, weight: float, decay: float, scale: float
) -> Tensor:
    """Algorithm 1, window by window: the gradient, the update, DDIM and the average."""
    levels, x = exact.levels(STEPS, (SIDE, x.shape[-1])), x.double()
    for i in range(STEPS):
        (_, alpha, sigma), (_, to_alpha, to_sigma) = (
            tuple(torch.as_tensor(v).double() for v in level) for level in (levels[i], levels[i + 1])
        )
        window = lambda left: x[..., (torch.arange(SIDE) + left) % x.shape[-1]]  # noqa: B023, E731
        towards = foreseen(window(lefts[anchor]), alpha, sigma, exact, scale) / 2 + 0.5
        total, count = torch.zeros_like(x), torch.zeros(x.shape[-1]).double()
        for n, left in enumerate(lefts):
            at = window(left).clone().requires_grad_()
            loss = unlike((foreseen(at, alpha, sigma, exact, scale) / 2 + 0.5)[None], towards[None]).sum()
            (slope,) = torch.autograd.grad(loss, at)
            moved = at.detach() - (weight * decay**i * slope if n != anchor else 0)
            x0 = foreseen(moved, alpha, sigma, exact, scale)
            stepped = to_alpha * x0 + to_sigma * (moved - alpha * x0) / sigma
            columns = (torch.arange(SIDE) + left) % x.shape[-1]
            total[..., columns] += stepped
            count[columns] += 1
        x = total / count
    return x


def synced(exact: Exact, start: Tensor, method: Any, views: Any, **options: Any) -> Tensor:
    prompts = ["x"] * len(start)
    options = {"guide": 1.0, "steps": STEPS, **options}
    return denoise(exact, prompts, start=start, methods=[method] if method else [], views=views, **options).latents


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("views", [Tiles(2), Ring(2)], ids=["strip", "ring"])
def test_sync_diffusion_is_the_published_algorithm(exact, views, scale):
    start, method = noise(2, 3, SIDE, 10), SyncDiffusion(3.0, 0.8, anchor=1, distance=unlike)
    lefts = [left for _, left in views.places(SIDE, 10, (SIDE, SIDE))]
    found = synced(exact, start, method, views, guide=scale)
    wanted = torch.stack([published(exact, x, lefts, 1, 3.0, 0.8, scale) for x in start])
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-4)
    plain = synced(exact, start, None, views, guide=scale)
    assert (plain - found).abs().max() > 0.05


def test_without_the_network_x0_is_moved_and_the_noise_is_held(exact):
    """One step of it, in double precision; the mean of what windows go is what the canvas goes."""
    start, views = noise(1, 3, SIDE, 8), Tiles(2)
    method = SyncDiffusion(300.0, 0.8, anchor=0, network=False, distance=unlike)
    kept, plain = Trajectory(("x", "x0", "eps")), Trajectory(("x0", "eps"))
    for methods, into in (([method], kept), ([], plain)):
        denoise(exact, "x", start=start, steps=STEPS, guide=1.0, methods=methods, views=views, trajectory=into)
    _, alpha, sigma = exact.levels(STEPS, (SIDE, 8))[0]
    x0 = plain["x0"][0].double()
    slopes, count = torch.zeros_like(x0), torch.zeros(8)
    for left in (0, 2, 4):
        at = x0[..., left : left + SIDE].clone().requires_grad_()
        (slope,) = torch.autograd.grad(unlike(at / 2 + 0.5, x0[..., :SIDE] / 2 + 0.5).sum(), at)
        slopes[..., left : left + SIDE] += slope
        count[left : left + SIDE] += 1
    moved = -300.0 * alpha.double() / (alpha.double() ** 2 + sigma.double() ** 2) * slopes / count
    torch.testing.assert_close(kept["x0"][0].double(), x0 + moved / alpha.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kept["eps"][0], plain["eps"][0], atol=1e-4, rtol=1e-4)
    assert moved.abs().max() > 0.05


@pytest.mark.parametrize("network", [True, False])
def test_a_ring_that_is_rolled_is_the_same_ring(exact, network):
    """By any number of columns at a stride of one; the anchor rolls with it."""
    start, method = noise(1, 3, SIDE, 9), SyncDiffusion(3.0, anchor=2, network=network, distance=unlike)
    out = synced(exact, start, method, Ring(1))
    for columns in (1, 5):
        rolled = synced(exact, start.roll(columns, -1), replace(method, anchor=(2 + columns) % 9), Ring(1))
        torch.testing.assert_close(rolled, out.roll(columns, -1), atol=1e-4, rtol=1e-4)
    still = synced(exact, start.roll(1, -1), method, Ring(1))
    assert (still - out.roll(1, -1)).abs().max() > 1e-3


def test_what_sync_diffusion_cannot_do_is_said(exact):
    start = noise(1, 3, SIDE, 8)
    with pytest.raises(SfumatoError, match="windows 0 to 2, and the anchor is one of them, got 3"):
        synced(exact, start, SyncDiffusion(anchor=3), Tiles(2))
    with pytest.raises(SfumatoError, match="moves the windows of one canvas"):
        synced(exact, start, SyncDiffusion(), Tiles(2, side="instance"))
    with pytest.raises(SfumatoError, match="exact comes without a CLIP"):
        synced(exact, start, SyncDiffusion(by="clip"), Tiles(2))
    with pytest.raises(SfumatoError, match="stride lies between 1 and the window's side, 4 cells, got 0"):
        synced(exact, start, None, Tiles(0))
    assert SyncDiffusion().seeing(Tiles()) == Tiles(0.25) and SyncDiffusion().seeing(Ring(3)) == Ring(3)
    assert Tiles(0.25).places(64, 80, (64, 64)) == ((0, 0), (0, 16))


def test_distances_are_nothing_of_the_same_and_more_of_what_is_less_alike():
    a = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    near, far = a + 0.05 * noise(2, 3, 16, 16), a + 0.5 * noise(2, 3, 16, 16)
    assert [x.shape[-1] for x in scales(a)] == [16, 8, 4]
    for measure in (coloured, lambda x, y: apart([x, x[..., ::2]], [y, y[..., ::2]])):
        assert_same_but_for_rounding(measure(a, a), torch.zeros(2), largest=1.0)
        assert (measure(a, near) < measure(a, far)).all() and (measure(a, near) > 0).all()
    assert_same_but_for_rounding(coloured(a, a + 0.1), torch.full((2,), 0.03))
    assert_same_but_for_rounding(apart([a], [-3 * a]), torch.full((2,), 2.0))


def test_features_of_a_decoder_are_those_that_it_makes_first(sd):
    seen, latents = [], noise(2, 4, 8, 8)
    parts = [sd.vae.decoder.mid_block, sd.vae.decoder.up_blocks[0]]
    hooks = [part.register_forward_hook(lambda m, args, out: seen.append(out)) for part in parts]
    with torch.no_grad():
        sd.decode(latents)
        for hook in hooks:
            hook.remove()
        found = autoencoders.features(sd.vae, latents)
    assert found is not None and all(torch.equal(a, b) for a, b in zip(found, seen, strict=True))
    with torch.no_grad():
        assert_same_but_for_rounding(
            perceptual("decoder", sd)(latents, latents.flip(0)), apart(seen, [x.flip(0) for x in seen])
        )


def test_the_anchor_is_looked_at_once_and_not_differentiated(sd):
    """Of two images in five windows each: what the distance is given, and what the network is run on."""
    looks, rows, own = [], [], sd.network.forward

    def counting(x: Tensor, *args: Any, **named: Any) -> Any:
        rows.append((len(x), torch.is_grad_enabled()))
        return own(x, *args, **named)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        looks.append((len(a), len(b), a.requires_grad, b.requires_grad))
        return (a - b).square().flatten(1).mean(1)

    decoded, decode = [], type(sd).decode

    def decoding(self: Any, x: Tensor) -> Tensor:
        decoded.append(len(x))
        return decode(self, x)

    options: dict[str, Any] = {"steps": 2, "guide": 3.0, "size": (128, 256), "views": Tiles(4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd.network, "forward", counting)
        patch.setattr(type(sd), "decode", decoding)
        denoise(sd, ["a red cube", "a duck"], methods=[SyncDiffusion(until=0.5, distance=distance)], **options)
    assert looks == [(8, 8, True, False)] and decoded == [8, 2]
    assert rows == [(4, False), (16, True), (20, False), (20, False)]


@pytest.mark.parametrize("by", ["decoder", "latents"])
def test_a_distance_to_one_window_is_that_to_its_repetitions(sd, by):
    a, b = noise(6, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    distance = perceptual(by, sd)
    with torch.no_grad():
        assert_same_but_for_rounding(distance(a, b), distance(a, b.repeat_interleave(3, 0)))


def test_some_windows_are_foreseen_as_among_all(sd):
    """Also with a control, which is given the whole batch."""
    shown, found = noise(6, 4, 16, 16), []

    def control(model: Any, x: Tensor, t: Tensor, cond: Any) -> dict[str, Tensor]:
        assert len(x) == len(cond) == 12
        mid = torch.arange(12.0).view(-1, 1, 1, 1).expand(-1, 16, 8, 8) / 10
        return {"mid_block_additional_residual": mid, "down_block_additional_residuals": (torch.zeros(()),) * 4}

    for controls in ((), (control,)):

        def watch(step: Any) -> None:
            with torch.no_grad():
                whole = foresee(step, shown).unflatten(0, (2, 3))
                some = foresee(step, shown.unflatten(0, (2, 3))[:, [2, 0]].flatten(0, 1), (2, 0))
            found.append(whole)
            torch.testing.assert_close(some.unflatten(0, (2, 2)), whole[:, [2, 0]], atol=1e-5, rtol=1e-5)

        options: dict[str, Any] = {"steps": 1, "guide": {"main": 3.0}, "size": (128, 256), "views": Tiles(8)}
        denoise(sd, ["a red cube", "a duck"], callback=watch, controls=controls, **options)
    assert (found[0] - found[1]).abs().max() > 1e-3


# --- windows that attend as one image


def side_of(model: Any) -> int:
    """Of a window, in cells: a network's own size, or less where that is much to multiply out."""
    return min(16, model.size // model.factor)


def attended(model: Any, views: Any, canvas: tuple[int, int], words: bool = True) -> tuple[Run, tuple[Edit, ...]]:
    window = (side_of(model),) * 2
    rows = Rows(("main",), ("uncond", "cond"), 2, views.count(*canvas, window))
    run = Run(model, {"main": ("a", "b")}, rows, 4, window, views=views, canvas=canvas)
    return run, MergeAttendDiffuse(words=words).start(run).edits


@pytest.mark.parametrize("views", [Tiles(8), Ring(8)], ids=["strip", "ring"])
def test_windows_attend_as_tokens_of_one_canvas(sd, views):
    canvas = (16, 32)
    run, (own, other) = attended(sd, views, canvas)
    site = next(s for s in sd.sites if s.key == ("image",))
    scale, grid = site.scale, site.grid(run.grid)
    assert own.where.sites is not None and own.where.sites(site) and own.where.steps == (0.0, 0.5)
    q, k, v = (noise(len(run.rows), site.heads, grid[0] * grid[1], site.dim, seed=i) for i in range(3))
    call = Call(site, run.rows, grid, 0, {"q": q, "k": k, "v": v})
    own.do(call)
    lefts, count = [left // scale for _, left in views.places(*canvas, run.grid)], run.rows.views
    wide, tall = canvas[1] // scale, canvas[0] // scale
    columns = [(torch.arange(grid[1]) + left) % wide for left in lefts]

    def laid(parts: Tensor) -> Tensor:
        total = torch.zeros(len(run.rows) // count, site.heads, tall, wide, site.dim).double()
        seen = torch.zeros(wide).double()
        for n, at in enumerate(columns):
            total[..., at, :] += parts.unflatten(0, (-1, count))[:, n].double().unflatten(2, grid)
            seen[at] += 1
        return (total / seen[:, None]).flatten(2, 3)

    whole = [laid(parts) for parts in (q, k, v)]
    probs = (whole[0] @ whole[1].mT / site.dim**0.5).softmax(-1)
    answer = (probs @ whole[2]).unflatten(2, (tall, wide))
    wanted = torch.stack([answer[..., at, :].flatten(2, 3) for at in columns], 1).flatten(0, 1)
    torch.testing.assert_close(call.output().double(), wanted, atol=1e-5, rtol=1e-5)

    words = next(s for s in sd.sites if s.key == ("text",))
    asked = Call(words, run.rows, words.grid(run.grid), 0, {"q": q, "k": noise(len(q), words.heads, 7, words.dim)})
    other.do(asked)
    mean = laid(q).unflatten(2, (tall, wide))
    wanted = torch.stack([mean[..., at, :].flatten(2, 3) for at in columns], 1).flatten(0, 1)
    torch.testing.assert_close(asked.all("q").double(), wanted, atol=1e-5, rtol=1e-5)
    assert len(attended(sd, views, canvas, words=False)[1]) == 1


@pytest.mark.parametrize("name", ["sd3", "flux", "deepfloyd"])
def test_where_picture_and_text_attend_together_windows_read_the_mean_of_their_texts(models, name):
    """Places that are turned are written down as diffusers has them, and those of merged tokens are the canvas'."""
    model, words = models(name), 5
    side, stride = side_of(model), 4
    canvas, views = (side, 2 * side), Tiles(stride)
    run, edits = attended(model, views, canvas)
    site = next(s for s in model.sites if {"image", "text"} <= set(s.key))
    grid, count, lefts = site.grid(run.grid), run.rows.views, range(0, side + 1, stride)
    columns = [(torch.arange(grid[1]) + left // site.scale) for left in lefts]
    size = (grid[0], 2 * grid[1])

    def placed(x: Tensor, right: int = 0) -> Tensor:
        if name != "flux":
            return x
        at = positions(grid[0], (x.shape[-2] - words) // grid[0]) + torch.tensor([0.0, 0, right])
        cos_and_sin = FluxPosEmbed(10000, [*model.network.config.axes_dims_rope])(
            torch.cat([torch.zeros(words, 3), at])
        )
        return apply_rotary_emb(x, cos_and_sin)

    def of(side: str) -> tuple[str, ...]:
        return site.query if side == "q" else site.key

    tokens = {s: sum(grid[0] * grid[1] if part == "image" else words for part in of(s)) for s in "qkv"}
    plain = {s: noise(len(run.rows), site.heads, n, site.dim, seed=i) for i, (s, n) in enumerate(tokens.items())}
    seen = plain if name != "flux" else {s: placed(x) if s != "v" else x for s, x in plain.items()}
    call = Call(site, run.rows, grid, 0, seen)
    next(e for e in edits if e.field == "out").do(call)

    def laid(x: Tensor, segments: tuple[str, ...]) -> Tensor:
        whole, at = [], 0
        for part in segments:
            some = x[..., at : (at := at + (grid[0] * grid[1] if part == "image" else words)), :].double()
            some = some.unflatten(0, (-1, count))
            if part == "text":
                whole.append(some.mean(1))
                continue
            total, shown = torch.zeros(len(some), site.heads, *size, site.dim).double(), torch.zeros(size[1]).double()
            for n, where in enumerate(columns):
                total[..., where, :] += some[:, n].unflatten(2, grid)
                shown[where] += 1
            whole.append((total / shown[:, None]).flatten(2, 3))
        return torch.cat(whole, 2)

    q, k, v = (laid(plain[s], of(s)) for s in "qkv")
    q, k = (placed(x.float()).double() for x in (q, k))
    answer = (q @ k.mT / site.dim**0.5).softmax(-1) @ v
    wanted = []
    for where in columns:
        at, parts = 0, []
        for part in site.query:
            some = answer[:, :, at : (at := at + (size[0] * size[1] if part == "image" else words))]
            parts.append(some if part == "text" else some.unflatten(2, size)[..., where, :].flatten(2, 3))
        wanted.append(torch.cat(parts, 2))
    torch.testing.assert_close(call.output().double(), torch.stack(wanted, 1).flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_merged_windows_of_flux_are_flux_at_the_canvas_size(models):
    """All but its attention is a token's own, so that windows whose tokens attend as the canvas' are the canvas."""
    model = models("flux")
    options: dict[str, Any] = {"steps": 1, "guide": 3.0, "size": _wide(model), "seed": 3}
    whole = denoise(model, "a red cube", **options).latents
    for views in (Tiles(16), Tiles(0.5, feather=True)):
        merged = denoise(model, "a red cube", views=views, methods=[MergeAttendDiffuse(1.0)], **options).latents
        torch.testing.assert_close(merged, whole, atol=1e-4, rtol=1e-4)
    apart = denoise(model, "a red cube", views=Tiles(16), **options).latents
    assert (apart - whole).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_what_words_count_is_kept_in_merged_joint_attention(models, name):
    model = models(name)
    options: dict[str, Any] = {"steps": 1, "guide": 3.0, "size": _wide(model), "views": Tiles(0.5), "seed": 3}
    out = [
        denoise(model, prompt, methods=[MergeAttendDiffuse(1.0)], **options).latents
        for prompt in ("a red cube", "a (red:1.0) cube", "a (red:0.0) cube")
    ]
    effect = (out[0] - out[2]).abs().max()
    assert effect > 1e-5 and (out[0] - out[1]).abs().max() < 0.05 * effect
    if name == "flux":
        del options["views"]
        whole = denoise(model, "a (red:0.0) cube", **options).latents
        torch.testing.assert_close(out[2], whole, atol=1e-4, rtol=1e-4)


def test_a_ring_that_attends_as_one_has_no_beginning(sd):
    start = noise(1, 4, 16, 32)
    options: dict[str, Any] = {"steps": 2, "guide": 3.0, "views": Ring(8), "methods": [MergeAttendDiffuse(1.0)]}
    out = denoise(sd, "a red cube", start=start, **options).latents
    rolled = denoise(sd, "a red cube", start=start.roll(8, -1), **options).latents
    torch.testing.assert_close(rolled, out.roll(8, -1), atol=1e-4, rtol=1e-4)


def test_only_layers_whose_tokens_lie_as_windows_do_are_merged(sd, models):
    options: dict[str, Any] = {"steps": 2, "size": (128, 256)}
    every = plan(sd, "a", views=Tiles(8), methods=[MergeAttendDiffuse()], **options)
    scales_of = lambda planned: {s.scale for e in planned.entries for s in e.sites}  # noqa: E731
    assert scales_of(every) == {s.scale for s in sd.sites if s.key == ("image",)}
    flux = models("flux")
    with pytest.raises(SfumatoError, match="windows begin with a token where the stride is a multiple of its side"):
        plan(flux, "a", views=Tiles(3), methods=[MergeAttendDiffuse()], steps=2, size=_wide(flux))
    with pytest.raises(SfumatoError, match="on a ring the first is as near to the last as to the next"):
        plan(flux, "a", views=Ring(4), methods=[MergeAttendDiffuse()], steps=2, size=_wide(flux))
    with pytest.raises(SfumatoError, match="merges the windows of one canvas"):
        plan(sd, "a", views=Looks((Turned(),)), methods=[MergeAttendDiffuse()], steps=2)


def _wide(model: Any) -> tuple[int, int]:
    return model.size, 2 * model.size


# --- windows side by side


@pytest.mark.parametrize("canvas", [(4, 16), (4, 18), (9, 13), (4, 4)])
@pytest.mark.parametrize("around", [False, True], ids=["strip", "ring"])
def test_spots_cover_the_canvas_in_every_step_with_as_few_windows(canvas, around):
    steps = [Spots(1, around).at(i) for i in range(12)]
    counts = {views.count(*canvas, (4, 4)) for views in steps}
    across, down = -(-canvas[1] // 4), -(-canvas[0] // 4)
    more = lambda n, length: n + (length > 4)  # noqa: E731
    assert counts == {(across if around else more(across, canvas[1])) * more(down, canvas[0])}
    for views in steps:
        shown = views.coverage(*canvas, (4, 4))
        assert shown.min() >= 1
        if around and canvas == (4, 16):
            assert shown.max() == 1
    if canvas[1] > 4:
        assert len({views.places(*canvas, (4, 4)) for views in steps}) > 3
        assert Spots(2, around).at(3).places(*canvas, (4, 4)) != steps[3].places(*canvas, (4, 4))
    assert Spots(1, around).at(5) == steps[5]


def test_spots_are_what_is_seen_in_each_step(exact):
    """The step's windows, by the trajectory of one: what a window does not show of others is not in it."""
    start, kept = noise(1, 3, SIDE, 12), Trajectory(("x", "x_next"))
    synced(exact, start, SpotDiffusion(7), Ring(), trajectory=kept)
    levels = exact.levels(STEPS, (SIDE, 12))
    for i in range(STEPS):
        (_, alpha, sigma), (_, to_alpha, to_sigma) = (
            tuple(torch.as_tensor(v).double() for v in level) for level in (levels[i], levels[i + 1])
        )
        x, wanted = kept["x"][i][0].double(), torch.zeros(3, SIDE, 12).double()
        for _, left in Spots(7, True).at(i).places(SIDE, 12, (SIDE, SIDE)):
            at = (torch.arange(SIDE) + left) % 12
            x0 = foreseen(x[..., at], alpha, sigma, exact)
            wanted[..., at] = to_alpha * x0 + to_sigma * (x[..., at] - alpha * x0) / sigma
        torch.testing.assert_close(kept["x_next"][i][0].double(), wanted, atol=1e-4, rtol=1e-4)
    for wrong in (Tiles(2), Looks((Turned(),)), Ring(side="instance")):
        with pytest.raises(SfumatoError, match="SpotDiffusion"):
            SpotDiffusion().seeing(wrong)


# --- what views agree on, and for how long


def test_cases_are_what_is_fused_and_where(exact):
    assert {case: (v.fuse, v.side) for case in CASES if (v := SyncTweedies(case).seeing(Tiles(2)))} == CASES
    start = noise(1, 3, SIDE, 10)
    whole = synced(exact, start, None, Tiles(2))
    for case in CASES:
        torch.testing.assert_close(synced(exact, start, SyncTweedies(case), Tiles(2)), whole, atol=1e-3, rtol=1e-3)


def test_views_that_part_go_on_by_themselves(exact):
    """From the second of four steps: each window is then sampled plainly from what it had, and they are averaged."""
    start, views = noise(1, 3, SIDE, 8), Tiles(2)
    found = synced(exact, start, SyncTweedies(2, 0.25), views)
    kept, levels = Trajectory(("x_next",)), exact.levels(STEPS, (SIDE, 8))
    synced(exact, start, SyncTweedies(2), views, trajectory=kept)
    parted = denoise(exact, ["x"] * 3, start=kept["x_next"][0], levels=levels.last(3), guide=1.0).latents
    torch.testing.assert_close(found, views.merge(parted, start), atol=1e-4, rtol=1e-4)
    assert (found - synced(exact, start, SyncTweedies(2), views)).abs().max() > 1e-3
    with pytest.raises(SfumatoError, match="case 5 there is one canvas, whose views cannot part"):
        SyncTweedies(5, 0.5)
    with pytest.raises(SfumatoError, match="views that go on by themselves have latents of their own"):
        synced(exact, start, None, Tiles(2, until=0.5))


# --- laws of canvases


@pytest.mark.parametrize("fuse", ["eps", "x0", "x_prev", "pixels"])
@pytest.mark.parametrize("side", ["canvas", "instance"])
def test_a_canvas_as_large_as_a_window_is_plain_sampling_bit_for_bit(sd, fuse, side):
    options: dict[str, Any] = {"steps": 2, "stepper": DDIM(1.0), "size": sd.size}
    plain = denoise(sd, ["a red cube", "a duck"], **options).latents
    for methods in ([], [SyncDiffusion()], [MergeAttendDiffuse()], [SpotDiffusion()]):
        if side == "instance" and methods:
            continue
        seen = denoise(sd, ["a red cube", "a duck"], views=Tiles(None, fuse, side), methods=methods, **options)
        assert torch.equal(seen.latents, plain)


class OwnNoise(Stepper):
    """The classical mistake: each window draws noise of its own, and where windows overlap it is averaged."""

    def start(self, schedule, steps):
        move, generator = DDIM(1.0).start(schedule, steps), torch.Generator().manual_seed(0)

        def moved(x, x0, eps, level, to, noise):
            return move(x, x0, eps, level, to, lambda: torch.randn(x.shape, generator=generator))

        return moved


@pytest.mark.parametrize("fuse", ["eps", "x0", "x_prev"])
@pytest.mark.parametrize("side", ["canvas", "instance"])
def test_steps_that_draw_noise_keep_its_variance_where_windows_overlap(fuse, side):
    """Of normal data steps are linear, so that their variance is known; here of 24 576 numbers each, to some 1 %."""
    config = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    model = Exact({"x": Mixture(torch.zeros(1, 4, 8, 8), 1.0)}, Schedule.read(config))
    options: dict[str, Any] = {"steps": 10, "guide": 1.0, "start": noise(96, 4, 8, 16, seed=3)}

    def variance(stepper: Stepper, views: Any) -> tuple[float, float]:
        out = denoise(model, ["x"] * 96, stepper=stepper, views=views, **options).latents
        return float(out[..., 4:12].var()), float(out[..., [0, 1, 14, 15]].var())

    wanted = 1.0
    for (_, alpha, sigma), (_, to_alpha, to_sigma) in pairwise(model.levels(10, (8, 16))):
        std = posterior_std(Level(alpha, alpha, sigma), Level(alpha, to_alpha, to_sigma))
        kept = to_alpha * alpha + (to_sigma**2 - std**2).clamp_min(0).sqrt() * sigma
        wanted = float(kept**2 * wanted + std**2)
    many, once = variance(DDIM(1.0), Tiles(2, fuse, side))
    assert abs(many - wanted) < 0.03 and abs(once - wanted) < 0.03
    if (fuse, side) == ("x_prev", "canvas"):
        many, once = variance(OwnNoise(), Tiles(2))
        assert many < wanted - 0.2 and abs(once - wanted) < 0.03


@pytest.mark.parametrize("attention", [True, False])
def test_a_ring_is_decoded_without_a_beginning(sd, attention, monkeypatch):
    own = vae(mid_block_add_attention=attention).eval()
    randomised(own)
    monkeypatch.setattr(sd.pipe, "vae", own)
    latents = noise(1, 4, 8, 12)
    images = Sample(sd, latents, ("a",), around=True).images
    for columns in range(1, 12):
        rolled = Sample(sd, latents.roll(columns, -1), ("a",), around=True).images
        torch.testing.assert_close(rolled, images.roll(columns * sd.factor, -1), atol=1e-5, rtol=1e-4)
    flat = Sample(sd, latents, ("a",)).images
    assert (flat - Sample(sd, latents.roll(6, -1), ("a",)).images.roll(-6 * sd.factor, -1)).abs().max() > 1e-3
    middle = images[..., 32:64] - flat[..., 32:64]
    assert middle.abs().max() < (images - flat).abs().max()
    assert denoise(sd, "a", steps=1, size=(128, 256), views=Ring(8)).around
    assert not denoise(sd, "a", steps=1, size=(128, 256), views=Tiles(8)).around
