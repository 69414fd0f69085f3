"""Variational and entropic score distillation against closed forms, and the low-rank copy's laws on every family."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import families
import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import load
from sfumato.core.guidance import CFG
from sfumato.core.schedule import add_noise
from sfumato.distill import GuidedModel, Latents, Now, distil, noises, particles, weight
from sfumato.distill.gradients import Weighting
from sfumato.errors import SfumatoError
from sfumato.learning import seeds
from sfumato.learning.seeds import Draws
from sfumato.methods.distill.entropic_score_distillation import EntropicScoreDistillation
from sfumato.methods.distill.variational_score_distillation import VariationalScoreDistillation, variational

PROMPT = "a red cube on grass"
SCHEDULES = families.SCHEDULES


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture
def sd(models):
    return models("sd")


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request):
    return request.param


def step(model, copy=None, n=2, seed=0, **more):
    """A step of a run as a method sees it."""
    side = families.side(model)
    return Now(model, model.latents(range(n), side, side), (PROMPT,) * n, 0, 10, Draws(seed, 0), learner=copy, **more)


def at_two(model):
    return model.schedule.at([100, 700])


@torch.no_grad()
def told_apart(model, copy, x, **more):
    return copy.noise(x, at_two(model), model.embed([PROMPT] * 2), **more)


@torch.no_grad()
def prior_of(model, x):
    return noises(model, x, at_two(model), {"a": model.embed([PROMPT] * 2)})["a"]


def learnt(model, copy, x, times=3, told=None, **more):
    for i in range(times):
        copy.learn(x, model.embed([PROMPT] * len(x)), told, Draws(i, 0), **more)
        copy.step()


# the gradient on exact denoisers


def by_score(mixture, schedule):
    """Noise seen by who knows the particles' density only: -sigma times the gradient of its logarithm."""

    def noise(x, at):
        out = []
        for one, level in zip(x.split(1), map(at.rows, range(len(x))), strict=True):
            z = one.double().requires_grad_()
            variance = (level.alpha * mixture.std) ** 2 + level.sigma**2
            away = (z - level.alpha * mixture.means.double()).square().flatten(1).sum(1)
            log = (torch.tensor(mixture.weights).double().log() - away / (2 * variance)).logsumexp(0)
            with torch.enable_grad():
                out.append(-level.sigma * torch.autograd.grad(log, z)[0].float())
        return torch.cat(out)

    return noise


@pytest.mark.parametrize("modes", [1, 3])
def test_nothing_moves_where_the_particles_are_distributed_as_the_model_has_it(schedule, modes):
    mixture = Mixture(drawn(modes, 2, 3, 3), 0.4, (1.0,) if modes == 1 else (0.5, 0.2, 0.3))
    exact = Exact({"p": mixture}, schedule)
    at, x, noise = schedule.at([40, 500, 900]), drawn(3, 2, 3, 3, seed=1), drawn(3, 2, 3, 3, seed=2)
    prior = GuidedModel(exact, ("p",) * 3, CFG(1.0))
    found = variational(prior, by_score(mixture, schedule), x, at, noise)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=2e-5, rtol=0)
    other = by_score(Mixture(-mixture.means, 0.4, mixture.weights), schedule)
    assert variational(prior, other, x, at, noise).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["one", "variance", "deviation"])
def test_between_gaussians_the_gradient_is_a_closed_form(schedule, kind: Weighting):
    """w sigma ((z - alpha m) / (alpha^2 s^2 + sigma^2) - (z - alpha n) / (alpha^2 r^2 + sigma^2)) at z."""
    m, n, x, e = drawn(4, 2, 2, 3, 3).unbind()
    exact = Exact({"p": Mixture(m[:1], 0.5), "q": Mixture(n[:1], 0.3)}, schedule)
    at = schedule.at([300, 800])
    prior, particles = (GuidedModel(exact, (name,) * 2, CFG(1.0)) for name in "pq")
    found = variational(prior, particles, x, at, e, kind)
    for i, (_, a, s) in enumerate(zip(*at, strict=True)):
        z = a * x[i] + s * e[i]
        w = {"one": 1, "variance": s**2, "deviation": s}[kind]
        wanted = s * w * ((z - a * m[0]) / (a**2 * 0.25 + s**2) - (z - a * n[0]) / (a**2 * 0.09 + s**2))
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=1e-4)


