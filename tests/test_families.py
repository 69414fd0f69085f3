"""Conformance: every family, as a tiny random model in a folder, loaded the way a user loads one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from families import FAMILIES, write

from sfumato.attention import Call
from sfumato.backbones.load import load
from sfumato.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert, reconstruct
from sfumato.methods.edit import PromptToPrompt
from sfumato.rows import Rows, single

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return write(name, tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder), device="cpu")


def side(model) -> int:
    return 16 if model.factor == 1 else 64


def predict(model, handler=None):
    n = side(model) // model.factor
    x, cond = model.latents([0, 1], side(model), side(model)), model.embed([SOURCE, "a duck"])
    if handler is None:
        return model.predict(x, 401.0, cond)
    with model.tap(dict.fromkeys(model.sites, handler), single(2), (n, n)) as tap:
        out = model.predict(x, 401.0, cond)
        tap.check(model.network)
    return out


def test_each_site_is_seen_once_in_order_and_looking_changes_no_bit(model):
    seen: list[Any] = []
    text = model.embed([SOURCE]).text.shape[1]

    def look(call: Call) -> None:
        seen.append(call.site)
        h, w = call.grid
        size = {"image": h * w, "text": text}
        for which, segments in (("q", call.site.query), ("k", call.site.key)):
            tokens = call.get(which, ("main", "cond")).shape[-2]
            assert tokens == sum(size[s] for s in segments), (call.site, which)
            assert [call.get(which, ("main", "cond"), s).shape[-2] for s in segments] == [size[s] for s in segments]
        for pair in call.site.pairs:
            a, b = pair.split("->")
            assert call.block(("main", "cond"), pair).shape == (2, call.site.heads, size[a], size[b])

    assert torch.equal(predict(model, look), predict(model))
    assert seen == list(model.sites) and model.text_tokens >= text
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_probabilities_written_back_are_the_same_attention(model):
    def rewrite(call: Call) -> None:
        for pair in call.site.pairs:
            call.set_block(("main", "cond"), pair, call.block(("main", "cond"), pair))

    torch.testing.assert_close(predict(model, rewrite), predict(model), **CLOSE)


def test_gradients_flow_to_maps_and_predictions(model):
    x = model.latents([0], side(model), side(model)).requires_grad_()
    cond = model.embed([SOURCE])
    sites = [s for s in model.sites if "image->text" in s.pairs][:1]
    maps = model.maps(x, 401.0, cond, sites, lambda call: call.block(("main", "cond"), "image->text").mean(1))
    for value in (maps[sites[0]][..., 1].sum(), model.predict(x, 401.0, cond).square().sum()):
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_images_and_latents(model):
    images = torch.rand(2, 3, side(model), side(model), generator=torch.Generator().manual_seed(0))
    latents = model.encode(images)
    n = side(model) // model.factor
    assert latents.shape == (2, model.channels, n, n)
    decoded = model.decode(latents)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    with pytest.raises(SfumatoError, match=f"multiples of {model.multiple} pixels"):
        model.latents([0], side(model) + 1, side(model))


def test_words_are_tokens(model):
    found = model.words(SOURCE)
    assert [w for w, _ in found] == SOURCE.split()
    assert [b.start - a.stop for (_, a), (_, b) in pairwise(found)] == [0, 0, 0, 0]


def test_it_paints_what_diffusers_paints(model, folder, name):
    from diffusers import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if name == "deepfloyd":  # which theirs samples with noise of its own only: one prediction, without its variance
        x, cond = model.latents([3], 16, 16), pipe.encode_prompt(SOURCE, False)[0]
        wanted = pipe.unet(x, 401, encoder_hidden_states=cond).sample.chunk(2, 1)[0]
        assert torch.equal(model.predict(x, 401, model.embed([SOURCE])), wanted)
        return
    x = model.latents([3], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 4, "height": 64, "width": 64, "output_type": "latent"}
    guide: Any = 4.0
    if name == "flux":
        from sfumato.backbones.transformers import packed, unpacked

        wanted = pipe(SOURCE, latents=packed(x), guidance_scale=3.5, **options).images
        wanted, guide = unpacked(wanted, 8, 8), 1.0
    else:
        if name == "pixart":
            options |= {"use_resolution_binning": False, "clean_caption": False}
        wanted = pipe(SOURCE, latents=x, guidance_scale=4.0, **options).images
    out = denoise(model, SOURCE, steps=4, guide=guide, start=x)
    torch.testing.assert_close(out.latents, wanted, **CLOSE)


def test_inversions_find_the_image(model):
    images = torch.rand(1, 3, side(model), side(model), generator=torch.Generator().manual_seed(0))
    path = invert(model, images, SOURCE, Direct(steps=4))
    torch.testing.assert_close(reconstruct(model, path, 5.0), path.image, **CLOSE)


def test_prompt_to_prompt_keeps_its_laws(model):
    def run(target, *methods):
        size = side(model)
        out = denoise(model, {"source": SOURCE, "target": target}, methods=methods, steps=3, size=size, guide=4.0)
        return out["source"].latents, out["target"].latents

    plain, off = run(TARGET), run(TARGET, PromptToPrompt(cross=0.0, self=0.0))
    assert torch.equal(off[0], plain[0]) and torch.equal(off[1], plain[1])
    edited = run(TARGET, PromptToPrompt(cross=1.0, self=1.0))
    torch.testing.assert_close(edited[0], plain[0], **CLOSE)
    assert (edited[1] - plain[1]).abs().max() > 1e-4
    same = run(SOURCE, PromptToPrompt())
    torch.testing.assert_close(same[1], same[0], **CLOSE)


def test_rows_are_edited_by_name(model):
    """The target's attention replaced by the source's in a batch of named rows, whatever their order."""
    n = side(model) // model.factor
    x, cond = model.latents([0, 1], side(model), side(model)), model.embed([SOURCE, "a duck"])
    results = []
    for order in ((0, 1), (1, 0)):
        rows = Rows(tuple(("source", "target")[i] for i in order), ("cond",))

        def share(call: Call) -> None:
            call.set_probs(("target", "cond"), call.probs(("source", "cond")))

        at = list(order)
        again = model.embed([cond.prompts[i] for i in order])
        with model.tap(dict.fromkeys(model.sites, share), rows, (n, n)):
            out = model.predict(x[at], 401.0, again)
        results.append(out[[at.index(0), at.index(1)]])
    torch.testing.assert_close(results[0], results[1], **CLOSE)


def test_what_is_no_known_family_is_said(tmp_path):
    with pytest.raises(SfumatoError, match="unknown model"):
        load(str(tmp_path), device="cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(SfumatoError, match="does not load as a diffusers pipeline"):
        load(str(tmp_path), device="cpu")
