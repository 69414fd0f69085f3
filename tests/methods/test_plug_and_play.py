"""Laws of Plug-and-Play on UNets, and what it writes where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise
from sfumato.core.method import Method, Need, Phases, Run, Where
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.edit.plug_and_play import PlugAndPlay, decoder_layer
from sfumato.stilllife import networks

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
UNETS = ["sd", "sd2", "sdxl", "deepfloyd"]


@pytest.fixture(params=UNETS)
def model(request, models):
    return models(request.param)


def run(model, *methods, target=TARGET, source=SOURCE, **options):
    options = {"steps": 2, "size": model.multiple * 8, **options}
    out = denoise(model, {"source": source, "target": target}, methods=methods, **options)
    return out["source"].latents, out["target"].latents


def test_each_part_acts_and_leaves_the_source_alone(model):
    plain = run(model)
    for method in (PlugAndPlay(features=1.0, attention=0.0), PlugAndPlay(features=0.0, attention=1.0)):
        source, target = run(model, method)
        assert_same_but_for_rounding(source, plain[0])
        assert (target - plain[1]).abs().max() > 1e-6


def test_with_guidance_the_same_prompt_is_an_edit(model):
    """The empty prompt's rows get the source's features as well."""
    plain = run(model, target=SOURCE)[1]
    assert (run(model, PlugAndPlay(1.0, 1.0), target=SOURCE)[1] - plain).abs().max() > 1e-6


class Looking(Method):
    """Keeps what all rows have in the last step."""

    def start(self, run: Run) -> Phases:
        self.layer, self.behind = decoder_layer(run, 0.25)
        self.needs = (Need(Where("residual", sites=lambda at: at.stage == "up")), Need(Where("image->image")))
        return Phases(needs=self.needs, after=lambda step: setattr(self, "maps", step.maps))


def test_all_conditions_of_the_target_get_what_the_sources_prompt_gave(model):
    look, side = Looking(), model.multiple * 8
    run(model, PlugAndPlay(1.0, 1.0), look, steps=1, start=model.latents([1, 2], side, side))
    features, maps = (look.maps[need] for need in look.needs)
    base = ("source", "cond")
    for at, found in features.items():
        for name in (("target", "cond"), ("target", "uncond")):
            assert torch.equal(found[name], found[base]) == (at == look.layer)
    reached = {site.path: look.behind(site) for site in maps}
    assert any(reached.values()) and not all(reached.values())
    for site, found in maps.items():
        whole = found["target", "uncond"].shape == found[base].shape and len(site.key) == 1
        if whole:  # with text among the keys a map is not that of queries and keys of the image alone
            assert torch.allclose(found["target", "uncond"], found[base], atol=1e-6) == reached[site.path]


def test_it_stops_when_it_is_told_to(sd):
    """Features in 3 of 4 steps, maps in 2, by their numbers."""
    seen = []

    class Counting(Looking):
        def start(self, run: Run) -> Phases:
            def after(step):
                found = step.maps[self.needs[0]][self.layer], step.maps[self.needs[1]]
                site = next(s for s in found[1] if self.behind(s))
                one, two = (f["target", "uncond"] - f["source", "cond"] for f in (found[0], found[1][site]))
                seen.append((bool((one == 0).all()), bool((two.abs() < 1e-6).all())))

            return replace(super().start(run), after=after)

    run(sd, PlugAndPlay(features=0.75, attention=0.5), Counting(), steps=4)
    assert seen == [(True, True), (True, True), (True, False), (False, False)]


def test_the_published_layers_are_chosen():
    """The authors name them by path, in Stable Diffusion at 512 pixels; the built-in model has its blocks."""

    class Model:
        from sfumato.backbones.unet import residuals, sites

        network = networks.unet()
        name, layers, sites = "sd", residuals(network), sites(network)

    run = Run(Model(), {}, Rows(("a",), ("cond",)), 50, (64, 64))  # pyright: ignore[reportArgumentType]
    layer, behind = decoder_layer(run, 0.25)
    assert layer.path == "up_blocks.1.resnets.1.conv2"
    attention = [s.path.split(".")[1:4:2] for s in Model.sites if s.key == ("image",) and behind(s)]
    assert attention == [list(x) for x in ("11", "12", "20", "21", "22", "30", "31", "32")]
    assert decoder_layer(run, 0.5)[0].path == "up_blocks.2.resnets.1.conv2"


def test_several_images_and_targets_on_a_wide_picture(sd):
    options = {"steps": 2, "size": (64, 96)}
    alone = run(sd, PlugAndPlay(1.0, 0.5), seed=[3], **options)[1]
    other = run(sd, PlugAndPlay(1.0, 0.5), source="a duck", target="a sphere", seed=[8], **options)[1]
    both = run(
        sd, PlugAndPlay(1.0, 0.5), source=[SOURCE, "a duck"], target=[TARGET, "a sphere"], seed=[3, 8], **options
    )
    assert_same_but_for_rounding(both[1], torch.cat([alone, other]))
    prompts = {"source": SOURCE, "a": "a duck", "b": TARGET}
    out = denoise(sd, prompts, methods=[PlugAndPlay(1.0, 0.5)], seed=[3], **options)
    assert_same_but_for_rounding(out["b"].latents, alone)


def test_a_photograph_is_held_on_its_track(sd):
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = invert(sd, picture, "", Direct(steps=3))
    source, _ = run(sd, PlugAndPlay(), source="", start=path, steps=None, size=None)
    assert torch.equal(source, path.image)


@pytest.mark.parametrize("family", ["pixart", "sd3", "flux"])
def test_networks_without_a_decoder_are_refused(family, models):
    model = models(family)
    with pytest.raises(SfumatoError, match="is no UNet: there is no decoder"):
        run(model, PlugAndPlay())


def test_one_prompt_is_refused(sd):
    with pytest.raises(SfumatoError, match="needs two prompts"):
        denoise(sd, SOURCE, methods=[PlugAndPlay()], steps=2, size=64)
