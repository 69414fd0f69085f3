"""No measure makes a number of what is not finite."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch

import sfumato.metrics
from sfumato.errors import SfumatoError
from sfumato.metrics.matching import Found
from sfumato.metrics.sound import of_finite

IMAGES, LABELS = torch.rand(2, 3, 8, 8), torch.zeros(4, 4)
POINTS = Found(torch.zeros(2, 2), torch.zeros(2, 2), 3.0, 8.0)
GIVEN: dict[str, tuple[Any, ...]] = {
    "image_features": (IMAGES, None),
    "text_features": ([], None, None),
    "clip_features": (IMAGES, None),
    "clip_score": (IMAGES, ["a", "b"], None, None),
    "frechet": (torch.rand(3, 4), torch.rand(3, 4)),
    "psnr": (IMAGES, IMAGES),
    "ssim": (torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12, 12)),
    "saturation": (IMAGES,),
    "detail": (IMAGES,),
    "spread": (IMAGES,),
    "pck": ([POINTS],),
    "normalised_error": (torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), torch.ones(2)),
    "confusion": (LABELS, LABELS, 1, 1),
    "named_iou": ([LABELS], [LABELS], 1),
    "miou_per_image": ([LABELS], [LABELS], 1),
    "miou_per_set": ([LABELS], [LABELS], 1),
    "miou_of_images": ([LABELS], [LABELS]),
    "apart": ([IMAGES], [IMAGES]),
    "scales": (IMAGES,),
    "coloured": (IMAGES, IMAGES),
    "warp_error": (IMAGES, None),
    "euclidean": (None, None, None),
    "geodesic": (None, None, None),
    "within": (torch.rand(3),),
    "silhouette_iou": (IMAGES[0], IMAGES[0]),
    "depth_error": (IMAGES[0], IMAGES[0]),
}
"""What each measure takes."""


def measures() -> dict[str, Any]:
    found = {}
    for info in pkgutil.iter_modules(sfumato.metrics.__path__):
        module = importlib.import_module(f"sfumato.metrics.{info.name}")
        own = inspect.getmembers(module, inspect.isfunction)
        found |= {name: f for name, f in own if f.__module__ == module.__name__ and not name.startswith("_")}
    return found


def spoiled(given: Any, value: float) -> Any:
    """With one number that is not finite, in the last place that has any."""
    if isinstance(given, torch.Tensor):
        given = given.clone()
        given.view(-1)[-1] = value
        return given
    if isinstance(given, Found):
        return Found(given.found, spoiled(given.truth, value), given.box, given.image)
    return [spoiled(each, value) for each in given]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "at"), [
    (name, at) for name, given in GIVEN.items() for at, each in enumerate(given)
    if isinstance(each, torch.Tensor) or (isinstance(each, list) and each and not isinstance(each[0], str))
])  # fmt: skip
def test_it_is_refused_by_every_measure_in_every_argument(name, at, value):
    given = list(GIVEN[name])
    given[at] = spoiled(given[at], value)
    with pytest.raises(SfumatoError, match=f"what {name} measures became not finite"):
        measures()[name](*given)


def test_every_measure_is_tried():
    assert set(measures()) == {*GIVEN, "of_finite"}


def test_numbers_arrays_and_options_are_looked_at():
    @of_finite
    def measure(*args: Any, **options: Any) -> float:
        return 1.0

    assert measure(3, "nan", np.array([1, 2]), None, at=0.5) == 1.0
    for bad in (float("nan"), np.array([1.0, np.inf]), [torch.tensor(float("nan"))]):
        for given, options in (((bad,), {}), ((), {"at": bad})):
            with pytest.raises(SfumatoError, match="not finite"):
                measure(*given, **options)
