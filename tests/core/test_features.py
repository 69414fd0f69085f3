"""Features and further looks, in every family: what is seen is what the network has, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES

from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, reads_scale
from sfumato.core.look import look
from sfumato.core.method import Edit, Method, Need, Phases, Run, Step, Where
from sfumato.core.steppers import DDIM
from sfumato.errors import SfumatoError

PROMPTS = {"a": "a red cube on grass", "b": "a duck"}


@pytest.fixture(params=FAMILIES)
def model(request, models):
    return models(request.param)


class Doing(Method):
    """A method made of its phases."""

    def __init__(self, **phases):
        self.phases = phases

    def start(self, run: Run) -> Phases:
        return Phases(**self.phases)


def paint(model, *methods, guide=3.0, **options):
    side = 16 if model.factor == 1 else 64
    return denoise(model, PROMPTS, methods=methods, steps=2, size=side, guide=guide, **options)


def test_tokens_are_what_attention_is_made_of(model):
    """A site's queries are its ``to_q`` of the tokens, without norm and position."""
    need, seen = Need(Where("tokens", rows=("b", "cond"))), {}

    def keep(step: Step) -> None:
        seen.update(step.maps[need])

    paint(model, Doing(needs=(need,), after=keep))
    assert {layer.path for layer in seen} == {s.path for s in model.sites if "image" in s.query and "image" in s.key}
    grid = (16, 16) if model.factor == 1 else (8, 8)
    for layer, rows in seen.items():
        h, w = layer.grid(grid)
        assert rows["b", "cond"].shape == (1, h * w, layer.width)
        module = model.network.get_submodule(layer.path)
        assert module.to_q(rows["b", "cond"]).shape[1] == h * w


@pytest.mark.parametrize("kind", ["tokens", "residual", "text"])
def test_features_are_written_where_they_are_named_and_nowhere_else(model, kind):
    plain = paint(model)
    if kind not in {layer.kind for layer in model.layers}:
        with pytest.raises(SfumatoError, match=f"Doing asks for {kind!r} features; {model.name} offers"):
            paint(model, Doing(edits=(Edit(Where(kind), "feature", print),)))
        return

    def same(seen) -> None:
        for name in seen.rows.names:
            seen.set(name, seen.get(name).clone())

    def other(seen) -> None:
        seen.set(("b", "cond"), seen.get(("a", "cond")))

    identity = paint(model, Doing(edits=(Edit(Where(kind), "feature", same),)))
    changed = paint(model, Doing(edits=(Edit(Where(kind, rows=("b", "cond")), "feature", other),)))
    for name in "ab":
        assert torch.equal(identity[name].latents, plain[name].latents)
    assert torch.equal(changed["a"].latents, plain["a"].latents)
    assert not torch.equal(changed["b"].latents, plain["b"].latents)
    with pytest.raises(SfumatoError, match=r"Doing and Doing \(2\) both write feature"):
        paint(model, *[Doing(edits=(Edit(Where(kind), "feature", same),))] * 2)


def test_the_text_that_cross_attention_reads_may_be_another_at_each_site(models):
    """With another prompt's at all of them a stream is that prompt's, bit for bit; at one of them it is neither."""
    model, read = models("sd"), []
    layers = [layer for layer in model.layers if layer.kind == "text"]
    assert [layer.path for layer in layers] == [s.path for s in model.sites if s.key == ("text",)]
    wanted = model.embed([PROMPTS["a"]]).text

    def other(seen) -> None:
        read.append(seen.get(("a", "cond")))
        seen.set(("b", "cond"), wanted)

    plain = paint(model)
    everywhere, once = (
        paint(model, Doing(edits=(Edit(Where("text", rows=("b", "cond"), sites=sites), "feature", other),)))
        for sites in (None, lambda layer: layer == layers[-1])
    )
    assert all(torch.equal(text, wanted) for text in read)
    assert torch.equal(everywhere["a"].latents, plain["a"].latents)
    again = denoise(model, {"a": PROMPTS["a"], "b": PROMPTS["a"]}, steps=2, size=64, guide=3.0)
    assert torch.equal(everywhere["b"].latents, again["b"].latents)
    assert not torch.equal(once["b"].latents, plain["b"].latents)
    assert not torch.equal(once["b"].latents, everywhere["b"].latents)


def test_a_need_keeps_what_it_makes_of_a_call(model):
    """Each head's own map in place of their mean, made where the maps are."""
    pair, kept = "image->text", {}

    def heads(call, name):
        return call.block(name, pair)

    mean, own = Need(Where(pair, rows="cond")), Need(Where(pair, rows="cond"), reduce=heads)
    paint(model, Doing(needs=(mean, own), after=lambda step: kept.update(step.maps)))
    assert kept[mean].keys() == kept[own].keys() and kept[mean]
    for site, maps in kept[own].items():
        for name, each in maps.items():
            assert each.shape[1] == site.heads
            torch.testing.assert_close(each.mean(1), kept[mean][site][name])


