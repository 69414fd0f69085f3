"""Conformance: every family, as a tiny random model in a folder, loaded the way a user loads one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, VARIANTS, controlnet, ip_adapter, own, pipeline, write

from sfumato.backbones.controlnets import ControlNet
from sfumato.backbones.load import load
from sfumato.core.attention import FUSED, Call
from sfumato.core.denoising import denoise
from sfumato.core.rows import Rows, single
from sfumato.core.schedule import add_noise
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert, reconstruct
from sfumato.methods.edit import PromptToPrompt

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


ALL = pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])


@pytest.fixture(params=FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> its folder and its model, made once."""
    place = tmp_path_factory.mktemp("families")

    @cache
    def get(name: str):
        folder = write(name, place)
        return folder, load(str(folder), device="cpu")

    return get


@pytest.fixture
def folder(name, models):
    return models(name)[0]


@pytest.fixture
def model(name, models):
    model = models(name)[1]
    generator = torch.Generator().manual_seed(0)
    if name == "sd2-depth":
        depth = torch.rand(1, 40, 60, generator=generator)
        return model.given(lambda cond: model.with_depth(cond, depth, 64, 64))
    if name == "if-ii":
        image = torch.rand(1, 3, 4, 4, generator=generator)
        return model.given(lambda cond: model.enlarging(cond, image, 250, seed=5))
    return model


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


@ALL
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
    assert untouched(model)


def untouched(model) -> bool:
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    return not hooks and F.scaled_dot_product_attention is FUSED


def test_taps_are_gone_after_an_exception(model):
    plain = predict(model)

    def broken(call: Call) -> None:
        raise ValueError("in a method")

    with pytest.raises(ValueError, match="in a method"):
        predict(model, broken)
    assert untouched(model) and torch.equal(predict(model), plain)


def test_an_attention_that_bypasses_the_seam_is_refused(model):
    class Own:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    module = model.network.get_submodule(model.sites[-1].path)
    processor, module.processor = module.processor, Own()
    try:
        with pytest.raises(SfumatoError, match=rf"{model.sites[-1].path} never reached .*processor Own"):
            predict(model, lambda call: None)
    finally:
        module.processor = processor
    assert untouched(model)


def test_what_a_network_does_not_take_is_refused(model, name):
    x, cond = model.latents([0], side(model), side(model)), model.embed([SOURCE])
    with pytest.raises(SfumatoError, match="takes no image as condition"):
        model.predict(x, 401.0, replace(cond, image=x))
    with pytest.raises(SfumatoError, match="1 images need 1 rows of conditions, got 2"):
        model.predict(x, 401.0, cond.repeat(2))
    if name in ("deepfloyd", "pixart"):
        with pytest.raises(SfumatoError, match="takes no controls"):
            model.predict(x, 401.0, replace(cond, controls=(lambda model, x, t, cond: {},)))


@ALL
def test_noise_velocity_and_image_tell_the_same(model):
    x, prediction = model.latents([0], side(model), side(model)).double(), predict(model)[:1].double()
    own, close = model.schedule.prediction, {"atol": 1e-9, "rtol": 1e-9}
    kinds: Any = ("epsilon", "sample", "flow" if own == "flow" else "v_prediction")
    for t in (1, 401, 998):
        level = model.schedule.at(t)
        x0, eps = model.schedule.x0_and_eps(prediction, x, level)
        torch.testing.assert_close(add_noise(x0, eps, level), x, **close)
        torch.testing.assert_close(model.schedule.prediction_of(x0, eps, level), prediction, **close)
        for kind in kinds:
            other = model.schedule.predicting(kind)
            again = other.x0_and_eps(other.prediction_of(x0, eps, level), x, level)
            torch.testing.assert_close(again, (x0, eps), **close)


