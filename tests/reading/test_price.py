"""What reading is priced at is what torch measures."""

from __future__ import annotations

import copy

import pytest
import torch

from sfumato.bench.memory import allocated
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.normalised_cut import NormalisedCut
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.reading.price import price
from sfumato.reading.reader import read

SIZE = (192, 320)
READINGS = {
    "diff-seg": DiffSeg(),
    "dift": DIFT(ensemble=3).features,
    "normalised-cut": NormalisedCut(),
    "text-attribution": TextAttribution(("cube",)).heat_maps,
}
FAMILIES = ["sd", "sd3", *(pytest.param(family, marks=pytest.mark.slow) for family in ("sdxl", "pixart", "flux"))]


def holds(model, reading):
    """The price is what is measured."""
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    said = price(model, reading, SIZE, 192)
    with torch.no_grad(), read(model, image, 192) as reader:
        _ = reader.latents
        measured = allocated(lambda: reading(reader)).tapped
    assert said == pytest.approx(measured, rel=0.15, abs=2**12)
    return said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", READINGS)
def test_a_price_is_what_is_measured(models, what, family, dtype):
    model = models(family)
    if dtype != torch.float32:
        model = type(model)(model.name, copy.deepcopy(model.pipe).to(dtype))
    assert holds(model, READINGS[what]) or what == "dift"  # whose one layer is there anyway, unless it is widened


def test_what_earlier_layers_left_is_in_the_price(models):
    """In float32, where a layer is kept as it is: of a copy torch's account cannot tell whether the network has it."""
    assert holds(models("sd"), DIFT(blocks=(0, 1)).features) > 2**15


def test_some_sites_cost_less(models):
    few, many = (price(models("sd"), DiffSeg(stage=stage), SIZE, 192) for stage in ("up", None))
    assert 0 < few < many


def test_what_asks_nothing_has_no_price(sd):
    with pytest.raises(SfumatoError, match="asks the network nothing"):
        price(sd, lambda reader: reader.latents, SIZE)
