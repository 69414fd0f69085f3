"""Steering what is painted: by words, layouts, losses and limits."""

from sfumato.methods.control.attend_and_excite import AttendAndExcite
from sfumato.methods.control.box_diff import BoxDiff
from sfumato.methods.control.classifier_guidance import ClassifierGuidance
from sfumato.methods.control.dense_diffusion import DenseDiffusion
from sfumato.methods.control.dynamic_thresholding import DynamicThresholding
from sfumato.methods.control.given_attention import GivenAttention
from sfumato.methods.control.layout_guidance import LayoutGuidance
from sfumato.methods.control.linguistic_binding import LinguisticBinding
from sfumato.methods.control.llm_grounded import LlmGrounded
from sfumato.methods.control.perturbed_attention import PerturbedAttention
from sfumato.methods.control.region_prompts import RegionPrompts
from sfumato.methods.control.rich_text import RichText
from sfumato.methods.control.self_attention_guidance import SelfAttentionGuidance
from sfumato.methods.control.self_guidance import SelfGuidance
from sfumato.methods.control.smoothed_energy import SmoothedEnergy
from sfumato.methods.control.spatext import SpaText
from sfumato.methods.control.spatial_temporal import SpatialTemporal
from sfumato.methods.control.structured_diffusion import StructuredDiffusion
from sfumato.methods.control.universal_guidance import UniversalGuidance

__all__ = [
    "AttendAndExcite",
    "BoxDiff",
    "ClassifierGuidance",
    "DenseDiffusion",
    "DynamicThresholding",
    "GivenAttention",
    "LayoutGuidance",
    "LinguisticBinding",
    "LlmGrounded",
    "PerturbedAttention",
    "RegionPrompts",
    "RichText",
    "SelfAttentionGuidance",
    "SelfGuidance",
    "SmoothedEnergy",
    "SpaText",
    "SpatialTemporal",
    "StructuredDiffusion",
    "UniversalGuidance",
]
