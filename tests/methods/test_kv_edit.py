"""KV-Edit: the background is exact and is what the region attends to, as in the authors' code, which runs it alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import SOME

from sfumato.backbones.load import load
from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.guidance import guided, reads_scale
from sfumato.core.method import Run
from sfumato.core.rows import Rows
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, Path, invert
from sfumato.methods.edit.kv_edit import KVEdit
from sfumato.prompts.layout import Mask

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
ROWS = Rows(("source", "target"), ("uncond", "cond"), 2)


def square() -> Mask:
    pixels = torch.zeros(64, 64, dtype=torch.bool)
    pixels[16:48, 8:32] = True
    return Mask(pixels)


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def picture(model, n: int = 1):
    side = 16 if model.factor == 1 else 64
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def run(model, how, target=TARGET, scales=(1.5, 5.5), n=1, **options):
    path = invert(model, picture(model, n), SOURCE, how)
    guide = guided(model, dict(zip(("source", "target"), scales, strict=True)))
    prompts = {"source": [SOURCE] * n, "target": [target] * n}
    out = denoise(model, prompts, start=path, guide=guide, **options)
    return path, out["source"].latents, out["target"].latents


def test_outside_of_the_mask_the_image_is_exact(model):
    """Whatever the options, which all change the region."""
    found = []
    for options in ({}, {"bias": 0.0}, {"apart": True}, {"fresh": True}, {"fresh": True, "seed": 1}):
        path, source, target = run(model, KVEdit(square(), skip=0.4, steps=3, **options), n=1 + (not options))
        cells = square().at((path.image.shape[-2], path.image.shape[-1]))
        assert len(path.levels) == 2
        assert torch.equal(source, path.image)
        assert torch.equal(target[..., ~cells], path.image[..., ~cells])
        assert (target[..., cells] - path.image[..., cells]).abs().max() > 1e-3
        assert all((target[:1] - other).abs().max() > 1e-5 for other in found)
        found.append(target[:1])


def test_a_mask_over_all_keeps_nothing(model):
    """The target is plain sampling from where the inversion led."""
    side = 16 if model.factor == 1 else 64
    everywhere = KVEdit(Mask(torch.ones(side, side, dtype=torch.bool)), skip=0.0, steps=2)
    path, _, target = run(model, everywhere)
    start = Path(path.latents, path.levels, (TARGET,), path.image)  # along which nothing is clipped
    plain = denoise(model, TARGET, start=start, guide=guided(model, {"main": 5.5}))
    torch.testing.assert_close(target, plain.latents, **CLOSE)
    if not reads_scale(model):
        torch.testing.assert_close(
            path.latents, invert(model, picture(model), SOURCE, DDIMInversion(1.5, steps=2)).latents
        )


def test_the_background_of_a_target_says_nothing_in_joint_attention(model):
    """The authors run the region's tokens alone; here the others run along, whatever they hold."""
    if not any("text" in s.query for s in model.sites):
        pytest.skip("convolutions and attention to words alone mix places")
    path = invert(model, picture(model), SOURCE, KVEdit(square(), skip=0.0, steps=2))
    side = (path.image.shape[-2], path.image.shape[-1])
    cells = square().at(side)
    rows = Rows(("source", "target"), ("cond",))
    edits = path.start(Run(model, {"source": (SOURCE,), "target": (TARGET,)}, rows, 2, side)).edits

    def all_of_them(call: Call) -> None:
        for edit in edits:
            edit.do(call)

    sites = [s for s in model.sites if "image->image" in s.pairs]
    base, cond = path.track[1], model.embed([SOURCE, TARGET])
    own = F.interpolate(F.max_pool2d(cells.float()[None, None], 2), scale_factor=2)[0, 0] > 0  # whole tokens of it
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), model.tap(dict.fromkeys(sites, all_of_them), rows, side):
        told, again = (
            model.predict(torch.cat([base, torch.where(own, base, other)]), 500.0, cond) for other in (base, noise)
        )
    torch.testing.assert_close(told[1][..., own], again[1][..., own], atol=1e-5, rtol=1e-5)
    assert (told[1][..., ~own] - again[1][..., ~own]).abs().max() > 1e-3


def test_attention_is_the_authors(model):
    """Keys and values of the source outside, the target's own inside, a bias on the background, and who sees whom."""
    side = 16 if model.factor == 1 else 64
    how = KVEdit(square(), bias=0.7, apart=True, steps=2, skip=0.0)
    path = invert(model, picture(model), SOURCE, how)
    grid = (side // model.factor,) * 2
    edits = path.start(Run(model, {"source": ("a", "b"), "target": ("c", "d")}, ROWS, 2, grid)).edits
    cells = square().at(grid)
    seen = []

    def compare(call: Call) -> None:
        q, k, v = ({n: call.get(w, n).clone() for n in ROWS.names} for w in "qkv")
        for edit in edits:
            if edit.field == "qkv":
                edit.do(call)
        for edit in edits:
            if edit.field != "qkv":
                edit.do(call)
        inside = F.max_pool2d(cells.float()[None], call.site.scale, ceil_mode=True).bool().flatten()
        queries, keys = call.segment("q", "image"), call.segment("k", "image")
        for condition in ROWS.conditions:
            s, t = ("source", condition), ("target", condition)
            mixed = {w: x[t].clone() for w, x in (("k", k), ("v", v))}
            for w, x in (("k", k), ("v", v)):
                mixed[w][..., keys, :][..., ~inside, :] = x[s][..., keys, :][..., ~inside, :]
            bias = torch.zeros(mixed["k"].shape[-2])
            bias[keys][~inside] = 0.7
            wanted = F.scaled_dot_product_attention(q[t], mixed["k"], mixed["v"], attn_mask=bias.expand(
                q[t].shape[-2], -1))  # fmt: skip
            torch.testing.assert_close(call.get("out", t), wanted, atol=1e-5, rtol=1e-5)
            sees = torch.ones(q[s].shape[-2], k[s].shape[-2], dtype=torch.bool)
            sees[queries, keys] = inside[:, None] == inside[None]
            wanted = F.scaled_dot_product_attention(q[s], k[s], v[s], attn_mask=sees)
            torch.testing.assert_close(call.get("out", s), wanted, atol=1e-5, rtol=1e-5)
        seen.append(call.site)

    sites = [s for s in model.sites if "image->image" in s.pairs]
    cond = model.embed(["", "", "", "", "a duck", "the red", "a cube", "grass"])
    x = torch.randn(8, model.channels, *grid, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.tap(dict.fromkeys(sites, compare), ROWS, grid):
        model.predict(x, 300.0, cond)
    assert seen == sites


def test_what_it_cannot_do_is_said(here):
    model = load("stilllife", device="cpu")
    with pytest.raises(SfumatoError, match="KV-Edit needs a mask"):
        run(model, KVEdit(steps=2))
    path = invert(model, torch.rand(3, 128, 128), SOURCE, KVEdit(square(), steps=2))
    with pytest.raises(SfumatoError, match="needs two prompts"):
        denoise(model, SOURCE, start=path)
    wide = invert(model, torch.rand(3, 256, 256), SOURCE, KVEdit(square(), steps=2))
    with pytest.raises(SfumatoError, match="seen in windows"):
        denoise(model, {"source": SOURCE, "target": TARGET}, start=wide, views=Tiles(fuse="x0"))
