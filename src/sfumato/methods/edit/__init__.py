"""Editing images by prompts."""

from sfumato.methods.edit.edict import EDICT
from sfumato.methods.edit.prompt_to_prompt import LocalBlend, PromptToPrompt

__all__ = ["EDICT", "LocalBlend", "PromptToPrompt"]
