"""Any two methods that do not write the same go together in one pass, in either order; two that do are refused."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from families import write

from sfumato.backbones.load import load
from sfumato.core.attention import FUSED
from sfumato.core.denoising import denoise, plan
from sfumato.core.guidance import CFG
from sfumato.core.method import Edit, Method
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion, invert
from sfumato.methods.control import (
    AttendAndExcite,
    BoxDiff,
    ClassifierGuidance,
    DenseDiffusion,
    LayoutGuidance,
    LinguisticBinding,
    LlmGrounded,
    PerturbedAttention,
    RegionPrompts,
    RichText,
    SelfAttentionGuidance,
    SelfGuidance,
    SmoothedEnergy,
    SpatialTemporal,
    StructuredDiffusion,
    UniversalGuidance,
)
from sfumato.methods.edit import (
    BlendedLatents,
    DeltaDenoising,
    DiffEdit,
    FlowEdit,
    Injection,
    MasaCtrl,
    PlugAndPlay,
    PromptToPrompt,
    SDEdit,
)
from sfumato.prompts.layout import Layout, Mask, Region
from sfumato.tasks.chain import Chain

SOURCE, TARGET = "a red cube and a duck", "a blue cube and a duck"
PROMPTS = {"source": SOURCE, "target": TARGET}
LAYOUT = Layout((Region("cube", (0, 0, 0.5, 1)), Region("duck", (0.5, 0, 1, 1))))
MASK = Mask(torch.ones(8, 4).bool().logical_and(torch.arange(4) < 2))
STEPS = 2

METHODS: dict[str, Any] = {
    "p2p": PromptToPrompt(0.5, 0.5),
    "masactrl": MasaCtrl(after=0.0, layer=0.0),
    "pnp": PlugAndPlay(),
    "injection": Injection(right=0.25),
    "attend and excite": AttendAndExcite(words=("cube", "duck"), refinements=1, res=1.0),
    "binding": LinguisticBinding(phrases=("a duck",), res=1.0),
    "structured": StructuredDiffusion(),
    "dense": DenseDiffusion(LAYOUT, until=1.0),
    "layout guidance": LayoutGuidance(LAYOUT, until=1.0, iterations=1),
    "layout forward": LayoutGuidance(LAYOUT, "forward", until=1.0),
    "box diff": BoxDiff(LAYOUT, res=1.0),
    "regions": RegionPrompts(LAYOUT, until=1.0),
    "llm grounded": LlmGrounded(LAYOUT),
    "self-guidance": SelfGuidance(words=("cube",), move=(0.1, 0.0)),
    "rich text": RichText(colours={"cube": "#ff0000"}),
    "spatial-temporal": SpatialTemporal(LAYOUT, epochs=0),
    "sag": SelfAttentionGuidance(),
    "pag": PerturbedAttention(),
    "seg": SmoothedEnergy(),
    "universal": UniversalGuidance(lambda x0: x0.square().sum(), 0.1, on="x0"),
    "classifier": ClassifierGuidance(lambda x, level: -x.square().flatten(1).sum(1), 0.1),
    "blended": BlendedLatents(MASK, steps=STEPS),
    "diff-edit": DiffEdit(MASK, strength=1.0, steps=STEPS),
    "sdedit": SDEdit(1.0, steps=STEPS),
    "flow-edit": FlowEdit(skip=0.5, steps=STEPS),
    "delta": DeltaDenoising(steps=STEPS),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(write("sd", tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def paths(model):
    """Where each of the methods that start from an image starts."""
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {name: invert(model, image, SOURCE, m) for name, m in METHODS.items() if isinstance(m, Inversion)}


def arguments(model, *names: str) -> tuple[list[Method], dict[str, Any]]:
    made = Chain(tuple(METHODS[name] for name in names), names)
    return made.methods, {"guide": CFG(3.0)}


def painted(model, paths, *names: str) -> dict[str, Any]:
    methods, options = arguments(model, *names)
    start = next((paths[name] for name in names if name in paths), None)
    options |= {"start": start} if start is not None else {"steps": STEPS, "size": 64}
    return denoise(model, PROMPTS, methods=methods, seed=3, **options)


def written(model, name: str) -> set[tuple[Any, ...]]:
    """What a method writes, by site, field, step and row."""
    methods, options = arguments(model, name)
    planned = plan(model, PROMPTS, methods=methods, steps=STEPS, size=64, **options)
    return {
        (e.what.pair, e.what.field, part, site, step, row)
        for e in planned.entries
        if isinstance(e.what, Edit)
        for part in (e.what.parts if e.what.field == "qkv" else "-")
        for site in e.sites
        for step in range(*e.steps)
        for row in e.rows
    }


@pytest.fixture(scope="module")
def writes(model):
    return {name: written(model, name) for name in METHODS}


def moments(model, name: str) -> set[str]:
    """The moments of a step that a method takes part in with a function of its own; a path comes first in any case."""
    methods, options = arguments(model, name)
    run = plan(model, PROMPTS, methods=methods, steps=STEPS, size=64, **options).run
    names = ("cond", "before", "denoised", "noise", "after")
    return {at for method in methods for at in names if getattr(method.start(run), at) is not None}


def test_each_runs_alone_and_leaves_nothing_behind(model, paths):
    for name in METHODS:
        out = painted(model, paths, name)
        assert all(p.latents.isfinite().all() for p in out.values()), name
    assert torch.nn.functional.scaled_dot_product_attention is FUSED
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


@pytest.mark.parametrize("first", METHODS)
def test_pairs_go_together_unless_they_write_the_same(model, paths, writes, first):
    for a, b in combinations(METHODS, 2):
        if a != first:
            continue
        if a in paths and b in paths:
            continue  # both say where to start
        if {a, b} == {"llm grounded", "delta"}:
            with pytest.raises(SfumatoError, match="over the model's own levels"):
                painted(model, paths, a, b)
            continue
        if writes[a] & writes[b]:
            with pytest.raises(SfumatoError, match="both write"):
                painted(model, paths, a, b)
            continue
        out = painted(model, paths, a, b)
        # within a moment of a step, the order that is asked for is the order; else there is none
        again = out if moments(model, a) & moments(model, b) else painted(model, paths, b, a)
        for stream in PROMPTS:
            first_one, second = out[stream].latents, again[stream].latents
            assert first_one.isfinite().all(), (a, b)
            torch.testing.assert_close(first_one, second, atol=1e-4, rtol=1e-4, msg=f"{a}, {b}")
