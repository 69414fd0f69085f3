"""Sets of images: frames of a video, images of a style, windows and views that agree."""

from sfumato.methods.sets.free_init import FreeInit
from sfumato.methods.sets.free_noise import FreeNoise

__all__ = ["FreeInit", "FreeNoise"]