def test_particles_become_samples_of_the_model_and_not_its_mode():
    """With the particles' own Gaussian in place of the copy they end as the model's, where SDS ends in one point."""
    schedule = SCHEDULES["epsilon"]
    exact = Exact({"p": Mixture(torch.full((1, 1, 1, 1), 0.7), 0.5)}, schedule)
    prior, ends = GuidedModel(exact, ("p",) * 200, CFG(1.0)), {}
    for name in ("vsd", "sds"):
        x, generator = 0.1 * drawn(200, 1, 1, 1), rng(5)
        for _ in range(250):
            at = schedule.at(torch.randint(20, 600, (), generator=generator))
            noise = torch.randn(x.shape, generator=generator)
            own = Exact({"q": Mixture(x.mean().view(1, 1, 1, 1), float(x.std()))}, schedule)
            drawn_noise = partial(lambda noise, z, at: noise, noise)
            particles = GuidedModel(own, ("q",) * 200, CFG(1.0)) if name == "vsd" else drawn_noise
            x = x - 0.3 * variational(prior, particles, x, at, noise)
        ends[name] = x
    assert ends["vsd"].mean().item() == pytest.approx(0.7, abs=0.02)
    assert ends["vsd"].std().item() == pytest.approx(0.5, abs=0.02)
    assert ends["sds"].std().item() < 0.1


# the copy


def test_a_fresh_copy_is_the_model_so_that_nothing_moves(model):
    for method in (VariationalScoreDistillation(guidance=1.0), EntropicScoreDistillation(guidance=1.0)):
        with method.started(model, 0) as copy, torch.no_grad():
            found = method.gradient(step(model, copy))
        torch.testing.assert_close(found, torch.zeros_like(found), atol=2e-5, rtol=0)
    with VariationalScoreDistillation(guidance=2.0).started(model, 0) as copy, torch.no_grad():
        assert VariationalScoreDistillation(guidance=2.0).gradient(step(model, copy)).abs().max() > 1e-4


def test_the_copy_learns_the_images_and_the_prior_stays_as_it_was(model):
    x = step(model).x
    before, told = prior_of(model, x), particles.numbered(2)

    def losses(copy):
        found = []
        for i in range(3):
            copy.learn(x, model.embed([PROMPT] * 2), told, Draws(100 + i, 0))
            found.append(copy.loss)
        return sum(found)

    with particles.low_rank(model, 4, 1e-2, 0) as copy:
        within = prior_of(model, x)  # the adapters' layers may round otherwise
        assert_same_but_for_rounding(within, before)
        first = losses(copy)
        learnt(model, copy, x, 10, told)
        assert losses(copy) < first - 0.01
        assert (told_apart(model, copy, x, camera=told) - before).abs().max() > 1e-3
        assert torch.equal(prior_of(model, x), within)
    assert torch.equal(prior_of(model, x), before)


def test_only_the_particles_answer_knows_of_cameras_and_images(model):
    x = step(model).x
    with particles.low_rank(model, 4, 1e-2, 0) as copy:
        before = prior_of(model, x)
        for told in (particles.numbered(2), drawn(2, 16)):
            learnt(model, copy, x, 2, told)
            straight = told_apart(model, copy, x, camera=told)
            swapped = told_apart(model, copy, x, camera=told.flip(0))
            assert (straight - swapped).abs().max() > 1e-5
            assert torch.equal(straight, told_apart(model, copy, x, camera=told))
            assert torch.equal(prior_of(model, x), before)


@pytest.mark.parametrize("name", ["sd", "sd2", "sd3"])
def test_the_copy_learns_what_its_network_predicts(name, models):
    """Noise, v = alpha noise - sigma x, or the velocity noise - x of flows: mean square error, a level an image."""
    model = models(name)
    x, cond = step(model).x, model.embed([PROMPT] * 2)
    with particles.low_rank(model, 4, 1e-4, 0) as copy:
        copy.learn(x, cond, None, Draws(3, 0))
    generators = [seeds.generator(3 + i, 0) for i in range(2)]
    u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    t = u * 1000 if name == "sd3" else (u * 1000).floor()
    noise, errors = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]), []
    for i in range(2):
        level = model.schedule.at(float(t[i]))
        target = {"sd": noise, "sd2": level.alpha * noise - level.sigma * x, "sd3": noise - x}[name][i]
        noisy = level.alpha * x[i] + level.sigma * noise[i]
        with torch.no_grad():
            errors.append((model.predict(noisy[None], level.t, cond[i : i + 1])[0] - target).square().mean())
    assert copy.loss == pytest.approx(float(sum(errors)) / 2, rel=1e-4)


def test_untold_images_are_learnt_as_zeros(sd):
    x, told = step(sd).x, drawn(2, 16)
    states = []
    for given, dropout in ((told, 1.0), (torch.zeros(2, 16), 0.0), (told, 0.0)):
        with particles.low_rank(sd, 4, 1e-2, 0) as copy:
            learnt(sd, copy, x, 3, given, dropout=dropout)
            states.append(copy.state())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("name", ["sd2", "flux"])
