"""Every family in every precision: what is asked of it is finite, and as near to float32 as roundings let it be."""

from __future__ import annotations

from functools import cache
from typing import Any

import families
import pytest
import torch
from laws.painting import picture

from sfumato.backbones.load import load
from sfumato.core.backbone import dtype_of
from sfumato.core.denoising import denoise
from sfumato.core.guidance import reads_scale
from sfumato.distill.generators import Latents
from sfumato.distill.loop import distil
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, NullText, invert, reconstruct
from sfumato.methods.control.attend_and_excite import AttendAndExcite
from sfumato.methods.distill.score_distillation import ScoreDistillation

PROMPT = "a red cube"
SCALE = 4.0
"""Of guidance; a thousand times of it, which Flux reads, has eight digits."""
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "float8": 2**-4, "offloaded": 2**-23}
"""Half of the last digit's worth, of the weights as they are stored."""


def offloaded(folder: str) -> Any:
    """All weights on the meta device, brought back a layer at a time."""
    from accelerate import cpu_offload

    model = load(folder, device="cpu")
    for part in model.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert all(p.is_meta for p in model.network.parameters())
    return model


def cast(folder: str, dtype: str = "bfloat16") -> Any:
    """Weights in float8, computed with in bfloat16."""
    model = load(folder, device="cpu", dtype=dtype)
    for part in (model.network, *([model.vae] if hasattr(model, "vae") else ())):
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert any(p.dtype == torch.float8_e4m3fn for p in model.network.parameters())
    return model


def made(folder: str, precision: str) -> Any:
    other = {"offloaded": offloaded, "float8": cast}
    model = other[precision](folder) if precision in other else load(folder, device="cpu", dtype=precision)
    if reads_scale(model):
        model.distilled = SCALE
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A family's tiny model in a precision."""
    place = tmp_path_factory.mktemp("precisions")
    folder = cache(lambda name: str(families.write(name, place)))
    return cache(lambda name, precision="float32": made(folder(name), precision))


def predicted(model: Any) -> torch.Tensor:
    x = model.latents([0], families.side(model), families.side(model))
    with torch.no_grad():
        return model.predict(x, 400.0, model.embed([PROMPT]))  # a time of eight digits, which Flux keeps of it


def sampled(model: Any, *methods: Any) -> torch.Tensor:
    done = denoise(model, PROMPT, steps=2, size=families.side(model), guide=SCALE, methods=methods)
    assert done.images.isfinite().all()
    return done.latents


def inverted(model: Any) -> torch.Tensor:
    return invert(model, picture(model, 0), PROMPT, Direct(steps=2)).latents


def null_text(model: Any) -> torch.Tensor:
    path = invert(model, picture(model, 0), PROMPT, NullText(scale=SCALE, steps=2, inner=1))
    assert all(text.dtype == torch.float32 and text.isfinite().all() for text in path.uncond)
    return reconstruct(model, path, SCALE)


def distilled(model: Any) -> torch.Tensor:
    """The first step, which is the gradient."""
    moved = Latents(start := model.encode(picture(model, 0)[None]))
    distil(model, moved, PROMPT, ScoreDistillation(SCALE), 1, optimiser=lambda p: torch.optim.SGD(p, 1.0))
    return next(moved.parameters()).detach() - start


DOES = {
    "predict": (predicted, 1.0),
    "sample": (sampled, SCALE),
    "invert": (inverted, 1.0),
    "null-text": (null_text, SCALE),
    "attend-and-excite": (lambda model: sampled(model, AttendAndExcite(("cube",), refine_at=(), refine_to=())), SCALE),
    "distil": (distilled, SCALE),
}


@pytest.fixture(scope="module")
def done(model):
    """What float32 makes of it."""
    return cache(lambda family, does: DOES[does][0](model(family)))


EACH = [
    pytest.param(family, precision, does, marks=[pytest.mark.slow] if (i + j + k) % min(j + 1, 3) else [])
    for i, family in enumerate(families.FAMILIES)
    for k, precision in enumerate(ROUNDING)
    for j, does in enumerate(DOES)
]
"""Predictions every day, of samples a half, of the rest a third: each on every family, and in every precision."""


@pytest.mark.parametrize(("family", "precision", "does"), EACH)
def test_it_is_finite_and_as_near_to_float32_as_its_roundings_let_it_be(model, done, family, precision, does):
    """A network rounds in each of its layers, one as often up as down: with the root of their number the error grows.

    Guidance by s takes s of one prediction and s - 1 of another, and their errors.
    """
    layers = sum(bool([*m.parameters(recurse=False)]) for m in model(family).network.modules())
    run, scale = DOES[does]
    found, exact = run(model(family, precision)), done(family, does)
    assert found.dtype == torch.float32 and found.isfinite().all()
    bound = ROUNDING[precision] * layers**0.5 * (2 * scale - 1)
    error = (found - exact).norm() / exact.norm()
    assert error <= bound, f"{error:.2g} of {bound:.2g}"
    if precision != "offloaded":
        assert error > 0


def test_it_is_asked_what_is_computed_in_and_not_what_is_stored(model):
    for family in families.FAMILIES:
        assert model(family, "float8").dtype == torch.bfloat16 == dtype_of(model(family, "float8").network)
        assert model(family, "offloaded").device == torch.device("cpu")
    stored = torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)
    with pytest.raises(SfumatoError, match=r"computes nothing in torch.float8_e4m3fn; .*enable_layerwise_casting"):
        dtype_of(stored)


def test_layers_that_casting_leaves_in_another_precision_are_refused_by_name(tmp_path):
    for family in ("pixart", "sd3", "flux"):
        model = cast(str(families.write(family, tmp_path)), "float32")
        with pytest.raises(SfumatoError, match=r"\w+ is in torch.float32, .*in torch.bfloat16; load .*dtype=bfloat16"):
            predicted(model)


def test_a_guidance_that_a_network_in_float16_cannot_read_is_refused_by_name(model):
    with pytest.raises(SfumatoError, match=r"the guidance of .*flux in float16 .*up to 65"):
        denoise(model("flux", "float16"), PROMPT, steps=1, size=64, guide=80.0)
    denoise(model("flux", "float16"), PROMPT, steps=1, size=64, guide=60.0)
