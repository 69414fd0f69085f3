"""The laws of the inversions, on every family that they run on: back along the path lies the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from laws.painting import ALL, JOINT, SAID, picture
from laws.traces import breaking, unchanged

from sfumato import inversion
from sfumato.inversion import (
    EDICT,
    DDIMInversion,
    Direct,
    EditFriendly,
    Inversion,
    NegativePrompt,
    Noise,
    NullText,
    Residual,
    RFInversion,
    invert,
    reconstruct,
)


@dataclass(frozen=True)
class Row:
    """An inversion in the table."""

    on: Inversion
    scale: float = 3.0
    """A guidance with which it is followed back."""
    families: tuple[str, ...] = ALL
    but: Mapping[str, str] = field(default_factory=dict)
    """Of the laws ``back`` and ``batch`` those that it has not, and why."""


ROWS = (
    Row(DDIMInversion(steps=3), 1.0, but={"back": "the network is told levels that the latents have not reached yet"}),
    Row(Direct(steps=3), 7.5),
    Row(EDICT(steps=3)),
    Row(EditFriendly(steps=3, scale=3.0, skip=0.0)),
    Row(EditFriendly(steps=3, scale=1.0), 1.0),
    Row(NegativePrompt(steps=3), but={"back": "its way back is DDIM's, which misses what is noted there"}),
    Row(Noise(1.0, steps=3), but={"back": "it asks the network for nothing and covers the image"}),
    Row(NullText(steps=2, inner=1), but={"back": "texts are fitted, and come as near as they do"}),
    Row(Residual(steps=3), 2.0, JOINT),
    Row(RFInversion(eta=1.0, stop=1.0, steps=3), families=JOINT),
)
EACH = [
    pytest.param(
        row,
        family,
        id=f"{row.on!r}-{family}",
        marks=[] if j in (0, 1 + i % max(1, len(row.families) - 1)) else [pytest.mark.slow],
    )
    for i, row in enumerate(ROWS)
    for j, family in enumerate(row.families)
]
"""Every day on the first, and on one of the others, which rows take in turn."""
ONE = [pytest.param(row, row.families[0], id=repr(row.on)) for row in ROWS]


def test_every_inversion_is_in_the_table():
    known = {getattr(inversion, name) for name in inversion.__all__}
    kinds = {kind for kind in known if isinstance(kind, type) and issubclass(kind, Inversion)} - {Inversion}
    assert {type(row.on) for row in ROWS} == kinds
    assert all(row.but.keys() <= {"back", "batch"} for row in ROWS)


@pytest.mark.parametrize(("row", "family"), EACH)
def test_the_way_back_leads_to_the_image_and_nothing_is_left_behind(models, exact, row, family):
    """Of each of two images, alone as in a batch; and the first stream of an edit is the image."""
    model = models(family)
    images, said = torch.stack([picture(model, i) for i in range(2)]), SAID["source"]
    with unchanged(model):
        path = invert(model, images, said, row.on)
        back = reconstruct(model, path, row.scale)
    assert path.image.shape == path.latents.shape == back.shape and len(path.image) == 2
    assert path.latents.isfinite().all() and back.isfinite().all() and (path.latents - path.image).abs().max() > 1e-2
    assert not path.track[1:] or torch.equal(path.track[-1], path.image)
    if "back" not in row.but:
        torch.testing.assert_close(back, path.image, atol=1e-4, rtol=1e-4)
    if "batch" not in row.but:
        how = replace(row.on, seed=row.on.seed + 1) if hasattr(row.on, "seed") else row.on  # pyright: ignore
        alone = invert(model, images[1], said[1], how)
        for ours, theirs in zip((path.latents, *path.noises), (alone.latents, *alone.noises), strict=True):
            torch.testing.assert_close(ours[1:], theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("row", "family"), ONE)
def test_the_same_seed_is_the_same_path_also_after_an_error_inside(models, row, family):
    model = models(family)
    image, said = picture(model, 0), SAID["source"][0]
    first = invert(model, image, said, row.on)
    if not isinstance(row.on, Noise):  # which asks no network
        with unchanged(model), breaking(model, 0, 2):
            invert(model, image, said, row.on)
    again = invert(model, image, said, row.on)
    assert torch.equal(again.latents, first.latents)
    for a, b in zip(
        (*again.track, *again.uncond, *again.noises), (*first.track, *first.uncond, *first.noises), strict=True
    ):
        assert torch.equal(a, b)