def test_networks_compute_in_half_precision_and_latents_do_not(folder, model):
    half = load(str(folder), device="cpu", dtype="bfloat16")
    text = half.embed([SOURCE]).text
    assert half.network.dtype == half.dtype == torch.bfloat16 and torch.equal(text, text.bfloat16().float())
    assert text.dtype == torch.float32  # what an encoder says in halves, where it may be learned
    x = model.latents([0], side(model), side(model))
    close, exact = half.predict(x, 401.0, half.embed([SOURCE])), model.predict(x, 401.0, model.embed([SOURCE]))
    assert close.dtype == torch.float32 and (close - exact).norm() < 0.1 * exact.norm()  # eight bits, some layers deep
    seen: list[Any] = []
    out = denoise(half, SOURCE, steps=2, size=side(model), guide=3.0, callback=lambda step: seen.append(step.x.dtype))
    assert set(seen) == {torch.float32} and out.latents.dtype == torch.float32 and out.images.isfinite().all()
    assert half.encode(out.images).dtype == torch.float32


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


@pytest.mark.parametrize("name", [*FAMILIES, "sd2-zero-snr", "pixart-sigma"])
def test_it_paints_what_diffusers_paints(model, name):
    pipe = own(name)
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
        wanted, guide = unpacked(wanted, 8, 8), 3.5
    else:
        if "pixart" in name:
            options |= {"use_resolution_binning": False, "clean_caption": False}
        wanted = pipe(SOURCE, latents=x, guidance_scale=4.0, **options).images
    out = denoise(model, SOURCE, steps=4, guide=guide, start=x)
    torch.testing.assert_close(out.latents, wanted, **CLOSE)


@pytest.mark.parametrize("name", [*FAMILIES, "sd2-zero-snr"])
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


@pytest.mark.parametrize("name", ["sd2-depth"])
def test_depth_is_painted_as_diffusers_paints_it(model, models, folder):
    pipe = pipeline(folder, depth_estimator=None, feature_extractor=None)
    generator = torch.Generator().manual_seed(1)
    depth, image = torch.rand(1, 40, 60, generator=generator), torch.rand(1, 3, 64, 64, generator=generator)
    seen: list[Any] = []
    pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "strength": 1.0}
    wanted = pipe(SOURCE, image=image, depth_map=depth, generator=generator, output_type="latent", **options).images
    bare = models("sd2-depth")[1]
    ours = bare.given(lambda cond: bare.with_depth(cond, depth, 64, 64))
    torch.testing.assert_close(ours.embed([SOURCE]).image, seen[0][:1, 4:])
    out = denoise(ours, SOURCE, steps=4, guide=4.0, start=seen[0][:1, :4])
    torch.testing.assert_close(out.latents, wanted, **CLOSE)
    with pytest.raises(SfumatoError, match=r"reads 5 channels, got 4; it needs an image"):
        denoise(bare, SOURCE, steps=4, size=64)
    with pytest.raises(SfumatoError, match="the same everywhere"):
        bare.with_depth(bare.embed([SOURCE]), torch.ones(1, 8, 8))


