"""Editing images: by prompts, instructions, masks, moves, and the looks of other images."""

from sfumato.methods.edit.blended_latents import BlendedLatents
from sfumato.methods.edit.collaborative_editing import CollaborativeEditing
from sfumato.methods.edit.cross_image_attention import CrossImageAttention
from sfumato.methods.edit.delta_denoising import DeltaDenoising
from sfumato.methods.edit.diff_edit import DiffEdit
from sfumato.methods.edit.eye_for_an_eye import EyeForAnEye
from sfumato.methods.edit.feature_injection import Injection
from sfumato.methods.edit.feature_transfer import FeatureTransfer
from sfumato.methods.edit.flow_edit import FlowEdit
from sfumato.methods.edit.instruct_pix2pix import InstructPix2Pix
from sfumato.methods.edit.kv_edit import KVEdit
from sfumato.methods.edit.ledits import Ledits
from sfumato.methods.edit.masactrl import MasaCtrl
from sfumato.methods.edit.plug_and_play import PlugAndPlay
from sfumato.methods.edit.prompt_to_prompt import LocalBlend, PromptToPrompt
from sfumato.methods.edit.sdedit import SDEdit
from sfumato.methods.edit.stable_flow import StableFlow

__all__ = [
    "BlendedLatents",
    "CollaborativeEditing",
    "CrossImageAttention",
    "DeltaDenoising",
    "DiffEdit",
    "EyeForAnEye",
    "FeatureTransfer",
    "FlowEdit",
    "Injection",
    "InstructPix2Pix",
    "KVEdit",
    "Ledits",
    "LocalBlend",
    "MasaCtrl",
    "PlugAndPlay",
    "PromptToPrompt",
    "SDEdit",
    "StableFlow",
]
