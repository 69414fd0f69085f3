"""Sets of images that agree: panoramas that are painted in windows."""

from sfumato.methods.sets.merge_attend_diffuse import MergeAttendDiffuse
from sfumato.methods.sets.spot_diffusion import SpotDiffusion
from sfumato.methods.sets.sync_diffusion import SyncDiffusion
from sfumato.methods.sets.sync_tweedies import SyncTweedies

__all__ = ["MergeAttendDiffuse", "SpotDiffusion", "SyncDiffusion", "SyncTweedies"]
