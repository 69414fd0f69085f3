"""The seam: what is tapped is seen once, exactly, and nothing is left behind."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import painted

from sfumato.backbones.load import load
from sfumato.core.attention import FUSED, Call
from sfumato.core.rows import Rows, single
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.methods.control import AttendAndExcite

GRID = (16, 16)


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


def inputs(model, n: int = 2):
    x = model.latents(range(n), 128, 128)
    return x, 401, model.embed(["a red cube on grass", "a blue sphere"][:n])


def predict(model, handler, n: int = 2, rows: Rows | None = None):
    with model.tap(dict.fromkeys(model.sites, handler), rows or single(n), GRID) as tap:
        out = model.predict(*inputs(model, n))
        tap.check(model.network)
    return out


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules())


def test_sites_are_listed_in_the_order_in_which_they_run(model):
    seen = []
    predict(model, lambda call: seen.append(call.site))
    assert seen == list(model.sites) and [s.index for s in seen] == list(range(len(seen)))
    assert {s.stage for s in seen} == {"down", "mid", "up"}
    assert [s.pairs for s in seen[:2]] == [("image->image",), ("image->text",)]
    assert {(s.stage, s.scale, s.grid(GRID)) for s in seen} == {
        ("down", 1, (16, 16)),
        ("mid", 2, (8, 8)),
        ("up", 1, (16, 16)),
    }


def test_looking_changes_no_bit(model):
    plain = model.predict(*inputs(model))

    def look(call: Call) -> None:
        for name in call.rows.names:
            probs = call.probs(name)
            queries, keys = call.get("q", name).shape[-2], call.get("k", name).shape[-2]
            assert probs.shape[-2:] == (queries, keys) and call.block(name, call.site.pairs[0]) is probs
            torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]))

    assert torch.equal(predict(model, look), plain)


def test_probabilities_written_back_are_the_same_attention(model):
    plain = model.predict(*inputs(model))

    def rewrite(call: Call) -> None:
        for name in call.rows.names:
            call.set_probs(name, call.probs(name))

    torch.testing.assert_close(predict(model, rewrite), plain, atol=1e-5, rtol=1e-5)

    def shift(call: Call) -> None:  # a softmax does not feel a constant
        call.set_logits(("main", "cond"), call.logits(("main", "cond")) + 3)

    torch.testing.assert_close(predict(model, shift), plain, atol=1e-5, rtol=1e-5)


def test_a_row_is_edited_and_the_others_are_not(model):
    rows = Rows(("a", "b"), ("cond",))
    plain = model.predict(*inputs(model))

    def swap(call: Call) -> None:
        call.set_probs(("b", "cond"), call.probs(("a", "cond")))

    out = predict(model, swap, rows=rows)
    torch.testing.assert_close(out[:1], plain[:1], atol=1e-6, rtol=1e-5)
    assert (out[1] - plain[1]).abs().max() > 1e-4

    def share(call: Call) -> None:  # the same probabilities by the same queries and keys
        for which in "qk":
            call.set(which, ("b", "cond"), call.get(which, ("a", "cond")))

    torch.testing.assert_close(predict(model, share, rows=rows), out, atol=1e-5, rtol=1e-5)

    def leave(call: Call) -> None:
        call.set("out", ("b", "cond"), torch.zeros_like(call.get("out", ("b", "cond"))))

    assert (predict(model, leave, rows=rows)[1] - plain[1]).abs().max() > 1e-4


def test_nothing_is_left_behind_also_after_an_exception(model):
    def broken(call: Call) -> None:
        raise ValueError("in a method")

    for _ in range(100):
        with pytest.raises(ValueError, match="in a method"):
            predict(model, broken)
    assert hooks(model) == 0 and F.scaled_dot_product_attention is FUSED
    plain = model.predict(*inputs(model))
    assert torch.equal(predict(model, lambda call: None), plain)


def test_a_prediction_for_maps_stops_after_the_last_of_them(model):
    ran = []
    last = model.network.up_blocks[-1]
    handle = last.register_forward_pre_hook(lambda *a: ran.append(1))
    site = model.sites[1]
    x, t, cond = inputs(model)
    x.requires_grad_()
    maps = model.maps(x, t, cond, [site], lambda call: call.probs(("main", "cond")).mean(1))
    handle.remove()
    assert not ran and list(maps) == [site] and maps[site].shape == (2, 256, 77)
    (gradient,) = torch.autograd.grad(maps[site][..., 2].sum(), x)
    assert gradient.abs().sum() > 0 and hooks(model) == 0


def test_processors_that_never_arrive_are_an_error(model):
    from diffusers.models.attention_processor import AttnProcessor

    model.network.set_attn_processor(AttnProcessor())
    with pytest.raises(SfumatoError, match=r"down_blocks.*never reached.*set_attn_processor\(AttnProcessor2_0\(\)\)"):
        predict(model, lambda call: None)
    assert hooks(model) == 0


def test_skipped_sites_are_an_error(model):
    block = model.network.mid_block
    block.forward = lambda hidden_states, *a, **k: hidden_states  # as a block cache does
    with pytest.raises(SfumatoError, match=r"2 of \d+ tapped attention sites.*mid_block"):
        predict(model, lambda call: None)


def test_compiled_networks_are_refused(model):
    model.network.compile(backend="eager")
    with pytest.raises(SfumatoError, match="compile=False"):
        predict(model, lambda call: None)


def test_two_threads_do_not_disturb_one_another(here):
    models = [load("stilllife", device="cpu") for _ in range(2)]
    plain = [m.predict(*inputs(m)) for m in models]
    seen: list[list[int]] = [[], []]
    out: list[list[torch.Tensor]] = [[], []]

    def work(k: int) -> None:
        for _ in range(5):
            if k:
                out[k].append(predict(models[k], lambda call: seen[k].append(call.site.index)))
            else:
                out[k].append(models[k].predict(*inputs(models[k])))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not seen[0] and seen[1] == [s.index for s in models[1].sites] * 5
    assert all(torch.equal(x, plain[k]) for k in range(2) for x in out[k])
    assert F.scaled_dot_product_attention is FUSED


def test_a_tap_is_of_its_thread_and_others_run_the_network_meanwhile(model):
    plain, out = model.predict(*inputs(model)), []
    weighed = replace(model.embed(["a red cube on grass"] * 2), weights=torch.full((2, model.text_tokens), 0.5))

    def halved(call: Call) -> None:
        call.set("q", call.rows.names[0], call.get("q", call.rows.names[0]) / 2)

    def beside(*_) -> None:
        thread = threading.Thread(target=lambda: out.append(model.predict(*inputs(model))))
        thread.start()
        thread.join()

    layers = {layer.kind: layer for layer in model.layers}.values()
    with model.tap({**dict.fromkeys(model.sites, halved), **dict.fromkeys(layers, halved_layer)}, single(2), GRID):
        beside()
    hook = model.network.conv_in.register_forward_pre_hook(
        lambda *_: beside() if threading.current_thread() is threading.main_thread() else None
    )
    model.predict(*inputs(model)[:2], weighed)
    hook.remove()
    assert len(out) == 2 and all(torch.equal(x, plain) for x in out)


def halved_layer(activation) -> None:
    activation.set(activation.rows.names[0], activation.get(activation.rows.names[0]) / 2)


@pytest.mark.parametrize("family", ["sd", "pixart", "sd3", "flux"])
def test_gradients_see_what_is_tapped_also_where_layers_are_checkpointed(models, family):
    model = models(family)
    options = {"methods": [AttendAndExcite(words=("cube", "grass"), refinements=2)]}
    prompts = ("a red cube on grass", "a (red:1.5) cube on grass")
    plain = [painted(model, prompt, **options) for prompt in prompts]
    model.network.enable_gradient_checkpointing()
    try:
        seen = [painted(model, prompt, **options) for prompt in prompts]
        assert model.network.is_gradient_checkpointing, "as it was"
    finally:
        model.network.disable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


def test_low_rank_changes_stay_in_force(model):
    import peft

    plain = model.predict(*inputs(model))
    model.network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    changed = model.predict(*inputs(model))
    assert (changed - plain).abs().max() > 1e-5
    assert torch.equal(predict(model, lambda call: None), changed)


def test_texts_are_remembered_until_their_encoder_changes(model):
    import peft

    encoder, calls = model.pipe.text_encoder, []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    first = model.embed(["a red cube", "a duck"]).text
    assert torch.equal(model.embed(["a duck", "a red cube"]).text, first[[1, 0]]) and len(calls) == 1
    encoder.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted = model.embed(["a red cube"]).text
    assert (adapted - first[:1]).abs().max() > 1e-6
    encoder.disable_adapters()
    torch.testing.assert_close(model.embed(["a red cube"]).text, first[:1])
    encoder.enable_adapters()
    assert torch.equal(model.embed(["a red cube"]).text, adapted)
    with torch.no_grad():
        encoder.final_layer_norm.weight.mul_(2)
    assert (model.embed(["a red cube"]).text - adapted).abs().max() > 1e-3


def test_rows_have_names():
    rows = Rows(("source", "target"), ("uncond", "cond"), 3)
    assert len(rows) == 12 and rows["target", "uncond"] == slice(3, 6) and rows["source", "cond"] == slice(6, 9)
    assert rows.stream("target") == slice(3, 6)
    assert rows.match("cond") == (("source", "cond"), ("target", "cond"))
    assert rows.match(("target", None)) == (("target", "uncond"), ("target", "cond"))
    for ask in (lambda: rows["other", "cond"], lambda: rows.match("image"), lambda: rows.stream("other")):
        with pytest.raises(SfumatoError, match="source"):
            ask()


def test_probabilities_of_halves_are_those_of_float32_also_where_products_are_beyond_them():
    """Queries and keys whose products leave float16 (65504) before they are scaled, as Stable Diffusion 2's do."""
    site = Site("attn1", 0, "mid", ("image",), ("image",), 1, 1, 8)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 64, generator=generator).half() for _ in "qkv")
    q, k = q + 40, k + 40
    assert (q @ k.transpose(-1, -2)).isinf().any()
    name = ("main", "cond")
    half, fine = (
        Call(site, single(1), (2, 2), 0, dict(zip("qkv", (some.to(dtype) for some in (q, k, v)), strict=True)))
        for dtype in (torch.float16, torch.float32)
    )
    assert half.probs(name).dtype == torch.float32 and torch.equal(half.probs(name), fine.probs(name))
    half.set_probs(name, half.probs(name))
    assert half.output().dtype == torch.float16
    torch.testing.assert_close(half.output().float(), fine.output(), atol=2e-3, rtol=2e-3)
