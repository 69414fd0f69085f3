"""Laws of moved features: the transformation itself, what is injected, and where source and edits are."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise
from sfumato.core.method import Method, Need, Phases, Run, Where
from sfumato.core.schedule import add_noise
from sfumato.core.steppers import DDIM
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, invert
from sfumato.methods.edit.feature_injection import Injection
from sfumato.methods.edit.feature_transfer import FeatureTransfer
from sfumato.methods.edit.plug_and_play import PlugAndPlay

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
UNETS = ["sd", "sd2", "sdxl", "deepfloyd"]
STILL = {"right": 0.0}


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


def run(model, *methods, source=SOURCE, target=TARGET, **options):
    options = {"steps": 2, "size": model.multiple * 8, **options}
    out = denoise(model, {"source": source, "target": target}, methods=methods, **options)
    return out["source"].latents, out["target"].latents


def all_of(model, **options) -> Injection:
    """Everything that the family has."""
    unet = any(layer.kind == "residual" for layer in model.layers)
    return Injection(**{"features": float(unet), "attention": 1.0, "cross": 1.0, **options})


# --- the injection


@pytest.mark.parametrize("model", UNETS, indirect=True)
def test_unmoved_and_direct_it_is_plug_and_play(model):
    pnp = run(model, PlugAndPlay(1.0, 0.5))
    ours = run(model, Injection(**STILL, features=1.0, attention=0.5))
    assert torch.equal(ours[0], pnp[0]) and torch.equal(ours[1], pnp[1])
    round = run(model, Injection(**STILL, turn=360.0, features=1.0, attention=0.5))
    assert torch.equal(round[1], pnp[1])


@pytest.mark.parametrize("model", ["sd", "deepfloyd", "sd3"], indirect=True)
def test_a_mixture_of_all_is_direct_and_of_nothing_is_plain(model):
    plain, direct = run(model), run(model, all_of(model))
    assert_same_but_for_rounding(run(model, all_of(model, inject="mixed", weight=1.0))[1], direct[1])
    assert_same_but_for_rounding(run(model, all_of(model, inject="mixed", weight=0.0))[1], plain[1])


class Looking(Method):
    """Keeps what all rows have in the last step."""

    def start(self, run: Run) -> Phases:
        self.features, self.words = (
            Need(Where("residual", sites=lambda at: at.stage == "up")),
            Need(Where("image->text")),
        )
        return Phases(needs=(self.features, self.words), after=lambda step: setattr(self, "maps", step.maps))


def test_features_and_maps_are_the_sources_moved_and_elsewhere_the_edits_own(sd):
    """A move by a quarter of 8 cells."""
    how = Injection(right=0.25, features=1.0, attention=0.0)
    start, look, free = sd.latents([1, 2], 64, 64), Looking(), Looking()
    run(sd, how, look, steps=1, start=start)
    run(sd, free, steps=1, start=start)
    written = 0
    for at, found in look.maps[look.features].items():
        base, side = found["source", "cond"], at.grid((8, 8))[1]
        for c in ("uncond", "cond"):
            own = found["target", c]
            if at.path == "up_blocks.0.resnets.1.conv2":
                assert_same_but_for_rounding(own[..., side // 4 :], base[..., : -side // 4])
                other = free.maps[free.features][at]["target", c]
                assert_same_but_for_rounding(own[..., : side // 4], other[..., : side // 4])
                written += 1
    assert written == 2
    run(sd, replace(how, features=0.0, cross=1.0), look, steps=1, start=start)
    same = [i for i in range(77) if i != 2]  # all but "red" and "blue"
    for at, found in look.maps[look.words].items():
        h, w = at.grid((8, 8))
        base, own = (found[s, "cond"].view(1, h, w, 77) for s in ("source", "target"))
        assert_same_but_for_rounding(own[:, :, w // 4 :, same], base[:, :, : -w // 4, same])
        assert (own[:, :, w // 4 :, 2] - base[:, :, : -w // 4, 2]).abs().max() > 1e-5


def test_guidance_goes_down_the_l1_distance(sd):
    """The loss, stated plainly; and after a run with it the features are closer to what they should be."""
    how = Injection(right=0.5, inject="guided", features=1.0, attention=0.0, strength=2.0)
    energies, look = [], Looking()

    class Watching(Method):
        def start(self, run: Run) -> Phases:
            phases = how.start(run)
            inner = phases.energy
            assert inner is not None
            return replace(
                phases, energy=replace(inner, loss=lambda step: energies.append(inner.loss(step)) or energies[-1])
            )

    start = sd.latents([1, 2], 64, 64)
    run(sd, Watching(), look, steps=1, start=start)
    found = look.maps[look.features]
    at = next(site for site in found if site.path == "up_blocks.0.resnets.1.conv2")
    own, base = found[at]["target", "cond"][..., 2:], found[at]["source", "cond"][..., :2]
    loss = 2.0 * (own - base).abs().mean() / base.abs().mean()
    assert_same_but_for_rounding(energies[0].detach(), loss)

    def distance(strength: float) -> float:
        energies.clear()
        run(sd, replace(how, strength=strength), look := Looking(), steps=6, start=start)
        found = look.maps[look.features][at]
        return float((found["target", "cond"][..., 2:] - found["source", "cond"][..., :2]).abs().mean())

    assert distance(30.0) < 0.97 * distance(0.0)


def test_several_images_on_a_wide_picture(sd):
    how, options = all_of(sd, turn=20.0, scale=1.1), {"steps": 2, "size": (64, 96)}
    alone = run(sd, how, seed=[3], **options)[1]
    other = run(sd, how, source="a duck", target="a red duck", seed=[8], **options)[1]
    both = run(sd, how, source=[SOURCE, "a duck"], target=[TARGET, "a red duck"], seed=[3, 8], **options)[1]
    assert_same_but_for_rounding(both, torch.cat([alone, other]))
    pair = {"source": SOURCE, "a": "a duck", "b": TARGET}
    out = denoise(sd, pair, methods=[how], seed=[3], **options)
    assert_same_but_for_rounding(out["b"].latents, alone)


# --- where source and edits are


def picture(model, seed: int = 0) -> torch.Tensor:
    side = model.multiple * 8
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def spied(model) -> list[tuple[torch.Tensor, float]]:
    """What the network is given, from now on."""
    seen, predict = [], model.predict
    model.predict = lambda x, t, cond: seen.append((x.clone(), float(t))) or predict(x, t, cond)
    return seen


def test_the_source_is_where_the_extraction_says(sd, monkeypatch):
    """Rows are uncond source, target, cond source, target."""
    monkeypatch.setitem(vars(sd), "predict", sd.predict)
    steps, image = 3, picture(sd)
    track = invert(sd, image, SOURCE, DDIMInversion(steps=steps)).track
    levels = sd.schedule.levels(steps)
    for extract in ("forward", "reverse", "noise"):
        path = invert(sd, image, SOURCE, FeatureTransfer(extract=extract, steps=steps, seed=5))
        seen = spied(sd)
        out = denoise(sd, {"source": SOURCE, "target": TARGET}, start=path, guide=7.5)
        sources, last = [x[2] for x, _ in seen], out["source"].latents
        assert [t for _, t in seen] == [levels[i].t for i in range(steps)]
        if extract == "forward":  # as on the way to noise: one step cleaner than what the network is told
            assert all(torch.equal(a, b[0]) for a, b in zip(sources, track[1:], strict=True))
            assert torch.equal(last, path.image) and path.stepper == DDIM()
        if extract == "reverse":  # as a plain run at guidance 1
            back = [track[0]]
            for i in range(steps):
                told = sd.predict(back[-1], levels[i].t, sd.embed([SOURCE]))
                x0, eps = sd.schedule.x0_and_eps(told, back[-1], levels[i])
                back.append(add_noise(x0, eps, levels[i + 1]))
            assert_same_but_for_rounding(torch.stack([*sources, last[0]]), torch.cat(back))
        if extract == "noise":  # independent noise at each level
            noises = [(x - levels[i].alpha * path.image[0]) / levels[i].sigma for i, x in enumerate(sources)]
            flat = torch.stack(noises).flatten(1)
            torch.testing.assert_close(flat.std(1), torch.ones(steps), atol=0.2, rtol=0)
            assert torch.corrcoef(flat).triu(1).abs().max() < 0.3
            assert torch.equal(last, path.image) and path.stepper == DDIM(1.0)


def test_the_edits_start_from_the_latents_of_the_figure(sd):
    steps, image = 3, picture(sd)
    how = FeatureTransfer(right=0.25, steps=steps, seed=7)
    track = invert(sd, image, SOURCE, DDIMInversion(steps=steps)).track
    noise = sd.latents([7], 64, 64)

    def first(**options) -> torch.Tensor:
        return invert(sd, image, SOURCE, replace(how, **options)).first  # pyright: ignore

    assert torch.equal(first(latent="random"), noise)
    assert torch.equal(first(latent="same"), track[0])
    moved = first(latent="moved")
    assert torch.equal(moved[..., 2:], track[0][..., :6]) and torch.equal(moved[..., :2], noise[..., :2])
    for latent in ("moved", "inverted"):  # of no move
        assert_same_but_for_rounding(first(latent=latent, **STILL), track[0])
    shown = sd.decode(sd.encode(image))
    there = torch.cat([shown[..., :1].expand(-1, -1, -1, 16), shown[..., :48]], -1)
    again = invert(sd, there, SOURCE, DDIMInversion(steps=steps)).track[0]
    torch.testing.assert_close(first(latent="inverted"), again, atol=1e-4, rtol=1e-4)
    flat = invert(sd, there.mean((2, 3), keepdim=True).expand_as(there), SOURCE, DDIMInversion(steps=steps)).track[0]
    torch.testing.assert_close(first(latent="corrupted", corruption=1.0), flat, atol=1e-4, rtol=1e-4)


def test_a_picture_is_moved_on_every_family(model):
    unet = any(layer.kind == "residual" for layer in model.layers)
    how = FeatureTransfer(features=0.8 * unet, turn=20.0, steps=2)
    for latent, extract in (("moved", "reverse"), ("inverted", "forward")):
        path = invert(model, picture(model), SOURCE, replace(how, latent=latent, extract=extract))
        out = denoise(model, {"source": SOURCE, "target": SOURCE}, start=path)
        assert torch.isfinite(out["target"].latents).all()
        assert (out["target"].latents - out["source"].latents).abs().max() > 1e-3


def test_each_of_several_pictures_is_moved_as_if_alone(sd):
    how, two = FeatureTransfer(latent="corrupted", steps=2), torch.cat([picture(sd), picture(sd, 1)])
    path = invert(sd, two, [SOURCE, TARGET], how)
    both = denoise(sd, {"source": [SOURCE, TARGET], "target": [TARGET, SOURCE]}, start=path)["target"].latents
    alone = invert(sd, two[:1], SOURCE, how)
    one = denoise(sd, {"source": SOURCE, "target": TARGET}, start=alone)["target"].latents
    torch.testing.assert_close(both[:1], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["pixart", "sd3", "flux"], indirect=True)
def test_networks_without_residuals_say_what_to_do(model):
    with pytest.raises(SfumatoError, match="is no UNet and has no features of ResNets; set features to 0"):
        run(model, Injection())
    with pytest.raises(SfumatoError, match="set features to 0"):  # and no inversion is run in vain
        invert(model, picture(model), SOURCE, FeatureTransfer())


def test_what_it_cannot_do_is_said(sd):
    def refused(match, **options):
        with pytest.raises(SfumatoError, match=match):
            run(sd, Injection(**options))

    refused("a whole side or more leaves nothing, got 1.0 and 0.0", right=1.0)
    with pytest.raises(SfumatoError, match="need two prompts"):
        denoise(sd, SOURCE, methods=[Injection()], steps=2, size=64)
    with pytest.raises(SfumatoError, match="above 0 and up to 1; got 0"):
        invert(sd, picture(sd), SOURCE, FeatureTransfer(corruption=0.0, steps=2))
    path = invert(sd, torch.rand(3, 64, 192), SOURCE, FeatureTransfer(steps=2))
    with pytest.raises(SfumatoError, match="seen in windows"):
        run(sd, start=path, views=Tiles(), steps=None, size=(64, 192))