def test_entropic_is_variational_with_its_own_guidance(name, models):
    """The gradient is linear in what the copy says, u + s (c - u)."""
    model = models(name)
    x, told = step(model).x, particles.numbered(2)
    with particles.low_rank(model, 4, 1e-2, 0) as copy, torch.no_grad():
        learnt(model, copy, x, 3, told)
        with_all, without, half = (
            method.gradient(step(model, copy))
            for method in (
                VariationalScoreDistillation(),
                VariationalScoreDistillation(particle_guidance=0.0),
                EntropicScoreDistillation(),
            )
        )
        at, given = at_two(model), {"a": model.embed([PROMPT] * 2)}
        with copy._on(torch.zeros(2, 16)):
            blind = noises(copy.model, x, at, given)["a"]
    assert EntropicScoreDistillation().particle_guidance == 0.5
    assert (with_all - without).abs().max() > 1e-6
    torch.testing.assert_close(half, (with_all + without) / 2, atol=1e-5, rtol=1e-4)
    with particles.low_rank(model, 4, 1e-2, 0) as copy:
        learnt(model, copy, x, 3, told)
        torch.testing.assert_close(told_apart(model, copy, x, camera=told, guidance=0.0), blind, atol=1e-5, rtol=1e-4)


def test_views_change_what_the_prior_is_asked_and_not_the_copy(sd):
    method = VariationalScoreDistillation(guidance=1.0, weighting="one")
    with method.started(sd, 0) as copy, torch.no_grad():
        now = step(sd, copy)
        now.prompts = ("a blue sphere", "a duck")
        found = method.gradient(now)
    again = step(sd)
    at = method.times.draw(sd.schedule, 0.0, 2, again.draws)
    noisy = add_noise(again.x, again.noise(), at)
    with torch.no_grad():
        said = noises(sd, noisy, at, {"seen": sd.embed(["a blue sphere", "a duck"]), "asked": sd.embed([PROMPT] * 2)})
    torch.testing.assert_close(found, said["seen"] - said["asked"], atol=1e-5, rtol=1e-4)


def test_cameras_are_told_where_a_run_has_them():
    method, x = VariationalScoreDistillation(), torch.zeros(2, 1, 1, 1)
    cameras = drawn(2, 4, 4)
    told = method.camera(Now(None, x, ("", ""), 0, 1, Draws(0, 0), cameras=cameras))  # type: ignore[arg-type]
    assert torch.equal(told, cameras.flatten(1))
    by_index = method.camera(Now(None, x, ("", ""), 0, 1, Draws(0, 0)))  # type: ignore[arg-type]
    assert by_index.shape == (2, 16) and not torch.equal(by_index[0], by_index[1])
    none = VariationalScoreDistillation(conditioned=False)
    assert none.camera(Now(None, x, ("", ""), 0, 1, Draws(0, 0), cameras=cameras)) is None  # type: ignore[arg-type]


# the model afterwards


