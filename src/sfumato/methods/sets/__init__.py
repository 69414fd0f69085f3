"""Sets of images: frames of a video, images of a style, windows and views that agree."""

from sfumato.methods.sets.shared_attention import SharedAttention

__all__ = ["SharedAttention"]
