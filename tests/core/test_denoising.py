"""The loop: parity with diffusers on the same weights, laws of guidance, plans that refuse, faults."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rounding import assert_same_but_for_rounding

from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import load
from sfumato.core import guidance
from sfumato.core.attention import FUSED
from sfumato.core.denoising import denoise, plan
from sfumato.core.gradients import gradients
from sfumato.core.method import Edit, Energy, Method, Need, Phases, Run, Where, span
from sfumato.core.results import Trajectory, previews
from sfumato.core.rows import single
from sfumato.core.schedule import Schedule
from sfumato.core.solvers import DPMSolver
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.stilllife import networks, weights

PROMPT = "a red cube on grass"


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


class Doing(Method):
    """A method made of its phases."""

    def __init__(self, **phases):
        self.phases = phases

    def start(self, run: Run) -> Phases:
        return Phases(**self.phases)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_paints_what_diffusers_paints(model, here, scale):
    pipe = weights.pipeline()
    noise = model.latents([3, 4], 128, 128)
    options = {"num_inference_steps": 6, "guidance_scale": scale, "output_type": "latent"}
    wanted = pipe([PROMPT, "a duck"], latents=noise, **options).images
    out = denoise(model, [PROMPT, "a duck"], steps=6, guide=scale, seed=[3, 4])
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)
    pixels = pipe.vae.decode(wanted / networks.SCALING).sample / 2 + 0.5
    torch.testing.assert_close(out.images, pixels.clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_a_seed_is_a_picture_whatever_is_painted_beside_it(model):
    both = denoise(model, [PROMPT, PROMPT], steps=3, seed=7)
    for i in range(2):
        alone = denoise(model, PROMPT, steps=3, seed=7 + i)
        assert_same_but_for_rounding(alone.latents[0], both.latents[i])
    streams = denoise(model, {"a": PROMPT, "b": "a duck"}, steps=3, seed=7)
    assert_same_but_for_rounding(streams["a"].latents, both.latents[:1])
    assert streams["b"].prompts == ("a duck",)


def test_guidance_is_algebra(model):
    def run(guide):
        return denoise(model, PROMPT, steps=3, guide=guide).latents

    plain = run(5.0)
    assert torch.equal(run(guidance.CFG(5.0)), plain)
    same = assert_same_but_for_rounding
    same(run(guidance.Composed((("a duck", 0.0),), 5.0)), plain)
    same(run(guidance.Composed(((PROMPT, 2.0),), 3.0)), plain)  # AND of the same words
    same(run(guidance.PerpNeg(((PROMPT, -3.0),), 5.0)), plain)  # nothing perpendicular
    assert (run(guidance.PerpNeg((("a duck", -1.0),), 5.0)) - plain).abs().max() > 1e-4
    assert (run(guidance.CFG(5.0, negative="a duck")) - plain).abs().max() > 1e-4
    own = denoise(model, {"a": PROMPT, "b": PROMPT}, steps=3, guide=guidance.cfg({"a": 5.0, "b": 2.0}))
    same(own["a"].latents, plain)
    same(own["b"].latents, run(2.0))
    with pytest.raises(SfumatoError, match="scale is given for main; given: a"):
        run(guidance.CFG({"a": 5.0}))
    u, c = torch.randn(2, 3, 4, 8, 8)
    out = guidance.CFG(5.0, rescale=1.0).combine({"uncond": u, "cond": c}, single(3))
    torch.testing.assert_close(out.std((1, 2, 3)), c.std((1, 2, 3)))
    perp = guidance.perpendicular(u, c)
    torch.testing.assert_close((perp * c).flatten(1).sum(1), torch.zeros(3), atol=1e-3, rtol=0)


def test_the_instructed_relative_is_diffusers(here):
    pipe = weights.pipeline("stilllife-instruct")
    model = load("stilllife-instruct", device="cpu")
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    seen = pipe.vae.encode(picture * 2 - 1).latent_dist.mode()
    noise = model.latents([3], 128, 128)
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "image_guidance_scale": 1.5, "output_type": "latent"}
    wanted = pipe("make it red", image=picture, latents=noise, **options).images
    out = denoise(model, "make it red", steps=4, guide=guidance.ImageTextCFG(seen, 5.0, 1.5), seed=3)
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(SfumatoError, match="reads 8 channels, got 4; it needs an image"):
        denoise(model, "make it red", steps=2)


def test_guided_points_are_where_the_algebra_puts_them():
    a, b = torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.5)
    config = {"_class_name": "DDIMScheduler", **networks.scheduler().config, "set_alpha_to_one": True}
    model = Exact({"": Mixture(a, 0.0), "b": Mixture(b, 0.0)}, Schedule.read(config))
    out = denoise(model, "b", steps=10, guide=3.0)
    torch.testing.assert_close(out.latents, a + 3 * (b - a), atol=1e-5, rtol=0)


def test_an_energy_pulls_as_bayes_says():
    """With p(x0) = N(0, 1) and energy |x0 - y|^2 / 2, the score gains its gradient through x0-hat: a linear formula."""
    config = {"_class_name": "DDIMScheduler", **networks.scheduler().config, "set_alpha_to_one": True}
    model = Exact({"": Mixture(torch.zeros(1, 1, 2, 2), 1.0)}, Schedule.read(config))
    goal = torch.full((1, 1, 2, 2), 2.0)
    levels = model.schedule.levels(25)
    x = model.latents([0], 2, 2)
    out = denoise(
        model,
        "",
        steps=25,
        guide=1,
        start=x,
        methods=[Doing(energy=Energy(lambda s: (s.x0 - goal).square().sum() / 2))],
    )
    for i in range(25):
        (_, a, s), to = levels[i], levels[i + 1]
        eps = s * x + s * a * (a * x - goal)  # d/dx |a x - y|^2 / 2, with x0-hat = a x
        x = to.alpha * (x - s * eps) / a + to.sigma * eps
    torch.testing.assert_close(out.latents, x, atol=1e-4, rtol=1e-4)


def test_energies_add_up_and_are_differentiated_once(model):
    half = Doing(energy=Energy(lambda s: s.x0.square().sum() / 20))
    whole = Doing(energy=Energy(lambda s: s.x0.square().sum() / 10))
    calls = []
    predict = model.predict
    model.predict = lambda *a: calls.append(1) or predict(*a)
    two = denoise(model, PROMPT, steps=3, methods=[half, half])
    assert len(calls) == 3
    one = denoise(model, PROMPT, steps=3, methods=[whole])
    torch.testing.assert_close(two.latents, one.latents, atol=1e-4, rtol=1e-4)
    assert (one.latents - denoise(model, PROMPT, steps=3).latents).abs().max() > 1e-3


def test_phases_may_replace_what_is_theirs(model):
    seen = []

    def before(step):
        step.x = torch.zeros_like(step.x)

    def denoised(step):
        step.x0 = torch.ones_like(step.x0)

    def after(step):
        seen.append((step.i, step.x.abs().max().item(), step.x_next.mean().item()))

    trajectory = Trajectory(("x", "x0", "uncond", "cond"))
    out = denoise(
        model,
        PROMPT,
        steps=3,
        methods=[Doing(before=before, denoised=denoised, after=after)],
        trajectory=trajectory,
    )
    assert [i for i, *_ in seen] == [0, 1, 2] and all(x == 0 for _, x, _ in seen)
    assert trajectory["x0"].shape == (3, 1, 4, 16, 16) and (trajectory["x0"] == 1).all()
    final = model.schedule.levels(3)
    eps = -final[2].alpha / final[2].sigma
    torch.testing.assert_close(out.latents, torch.full_like(out.latents, final[3].alpha + final[3].sigma * eps))
    with pytest.raises(SfumatoError, match="no 'maps' to keep; it has: x, x0"):
        denoise(model, PROMPT, steps=1, trajectory=Trajectory(("maps",)))


def test_plans_refuse_what_cannot_work(model):
    def nothing(call):
        pass

    def refused(match, *edits, needs=(), **options):
        method = Doing(edits=edits, needs=needs)
        with pytest.raises(SfumatoError, match=match):
            denoise(model, PROMPT, steps=10, methods=[method], **options)

    refused("offers hidden, image->image, image->text", Edit(Where("text->image"), "probs", nothing))
    refused("resolution 32; at this size stilllife has it at 8, 16", needs=(Need(Where("image->text", 32)),))
    refused("unknown resolution 'fine'", needs=(Need(Where("image->text", "fine")),))
    refused("leaves no site", Edit(Where("image->text", sites=lambda s: False), "qkv", nothing))
    refused("no rows match 'image'", Edit(Where("image->text", rows="image"), "qkv", nothing))
    refused("between 0 and 1, got 1.5", Edit(Where("image->text", steps=(0, 1.5)), "qkv", nothing))
    refused("more than the 0 MiB allowed", needs=(Need(Where("image->image", "finest")),), memory=1000)
    edit = Edit(Where("image->text", steps=(0, 5)), "probs", nothing)
    refused("both write probs of image->text in the same steps", edit, edit)
    apart = Doing(edits=(edit, Edit(Where("image->text", steps=(5, None)), "probs", nothing)))
    denoise(model, PROMPT, steps=10, methods=[apart])
    with pytest.raises(SfumatoError, match="offers no attention at all"):
        denoise(Exact({"": Mixture(torch.zeros(1, 1, 2, 2), 1.0)}, model.schedule), "", methods=[apart], guide=1)
    assert span((0.2, 0.8), 50) == (10, 40) and span((4, None), 50) == (4, 50) and span((0, 80), 50) == (0, 50)


def test_maps_are_reduced_where_they_are_made(model):
    found = []
    need = Need(Where("image->text", "coarsest", (1, 3), "cond"), (1, 2))
    denoise(model, PROMPT, steps=4, methods=[Doing(needs=(need,), after=lambda s: found.append(dict(s.maps)))])
    assert [need in maps for maps in found] == [False, True, True, False]
    (site,) = found[1][need]
    assert site.stage == "mid" and found[1][need][site]["main", "cond"].shape == (1, 64, 2)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, torch.OutOfMemoryError, ValueError])
def test_capturing_changes_no_bit_and_a_fault_leaves_the_model_as_it_was(model, fault):
    plain = denoise(model, PROMPT, steps=3).latents
    watched = denoise(
        model, PROMPT, steps=3, methods=[Doing(needs=(Need(Where("image->text")), Need(Where("image->image"))))]
    )
    assert torch.equal(watched.latents, plain)

    def broken(call):
        if call.step == 1:
            raise fault

    for _ in range(3):
        with pytest.raises(fault):
            denoise(model, PROMPT, steps=3, methods=[Doing(edits=(Edit(Where("image->text"), "probs", broken),))])
    assert F.scaled_dot_product_attention is FUSED
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    assert torch.equal(denoise(model, PROMPT, steps=3).latents, plain)


def test_many_runs_leave_nothing_behind(model):
    """No hook, no patch, no tensor more after the thirtieth run than after the fifth; some of the runs fail."""
    energy = Doing(energy=Energy(lambda s: s.x0.square().sum() / 20), needs=(Need(Where("image->text")),))
    edit = PromptToPrompt(blend=LocalBlend("cube", "duck", start=0.0, res=8))
    broken = Doing(edits=(Edit(Where("image->image"), "probs", lambda call: 1 / 0),))
    prompts = {"source": PROMPT, "target": "a red duck on grass"}
    options = dict(steps=2, size=64, guide=4.0)

    def live() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    counts = []
    for i in range(30):
        denoise(model, prompts, methods=[edit], **options) if i % 2 else denoise(
            model, PROMPT, methods=[energy], **options
        )
        if i % 10 == 0:
            with pytest.raises(ZeroDivisionError):
                denoise(model, PROMPT, methods=[broken], **options)
        if i in (4, 29):
            counts.append(live())
    assert counts[0] == counts[1]
    assert F.scaled_dot_product_attention is FUSED
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_what_cannot_be_run_is_said(model):
    def refused(match, prompts=PROMPT, **options):
        with pytest.raises(SfumatoError, match=match):
            denoise(model, prompts, **options)

    refused("equally many prompts, got a: 1, b: 2", {"a": "x", "b": ["y", "z"]})
    refused("streams have names", {})
    refused("multiples of 8 pixels for stilllife, got 100 x 128", size=(100, 128))
    refused("2 images need 2 seeds, got 3", [PROMPT, PROMPT], seed=[1, 2, 3])
    refused("1 streams of 1 images cannot start from 3", start=torch.zeros(3, 4, 16, 16))
    refused("has 10 steps, so it cannot be run with 4", levels=model.schedule.levels(10), steps=4)
    refused("a prompt is a text, or several for a batch, got None", None)
    refused("a prompt is a text, got 3", [PROMPT, 3])
    refused("a number of steps is a whole number, got 2.5", steps=2.5)
    refused("a side in pixels is a whole number, got 64.0", size=64.0)
    refused(r"a size is a side in pixels or \(height, width\), got \(64,\)", size=(64,))
    refused(
        r"starts from latents \(b, 4, h, w\) or an inversion's path, got \(4, 16, 16\)", start=torch.zeros(4, 16, 16)
    )
    refused(r"got \(1, 5, 16, 16\)", start=torch.zeros(1, 5, 16, 16))
    refused(r"methods are a list .* such as \[PromptToPrompt\(\)\], got a PromptToPrompt", methods=PromptToPrompt())
    path = invert(model, torch.full((1, 3, 64, 64), 0.5), "", Direct(steps=2))
    refused("methods are a list", methods=PromptToPrompt(), start=path)
    refused("methods are a list", methods=[PromptToPrompt])
    refused("methods are a list", methods=["p2p"])
    refused("methods are a list", methods=None)
    refused(r"a guidance is a number, one a stream, or a Guide such as cfg\(5\), got '7'", guide="7")
    refused("a guidance is a number", guide=[7.5])
    refused("got a ndarray", start=np.zeros((1, 4, 16, 16)))
    refused("multiples of 8 pixels|multiples of 16 pixels", start=torch.zeros(1, 4, 0, 16))
    refused(
        "the start is of 128 x 128 pixels, so it cannot be painted at 64 x 64", start=torch.zeros(1, 4, 16, 16), size=64
    )


def test_a_start_of_a_size_that_is_none_of_the_models_is_said(models):
    with pytest.raises(SfumatoError, match=r"multiples of 16 pixels .*got 72 x 64"):
        denoise(models("flux"), PROMPT, start=torch.zeros(1, 4, 9, 8), steps=1)


def test_previews_are_pictures_of_the_way(model, tmp_path):
    denoise(model, {"a": PROMPT, "b": "a duck"}, steps=5, callback=previews(tmp_path, 2))
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == ["step-002.png", "step-004.png", "step-005.png"]
    assert Image.open(tmp_path / found[0]).size[1] == 128


def test_other_sizes_and_steppers(model):
    out = denoise(model, PROMPT, steps=2, size=(64, 96), stepper=DPMSolver())
    assert out.latents.shape == (1, 4, 8, 12) and out.images.shape == (1, 3, 64, 96)


def test_each_image_has_the_noise_of_its_own_seed(model):
    side = model.size
    both, one, other = (model.latents(seeds, side, side) for seeds in ([3, 4], [3], [4]))
    assert torch.equal(both, torch.cat([one, other])) and not torch.equal(one, other)


def test_a_method_is_prepared_for_the_prompts_before_it_starts(model):
    asked = []

    class Asking(Method):
        def prepare(self, model, prompts):
            asked.append(prompts)
            return Doing()

        def start(self, run):
            raise AssertionError("it was not prepared")

    out = denoise(model, {"a": PROMPT, "b": "a duck"}, methods=[Asking()], steps=1, size=64)
    plan(model, PROMPT, methods=[Asking()], steps=1)
    assert asked == [{"a": (PROMPT,), "b": ("a duck",)}, {"main": (PROMPT,)}] and set(out) == {"a", "b"}


class Breaking:
    """A network that gives what is not finite in one of its calls."""

    def __init__(self, model, at: int):
        self.predict, self.left = model.predict, at

    def __call__(self, x, t, cond):
        self.left -= 1
        return self.predict(x, t, cond) * (torch.nan if self.left < 0 else 1)


def lost(field: str):
    def do(step) -> None:
        if step.i == 1:
            setattr(step, field, getattr(step, field) * torch.inf)

    return do


@pytest.mark.parametrize(
    ("phases", "what"),
    [
        ({"before": lost("x")}, "the latents before it became not finite, with Doing"),
        ({"denoised": lost("x0")}, "the guided prediction became not finite, with Doing"),
        ({"after": lost("x_next")}, "the latents after it became not finite, with Doing"),
        (
            {"energy": Energy(lambda step: (step.x0 * 1e38).square().sum(), steps=(1, None))},
            "the guided prediction became not finite, with Doing",
        ),
    ],
)
def test_a_step_that_leads_to_what_is_not_finite_is_named_and_who_did_it(sd, phases, what):
    seen: list[int] = []
    with pytest.raises(SfumatoError, match=f"step 2 of 3: {what}; take a lower guidance"):
        denoise(sd, PROMPT, steps=3, size=64, methods=[Doing(**phases)], callback=lambda step: seen.append(step.i))
    assert seen == [0]  # what was there before was seen


def test_a_network_that_gives_what_is_not_finite_is_named_with_its_streams_and_what_helps(sd, monkeypatch):
    monkeypatch.setitem(vars(sd), "predict", Breaking(sd, 2))
    with pytest.raises(SfumatoError, match="step 3 of 4: the network's prediction of source, target became not finite"):
        denoise(sd, {"source": PROMPT, "target": PROMPT}, steps=4, size=64)
    monkeypatch.undo()
    half = load(sd.name, device="cpu", dtype="float16")
    half.predict = Breaking(half, 0)
    with pytest.raises(SfumatoError, match="float16 ends at 65504: load it with dtype float32 or bfloat16"):
        denoise(half, PROMPT, steps=4, size=64)
    with pytest.raises(SfumatoError, match="the latents that the run starts from became not finite"):
        denoise(sd, PROMPT, steps=4, start=torch.full((1, 4, 8, 8), torch.nan))


def test_gradients_in_halves_are_those_of_float32_however_small_or_large(sd):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    half = load(sd.name, device="cpu", dtype="float16")
    for scale in (1e-5, 1.0, 1e4):
        found = []
        for model in (half, sd):
            asked = x.clone().requires_grad_()
            loss = scale * model.predict(asked, 400.0, model.embed([PROMPT])).square().mean()
            found.append(gradients(model, loss, (asked,))[0])
        assert (found[0] - found[1]).norm() < 0.01 * found[1].norm()  # ten bits, some layers deep
