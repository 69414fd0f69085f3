"""What a clip keeps from frame to frame, by where its parts are known to go."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.sound import of_finite
from sfumato.ops.motion import Motion


@of_finite
def warp_error(frames: Float[Tensor, "n 3 h w"], motion: Motion) -> Float[Tensor, "n-1"]:
    """Of each frame but the last, the mean squared difference to what the next one shows of it, of values in [0, 1].

    Only what the next frame shows counts (Lai et al. 2018, section 3.1). It is 0 for a clip in which nothing changes
    its colour as it moves; what lies between pixels is read bilinearly. nan where the next frame shows nothing of it.
    Raises ``SfumatoError`` for a motion of other frames.
    """
    if len(frames) < 2:
        raise SfumatoError(f"a warp error is of two frames or more, got {len(frames)}")
    next, seen = motion.back(frames.double())
    error = (next - frames[:-1].double()).square().mean(1)
    weight = seen.to(error)
    return ((error * weight).sum((1, 2)) / weight.sum((1, 2))).to(frames.dtype)
