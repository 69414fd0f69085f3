"""Sets of images: panoramas in windows, frames of a video, images of a style, views that agree."""

from sfumato.methods.sets.consi_story import ConsiStory
from sfumato.methods.sets.fate_zero import FateZero
from sfumato.methods.sets.free_init import FreeInit
from sfumato.methods.sets.free_noise import FreeNoise
from sfumato.methods.sets.merge_attend_diffuse import MergeAttendDiffuse
from sfumato.methods.sets.multi_diffusion import MultiDiffusion
from sfumato.methods.sets.pix2video import Pix2Video
from sfumato.methods.sets.shared_attention import SharedAttention
from sfumato.methods.sets.spot_diffusion import SpotDiffusion
from sfumato.methods.sets.style_aligned import StyleAligned
from sfumato.methods.sets.sync_diffusion import SyncDiffusion
from sfumato.methods.sets.sync_tweedies import SyncTweedies
from sfumato.methods.sets.text2video_zero import Text2VideoZero
from sfumato.methods.sets.token_flow import TokenFlow

__all__ = [
    "ConsiStory",
    "FateZero",
    "FreeInit",
    "FreeNoise",
    "MergeAttendDiffuse",
    "MultiDiffusion",
    "Pix2Video",
    "SharedAttention",
    "SpotDiffusion",
    "StyleAligned",
    "SyncDiffusion",
    "SyncTweedies",
    "Text2VideoZero",
    "TokenFlow",
]