def trace(network):
    """All that could be left behind."""
    modules = dict(network.named_modules())
    return (
        {k: id(m) for k, m in modules.items()},
        {k: (sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for k, m in modules.items()},
        list(network.state_dict()),
        [(p.requires_grad, p.grad is None) for p in network.parameters()],
    )


@contextmanager
def unchanged(model):
    x = step(model).x
    before, said, drawing = trace(model.network), prior_of(model, x), torch.random.get_rng_state()
    values = {k: v.clone() for k, v in model.network.state_dict().items()}
    yield
    assert torch.equal(torch.random.get_rng_state(), drawing)
    assert trace(model.network) == before
    assert all(torch.equal(v, values[k]) for k, v in model.network.state_dict().items())
    assert torch.equal(prior_of(model, x), said)


def test_a_run_that_fails_leaves_the_model_as_it_was(sd):
    def stop(i, images):
        if i == 2:
            raise KeyboardInterrupt

    with unchanged(sd), pytest.raises(KeyboardInterrupt):
        distil(sd, Latents(step(sd).x), PROMPT, VariationalScoreDistillation(), 4, watch=stop)
    with unchanged(sd), pytest.raises(ZeroDivisionError), particles.low_rank(sd, 4, 1e-4, 0) as copy:
        hook = copy._time.register_forward_hook(lambda *_: 1 / 0)
        try:
            told_apart(sd, copy, step(sd).x, camera=particles.numbered(2))
        finally:
            hook.remove()


def test_adapters_that_are_loaded_belong_to_the_prior_and_stay():
    import peft

    model = load(families.own("sd"))
    config = peft.LoraConfig(r=2, target_modules=["to_q", "proj_in"], init_lora_weights=False)
    model.network.add_adapter(config, "style")
    x = step(model).x
    styled = prior_of(model, x)
    model.network.disable_lora()
    assert (prior_of(model, x) - styled).abs().max() > 1e-4
    with pytest.raises(SfumatoError, match="disabled or fused"), particles.low_rank(model, 4, 1e-2, 0):
        pass
    model.network.enable_lora()
    with unchanged(model), particles.low_rank(model, 4, 1e-2, 0) as copy:
        assert torch.equal(prior_of(model, x), styled)
        assert torch.equal(told_apart(model, copy, x), styled)
        learnt(model, copy, x)
        assert torch.equal(prior_of(model, x), styled)
        assert (told_apart(model, copy, x) - styled).abs().max() > 1e-4
    assert model.network.active_adapters() == ["style"]


# the run


@pytest.mark.parametrize(("name", "where"), [("sd", "watch"), ("sd", "loss"), ("sd3", "loss")])
def test_an_interrupted_run_goes_on_bit_for_bit(name, where, models, tmp_path):
    """Also where it is cut off after the copy has learnt in a step that the images have not taken."""
    model, method = models(name), EntropicScoreDistillation(rate=1e-2)
    x = step(model).x

    def fails(i, *_):
        if i == 2:
            raise RuntimeError("cut off")

    class Loss:
        calls = 0

        def __call__(self, rendering):
            self.calls += 1
            if self.fail and self.calls == 3:
                raise RuntimeError("cut off")
            return 0 * rendering.images.sum()

        def __init__(self, fail):
            self.fail = fail

    def run(keep=None, fail=False):
        generator = Latents(x)
        watch = fails if fail and where == "watch" else None
        losses = [Loss(fail)] if where == "loss" else []
        distil(model, generator, PROMPT, method, 4, keep=keep, watch=watch, regularisers=losses)
        return generator.latents.detach()

    keep = tmp_path / "run.safetensors"
    with pytest.raises(RuntimeError, match="cut off"):
        run(keep, fail=True)
    whole = run()
    assert torch.equal(run(keep), whole)
    assert not torch.equal(whole, x)


def test_defaults_are_the_published_ones():
    method = VariationalScoreDistillation()
    assert (method.guidance, method.weighting, method.rank, method.rate, method.dropout) == (
        7.5,
        "variance",
        4,
        1e-4,
        0.1,
    )
    assert (method.times.low(0.0), method.times.high(0.0), method.times.high(0.1999)) == (0.02, 0.98, 0.98)
    assert (method.times.low(0.5), method.times.high(0.2), method.times.high(1.0)) == (0.02, 0.5, 0.5)
    schedule = SCHEDULES["epsilon"]
    times = particles.EVERY.draw(schedule, 0.0, 20000, Draws(0, 0)).t
    assert times.min() == 0 and times.max() == 999
    assert (times == 999).sum() < 60 and times.mean().item() == pytest.approx(499.5, abs=10)
    at = schedule.at([20, 980])
    torch.testing.assert_close(weight("variance", at, torch.zeros(2)), at.sigma.float() ** 2)


# what cannot be done


def test_what_cannot_be_done_is_said(sd, monkeypatch):
    x, cond = step(sd).x, sd.embed([PROMPT] * 2)
    exact = Exact({"p": Mixture(torch.zeros(1, 1, 2, 2), 1.0)}, SCHEDULES["epsilon"])
    with pytest.raises(SfumatoError, match="nothing to adapt"), particles.low_rank(exact, 4, 1e-4, 0):
        pass
    with pytest.raises(SfumatoError, match="rank 1 or more, got 0"), particles.low_rank(sd, 0, 1e-4, 0):
        pass
    with particles.low_rank(sd, 4, 1e-4, 0) as copy:
        with pytest.raises(SfumatoError, match="16 numbers an image, got 12"):
            copy.noise(x, at_two(sd), cond, torch.zeros(2, 12))
        with pytest.raises(SfumatoError, match="is by what it is told of each image"):
            copy.noise(x, at_two(sd), cond, None, 0.5)
    with pytest.raises(SfumatoError, match="is by what it is told of each image"):
        distil(sd, Latents(x), PROMPT, EntropicScoreDistillation(conditioned=False), 1)
    monkeypatch.setattr(particles, "TIMES", ())
    with pytest.raises(SfumatoError, match="embeds its time in no known place"):
        distil(sd, Latents(x), PROMPT, VariationalScoreDistillation(), 1)
    assert len(distil(sd, Latents(x), PROMPT, VariationalScoreDistillation(conditioned=False), 1)) == 1
    monkeypatch.setattr(type(sd), "waits_for", torch.device("cpu"))
    with pytest.raises(SfumatoError, match="is offloaded"), particles.low_rank(sd, 4, 1e-4, 0):
        pass
