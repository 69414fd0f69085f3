"""SyncTweedies (Kim et al. 2024, arXiv 2403.14370): what views of a canvas agree on, and on which side of them.

Each view is sampled by itself from its part of one noise, and in each step they agree on what the step says of the
image: of the published cases the second, x0 in the views (section 3, table 1). With windows and a step without noise
all cases come to the same as long as the views agree to the end; they differ where a view is no part of its canvas, as
on a texture, with steps that draw noise, and when the views part (``until``).

| case | they agree on | sampled are |
| --- | --- | --- |
| 1, 2, 3 | eps, x0, the latents at the next level | the views |
| 4, 5, 6 | the same | the canvas; 6 is MultiDiffusion |

Defaults: the paper's, case 2 in all steps. The authors' code lets wide images part after 0.8 of them (``authors``) and
averages the windows' pixels then; here it is their latents. Its first fifth has attention to neighbours, too, which is
a method of its own.

Needs: nothing inside the network.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from sfumato.core.method import Method, Phases, Run
from sfumato.core.settings import Between, PartOfSteps
from sfumato.core.views import Fuse, Side, Views
from sfumato.errors import SfumatoError

CASES: dict[int, tuple[Fuse, Side]] = {
    1: ("eps", "instance"),
    2: ("x0", "instance"),
    3: ("x_prev", "instance"),
    4: ("eps", "canvas"),
    5: ("x0", "canvas"),
    6: ("x_prev", "canvas"),
}
"""What is fused, and which side is sampled."""


@dataclass(frozen=True)
class SyncTweedies(Method):
    """Views agree as in one of the published cases."""

    case: Annotated[int, Between(1, 6)] = 2
    """1 to 6; see the table."""
    until: PartOfSteps = 1.0
    """Up to this part of the steps; then each view goes on by itself, which those of cases 1 to 3 can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.until < 1 and CASES[self.case][1] == "canvas":
            raise SfumatoError(
                f"in case {self.case} there is one canvas, whose views cannot part; take a case from 1 to 3"
            )

    def seeing(self, views: Views) -> Views:
        fuse, side = CASES[self.case]
        try:
            same: Any = views
            return replace(same, fuse=fuse, side=side, until=self.until)
        except TypeError:
            raise SfumatoError(
                f"{type(views).__name__} agree in their own way; SyncTweedies takes tiles, rings, looks"
            ) from None

    def start(self, run: Run) -> Phases:
        return Phases()


CASE_1 = SyncTweedies(1)
"""Noise, in the views."""
CASE_2 = SyncTweedies(2)
"""The image, in the views: SyncTweedies itself."""
CASE_3 = SyncTweedies(3)
"""The latents at the next level, in the views."""
CASE_4 = SyncTweedies(4)
"""Noise, on the canvas."""
CASE_5 = SyncTweedies(5)
"""The image, on the canvas."""
AUTHORS = SyncTweedies(2, 0.8)
"""Wide images in the authors' code: after 0.8 of the steps the windows part."""