def test_residuals_are_what_is_added_to_the_shortcut(models):
    model, got = models("sd"), {}
    layers = [layer for layer in model.layers if layer.kind == "residual"]
    assert [layer.stage for layer in layers] == ["down", "down", "mid", "mid", "up", "up", "up", "up"]
    module = model.network.get_submodule(layers[0].path.removesuffix(".conv2"))
    hook = module.register_forward_hook(lambda m, x, out: got.update(whole=out, into=x[0]))
    need = Need(Where("residual", sites=lambda layer: layer.index == 0))
    try:
        paint(model, Doing(needs=(need,), after=lambda step: got.update(step.maps[need])))
    finally:
        hook.remove()
    added = torch.cat([got[layers[0]][name] for name in [(s, c) for c in ("uncond", "cond") for s in "ab"]])
    assert module.conv_shortcut is None
    torch.testing.assert_close(got["into"] + added, got["whole"])


def test_a_look_sees_what_the_step_sees_and_leaves_it_alone(model):
    """The same maps as in the shared pass, of a few rows, up to the last site; other methods' taps sleep."""
    pair = "image->text"
    need, touched, calls = Need(Where(pair, rows="cond")), [], []
    first = min((s for s in model.sites if pair in s.pairs), key=lambda s: s.index)
    early = Need(Where(pair, rows=("b", "cond"), sites=lambda site: site is first))
    predict = model.predict

    def before(step: Step) -> None:
        touched.append(look(step, (need,))[need])
        count = len(calls)
        alone = look(step, (early,), rows=("b", "cond"))[early]
        assert set(alone) == {first} and set(alone[first]) == {("b", "cond")}
        assert len(calls) == count + 1
        torch.testing.assert_close(alone[first]["b", "cond"], touched[-1][first]["b", "cond"], atol=1e-5, rtol=1e-4)

    def after(step: Step) -> None:
        for site, rows in step.maps[need].items():
            for name, map in rows.items():
                torch.testing.assert_close(touched[-1][site][name], map, atol=1e-5, rtol=1e-4)

    def counted(x, t, cond):
        calls.append(len(x))
        return predict(x, t, cond)

    seen = []
    writer = Doing(edits=(Edit(Where("image->image"), "qkv", lambda call: seen.append(call.site)),))
    model.predict = counted
    try:
        watcher = Doing(needs=(need,), looks=(need, early), before=before, after=after)
        looked = paint(model, watcher, writer, stepper=DDIM())
    finally:
        del model.predict
    whole = 2 if reads_scale(model) else 4  # such a network is asked once, and told its guidance
    assert calls == [2, 1, whole] * 2
    assert len(seen) == 2 * sum("image->image" in s.pairs for s in model.sites)
    plain = paint(model, stepper=DDIM())
    assert torch.equal(looked["a"].latents, plain["a"].latents)
    with pytest.raises(SfumatoError, match="rows of one condition, got uncond, cond"):
        paint(model, Doing(before=lambda step: look(step, (need,), rows=None)), guide=CFG(3.0))


def test_a_look_carries_gradients_to_the_latents_and_stops_early(models):
    model = models("sd")
    need = Need(Where("image->text", "finest", sites=lambda site: site.stage == "down"))
    ran = []
    hook = model.network.conv_out.register_forward_hook(lambda *_: ran.append(1))

    def before(step: Step) -> None:
        with torch.enable_grad():
            x = step.x.detach().requires_grad_()
            (maps,) = look(step, (need,), x)[need].values()
            (gradient,) = torch.autograd.grad(maps["b", "cond"][..., 2].amax(), x)
        at = step.run.images("b")
        assert gradient[at].abs().sum() > 0 and not gradient[step.run.images("a")].any()
        assert len(ran) == 2 * step.i  # the look itself did not come to the network's end

    def after(step: Step) -> None:
        ran.append(1)

    try:
        paint(model, Doing(looks=(need,), before=before, after=after))
    finally:
        hook.remove()
    assert len(ran) == 4


def test_looks_are_in_the_plan_and_checked_before_the_first_step(models):
    from sfumato.core.denoising import plan

    model, need = models("sd"), Need(Where("image->text", 8, rows="cond"))
    (row,) = plan(model, PROMPTS, methods=[Doing(looks=(need,))], size=64).table()
    assert row["does"] == "looks at maps" and row["grids"] == ["8x8"] and row["bytes"] > 0
    with pytest.raises(SfumatoError, match="resolution 5; at this size"):
        plan(model, PROMPTS, methods=[Doing(looks=(Need(Where("image->text", 5)),))], size=64)
