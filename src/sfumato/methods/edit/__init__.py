"""Editing images by prompts."""

from sfumato.methods.edit.prompt_to_prompt import LocalBlend, PromptToPrompt

__all__ = ["LocalBlend", "PromptToPrompt"]
