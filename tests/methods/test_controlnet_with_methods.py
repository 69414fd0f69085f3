"""A depth ControlNet under the methods that read or write attention, or ask the network more than once a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from families import randomised
from torch import Tensor

from sfumato.backbones.controlnets import ControlNet
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.method import Method
from sfumato.methods.control.attend_and_excite import AttendAndExcite
from sfumato.methods.control.box_diff import BoxDiff
from sfumato.methods.control.dense_diffusion import DenseDiffusion
from sfumato.methods.control.layout_guidance import LayoutGuidance
from sfumato.methods.control.linguistic_binding import LinguisticBinding
from sfumato.methods.control.llm_grounded import LlmGrounded
from sfumato.methods.control.region_prompts import RegionPrompts
from sfumato.methods.control.self_attention_guidance import SelfAttentionGuidance
from sfumato.methods.control.self_guidance import SelfGuidance
from sfumato.methods.control.structured_diffusion import StructuredDiffusion
from sfumato.methods.edit.masactrl import MasaCtrl
from sfumato.methods.edit.plug_and_play import PlugAndPlay
from sfumato.methods.edit.prompt_to_prompt import PromptToPrompt
from sfumato.prompts.layout import Layout, Region
from sfumato.stilllife import weights

PROMPT = "a red cube and a blue duck"
EDIT = {"source": PROMPT, "target": "a green cube and a blue duck"}
LAYOUT = Layout((Region("red cube", (0.0, 0.1, 0.5, 0.9)), Region("blue duck", (0.5, 0.2, 1.0, 0.8))))
METHODS: dict[str, tuple[Method, Any]] = {
    "attend-and-excite": (AttendAndExcite(("cube", "duck"), refinements=2), PROMPT),
    "box-diff": (BoxDiff(LAYOUT), PROMPT),
    "dense-diffusion": (DenseDiffusion(LAYOUT, until=1.0), PROMPT),
    "layout-guidance": (LayoutGuidance(LAYOUT, until=1.0, iterations=2), PROMPT),
    "layout-guidance-forward": (LayoutGuidance(LAYOUT, "forward", until=1.0), PROMPT),
    "linguistic-binding": (LinguisticBinding(), PROMPT),
    "llm-grounded": (LlmGrounded(LAYOUT, iterations=(1,), enough=0.0, centred=False), PROMPT),
    "region-prompts": (RegionPrompts(LAYOUT, until=1.0), PROMPT),
    "self-attention-guidance": (SelfAttentionGuidance(), PROMPT),
    "self-guidance": (SelfGuidance(("cube",), to=(0.2, 0.5), early=0.0, until=1.0), PROMPT),
    "structured-diffusion": (StructuredDiffusion(), PROMPT),
    "masactrl": (MasaCtrl(after=0.0, layer=0.0), EDIT),
    "plug-and-play": (PlugAndPlay(res=1.0), EDIT),
    "prompt-to-prompt": (PromptToPrompt(), EDIT),
}


class Counted:
    """A control that counts its calls, and the network's, and looks whether both see the same rows."""

    def __init__(self, inner: ControlNet):
        self.inner, self.calls, self.predictions = inner, 0, 0

    def count(self, *_: Any) -> None:
        self.predictions += 1

    def __call__(self, model: Any, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]:
        assert len(x) == len(cond)
        self.calls += 1
        return self.inner(model, x, t, cond)


@pytest.fixture
def model(stilllife):
    return stilllife


@pytest.fixture(scope="module")
def network(shipped):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weights, "folder", lambda: shipped[0])
        network = weights.module("depth")
    torch.manual_seed(0)
    randomised(network)
    return network


def painted(model, method: Method | None, prompts: Any, *controls: Any) -> Tensor:
    guide = method.around(CFG(3.0)) if isinstance(method, RegionPrompts) else 3.0
    methods = [method] if method else []
    out = denoise(model, prompts, methods=methods, steps=2, size=64, guide=guide, controls=controls, seed=1)
    return torch.cat([p.latents for p in out.values()]) if isinstance(out, dict) else out.latents


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_its_effect_under_a_controlnet(model, network, name):
    """Every prediction of the run, also one that stops early, sees the control; it and the method both count."""
    method, prompts = METHODS[name]
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    control = Counted(ControlNet(network, picture))
    counting = model.network.register_forward_pre_hook(control.count)
    try:
        both = painted(model, method, prompts, control)
    finally:
        counting.remove()
    assert both.isfinite().all() and control.calls == control.predictions >= 2
    assert (both - painted(model, method, prompts)).abs().max() > 1e-4
    assert (both - painted(model, None, prompts, control)).abs().max() > 1e-5
    assert torch.equal(both, painted(model, method, prompts, control))


@pytest.mark.parametrize("name", METHODS)
def test_a_control_of_no_weight_is_none(model, network, name):
    method, prompts = METHODS[name]
    nothing = ControlNet(network, torch.rand(1, 3, 64, 64), scale=0.0)
    plain = painted(model, method, prompts)
    torch.testing.assert_close(painted(model, method, prompts, nothing), plain, atol=1e-4, rtol=1e-4)
