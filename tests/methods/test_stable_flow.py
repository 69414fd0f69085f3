"""Stable Flow: laws on tiny SD3 and Flux, and keys copied before their norm and rotation are those copied after."""

from __future__ import annotations

import pytest
import torch

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import guided, reads_scale
from sfumato.core.method import Run
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.control.perturbed_attention import PerturbedAttention
from sfumato.methods.edit.stable_flow import RELEASED, SD3, Nudged, StableFlow

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
ROWS = Rows(("source", "target"), ("uncond", "cond"))


@pytest.fixture(params=["sd3", "flux"])
def model(request, models):
    return models(request.param)


def run(model, *methods, target=TARGET, **options):
    options = {"steps": None if "start" in options else 3, "size": 64, "seed": 3, "guide": 3.5, **options}
    out = denoise(model, {"source": SOURCE, "target": target}, methods=methods, **options)
    return out["source"].latents, out["target"].latents


def test_several_edits_and_images_at_once(model):
    prompts = {"source": [SOURCE, "a duck"], "a": [TARGET, "a red duck"], "b": ["a duck", SOURCE]}
    out = denoise(model, prompts, methods=[StableFlow()], steps=3, size=64, seed=3, guide=3.5)
    torch.testing.assert_close(out["a"].latents[:1], run(model, StableFlow())[1], **CLOSE)
    torch.testing.assert_close(out["b"].latents[:1], run(model, StableFlow(), target="a duck")[1], **CLOSE)


def test_copied_before_norm_and_rotation_or_after_is_the_same(model):
    """The authors overwrite what the projections of keys and values say of the image's tokens, row 0 in all others."""
    rows = Rows(("source", "target"), ("cond",))
    run_ = Run(model, {"source": (SOURCE,), "target": (TARGET,)}, rows, 1, (8, 8))
    (edit,) = StableFlow().start(run_).edits
    x = torch.randn(2, model.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = model.embed([SOURCE, TARGET])
    sites = [s for s in model.sites if "image->image" in s.pairs]

    def first_row(module, args, out):
        image = out[:, -16:]  # in Flux's single blocks the text's tokens stand before
        image[1:] = image[:1]
        return out

    modules = dict(model.network.named_modules())
    with torch.no_grad():
        plain = model.predict(x, 500.0, cond)
        with model.tap(dict.fromkeys(sites, edit.do), rows, (8, 8)):
            ours = model.predict(x, 500.0, cond)
        hooks = [modules[f"{s.path}.{p}"].register_forward_hook(first_row) for s in sites for p in ("to_k", "to_v")]
        theirs = model.predict(x, 500.0, cond)
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - plain).abs().max() > 1e-4


def test_vital_blocks_are_those_of_the_paper_at_their_depth(monkeypatch, model):
    """In networks of the published depths: Flux has 19 double and 38 single blocks, Stable Diffusion 3 has 24."""
    from dataclasses import replace

    double = [f"transformer_blocks.{i}.attn" for i in range(19)]
    single = [f"single_transformer_blocks.{i}.attn" for i in range(38)]

    def chosen(method, paths):
        base = model.sites[0]
        monkeypatch.setattr(model, "sites", tuple(replace(base, path=p, index=i) for i, p in enumerate(paths)))
        (edit,) = method.start(Run(model, {"source": ("",), "target": ("",)}, ROWS, 1, (8, 8))).edits
        return [s.path for s in model.sites if edit.where.sites(s)]

    of = [*(double[i] for i in (0, 1, 2, 17, 18)), *(single[i] for i in (6, 9, 34, 35, 37))]
    assert chosen(StableFlow(), double + single) == of
    assert chosen(RELEASED, double + single) == [p for p in of if p != double[2]]
    stable = [f"transformer_blocks.{i}.attn" for i in range(24)]
    assert chosen(SD3, stable) == [stable[i] for i in (0, 7, 8, 9)]


def test_a_nudged_image_comes_back_and_its_edit_has_its_size(model):
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = invert(model, image, SOURCE, Nudged(steps=3))
    torch.testing.assert_close(path.track[-1], 1.15 * path.image)
    guide = guided(model, {"source": 1.0, "target": 3.0})
    source, target = run(model, StableFlow(), start=path, guide=guide)
    assert torch.equal(source, path.image)
    assert (target - source).abs().max() > 1e-4
    plain = invert(model, image, SOURCE, Nudged(1.0, steps=3))
    if not reads_scale(model):  # which inverts under the guidance it is told
        torch.testing.assert_close(plain.latents, invert(model, image, SOURCE, Direct(steps=3)).latents)
    kept, edit = run(model, start=plain, guide=guide)
    again = run(model, start=path, guide=guide)[1]
    assert torch.equal(kept, path.image)
    assert (edit - again).abs().max() > 1e-4
    same = run(model, StableFlow(), start=path, target=SOURCE, guide=guided(model, {"source": 3.0, "target": 3.0}))
    pag = PerturbedAttention()
    both = run(model, StableFlow(), pag, start=path, guide=pag.around(guide))  # in one pass
    assert torch.equal(both[0], path.image) and (both[1] - target).abs().max() > 1e-5
    assert same[1].isfinite().all()


def test_what_it_cannot_do_is_said(model, here):
    with pytest.raises(SfumatoError, match="needs two prompts"):
        denoise(model, SOURCE, methods=[StableFlow()], steps=1, size=64)
    with pytest.raises(SfumatoError, match="stilllife has none: take masactrl"):
        run(load("stilllife", device="cpu"), StableFlow(), size=128)