@pytest.mark.parametrize("name", ["if-ii"])
def test_super_resolution_reads_what_diffusers_gives_it(model, models, name, monkeypatch):
    from diffusers.pipelines.deepfloyd_if import pipeline_if_superresolution as module

    pipe = own(name)
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))

    def noise(shape, **_: Any):
        return torch.randn(shape, generator=torch.Generator().manual_seed(5))

    monkeypatch.setattr(module, "randn_tensor", noise)
    seen: list[Any] = []
    pipe.unet.register_forward_hook(lambda m, a, k, out: seen.append((*a, k, out[0])), with_kwargs=True)
    pipe(SOURCE, image=image * 2 - 1, height=16, width=16, num_inference_steps=1, guidance_scale=4.0, noise_level=250)
    ((inputs, t, more, told),) = seen
    bare = models("if-ii")[1]
    ours = bare.given(lambda cond: bare.enlarging(cond, image, 250, seed=5))
    cond = ours.embed(["", SOURCE])
    torch.testing.assert_close(cond.image, inputs[:, 3:])
    assert torch.equal(cond.extra["noise_level"], more["class_labels"])
    torch.testing.assert_close(cond.text, more["encoder_hidden_states"])
    torch.testing.assert_close(ours.predict(inputs[:, :3], float(t), cond), told[:, :3], **CLOSE)
    with pytest.raises(SfumatoError, match=r"reads 6 channels, got 3"):
        denoise(bare, SOURCE, steps=1, size=16)
    with pytest.raises(SfumatoError, match="first stage"):
        models("deepfloyd")[1].enlarging(cond, image)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_controls_add_up_as_in_diffusers(model, name):
    import diffusers

    kind = {"sd": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}[name]
    networks = [controlnet(name, model.network, seed) for seed in (1, 2)]
    pipe: Any = getattr(diffusers, kind).from_pipe(own(name), controlnet=networks)
    pipe.set_progress_bar_config(disable=True)
    pictures = list(torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    x = model.latents([3], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    wanted = pipe(SOURCE, image=pictures, latents=x, controlnet_conditioning_scale=[0.7, 1.3], **options).images
    both = [ControlNet(n, p, s) for n, p, s in zip(networks, pictures, (0.7, 1.3), strict=True)]
    out = denoise(model, SOURCE, steps=3, guide=4.0, start=x, controls=both)
    torch.testing.assert_close(out.latents, wanted, **CLOSE)
    one = denoise(model, SOURCE, steps=3, guide=4.0, start=x, controls=both[:1])
    assert (one.latents - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("adapters", [1, 2])
def test_ip_adapters_stay_in_force(name, adapters):
    pipe, model = own(name), load(own(name))
    plain = predict(model)
    for network in (pipe.unet, model.network):
        network._load_ip_adapter_weights([ip_adapter(network, seed) for seed in range(adapters)])
    with pytest.raises(
        SfumatoError, match=rf"carries {adapters} IP-Adapters and got 0 image prompts.*with_image_prompt"
    ):
        predict(model)
    pictures = list(torch.randn(adapters, 1, 2, 12, generator=torch.Generator().manual_seed(0)))
    prompted = model.given(lambda cond: model.with_image_prompt(cond, *pictures))
    texts: list[int] = []
    looked = predict(prompted, lambda call: texts.append(call.get("k", ("main", "cond")).shape[-2]))
    assert torch.equal(looked, predict(prompted)) and (looked - plain).abs().max() > 1e-3
    assert {n for n, s in zip(texts, model.sites, strict=True) if s.key == ("text",)} == {77}
    x = model.latents([3], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    embeds = [torch.cat([torch.zeros_like(p), p]) for p in pictures]
    wanted = pipe(SOURCE, latents=x, height=64, width=64, ip_adapter_image_embeds=embeds, **options).images
    out = denoise(prompted, SOURCE, steps=3, guide=4.0, start=x)
    torch.testing.assert_close(out.latents, wanted, **CLOSE)


@pytest.mark.parametrize(("name", "part"), [("sd3", "image_proj"), ("flux", "encoder_hid_proj")])
def test_an_ip_adapter_that_would_be_passed_over_is_refused(name, part):
    model = load(own(name))
    setattr(model.network, part, torch.nn.Identity())  # where diffusers puts the projection of images
    with pytest.raises(SfumatoError, match=r"carries an IP-Adapter.*unload_ip_adapter"):
        predict(model)


@pytest.mark.parametrize("name", ["sd"])
def test_a_lora_loaded_by_diffusers_stays_in_force(name, tmp_path):
    from safetensors.torch import save_file

    pipe, model = own(name), load(own(name))
    plain, generator = predict(model), torch.Generator().manual_seed(0)
    changes = {}
    for path in (s.path for s in model.sites):
        layer = model.network.get_submodule(path).to_q
        for part, shape in (("A", (2, layer.in_features)), ("B", (layer.out_features, 2))):
            changes[f"unet.{path}.to_q.lora_{part}.weight"] = torch.randn(shape, generator=generator)
    save_file(changes, tmp_path / "pytorch_lora_weights.safetensors")
    for each in (pipe, model.pipe):
        each.load_lora_weights(tmp_path)
    changed = predict(model)
    assert (changed - plain).abs().max() > 1e-3 and torch.equal(predict(model, lambda call: None), changed)
    x = model.latents([3], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    wanted = pipe(SOURCE, latents=x, height=64, width=64, **options).images
    torch.testing.assert_close(denoise(model, SOURCE, steps=3, guide=4.0, start=x).latents, wanted, **CLOSE)
