"""Edit pictures by words: painted again from where an inversion found them, and put back at their own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.guidance import Guide, Scales
from sfumato.core.method import Method
from sfumato.core.results import Sample
from sfumato.inversion import Path
from sfumato.media import pictures
from sfumato.media.images import Fitted

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Edited:
    """What edits of pictures came to."""

    pictures: tuple[Picture, ...]
    """At their own sizes, with their own pixels where the edit changed nothing."""
    painted: Float[Tensor, "b 3 H W"]
    """As the model painted them, in [0, 1]."""
    changed: Bool[Tensor, "b h w"]
    """Cells of the latents that are not the source's."""


def edit_pictures(
    model: Backbone,
    fitted: Sequence[Fitted],
    path: Path,
    prompts: Mapping[str, str],
    *,
    methods: Sequence[Method] = (),
    guide: Guide | Scales = 7.5,
    seed: int = 0,
    memory: int | None = None,
) -> Edited:
    """Paint the stream ``target`` of ``prompts`` (one for all pictures) along a path found from ``fitted``.

    An edit changes what differs from the stream ``source``, or, in a run without one, from the pictures themselves.
    Raises ``SfumatoError`` for what ``denoise`` refuses.
    """
    each = {stream: [prompt] * len(fitted) for stream, prompt in prompts.items()}
    out = denoise(model, each, start=path, methods=methods, guide=guide, seed=seed, memory=memory)
    target = out["target"]
    source = out["source"] if "source" in out else Sample(model, path.image.to(target.latents), path.prompts)
    changed, painted = target.differs(source), target.images
    results = (f.restore(pictures.picture(x), c) for f, x, c in zip(fitted, painted, changed, strict=True))
    return Edited(tuple(results), painted, changed)
