"""SDEdit (Meng et al. 2022, arXiv 2108.01073): add noise, and paint the new sentence from there.

What the noise covers is painted anew, what it does not cover stays: more strength changes more, of everything. It is
the baseline of image editing.

Default: strength 0.8, as in diffusers' image-to-image pipeline; the paper's sweet spot lies between 0.3 and 0.6.

Needs: nothing.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.inversion.noise_space import Noise


@dataclass(frozen=True)
class SDEdit(Noise):
    """Starts from the picture with one level of noise."""
