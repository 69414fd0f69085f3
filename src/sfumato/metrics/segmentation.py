"""How well segments agree with the truth, under each of the published protocols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.sound import of_finite

Labels = Int[Tensor, "h w"]


@of_finite
def confusion(found: Labels, truth: Labels, segments: int, classes: int) -> Int[np.ndarray, "segments classes"]:
    """How many pixels of each class each segment holds. A negative truth is not counted."""
    if found.shape != truth.shape:
        raise SfumatoError(f"labels of {tuple(found.shape)} and a truth of {tuple(truth.shape)} have different sizes")
    counted = truth >= 0
    both = found[counted].long() * classes + truth[counted].long()
    return torch.bincount(both.cpu(), minlength=segments * classes).view(segments, classes).numpy()


@of_finite
def named_iou(found: Sequence[Labels], truth: Sequence[Labels], classes: int) -> np.ndarray:
    """IoU of each class over a set whose segments have the classes' numbers; nan where a class is nowhere."""
    table = np.sum([confusion(f, t, classes, classes) for f, t in zip(found, truth, strict=True)], 0)
    union = table.sum(0) + table.sum(1) - np.diag(table)
    return np.where(table.sum(0) > 0, np.diag(table) / np.maximum(union, 1), np.nan)


@of_finite
def miou_per_image(found: Sequence[Labels], truth: Sequence[Labels], classes: int) -> tuple[float, float]:
    """Mean IoU and share of pixels right, with a Hungarian matching of its own for each image (DiffSeg's protocol).

    Counts are summed over the set before the mean over the classes. Segments beyond the number of classes are
    matched to none, and lost.
    """
    return _matched([_counts(f, t, classes) for f, t in zip(found, truth, strict=True)])


@of_finite
def miou_per_set(found: Sequence[Labels], truth: Sequence[Labels], classes: int) -> tuple[float, float]:
    """Mean IoU and share of pixels right with one Hungarian matching for the whole set (STEGO's protocol).

    Segments must mean the same in all images.
    """
    most = max(int(f.max()) for f in found) + 1
    tables = [confusion(f, t, most, classes) for f, t in zip(found, truth, strict=True)]
    return _matched([np.sum(tables, 0)])


@of_finite
def miou_of_images(found: Sequence[Labels], truth: Sequence[Labels]) -> float:
    """Mean over the images of their own mean IoU over the classes they hold, each image matched by itself."""
    out = []
    for f, t in zip(found, truth, strict=True):
        here, numbers = t.unique(return_inverse=True)
        here = here[here >= 0]
        table = _counts(f, numbers - (len(t.unique()) - len(here)), len(here))
        union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
        iou = table / np.maximum(union, 1)
        out.append(iou[linear_sum_assignment(-iou)].sum() / len(here))
    return float(np.mean(out))


def _counts(found: Labels, truth: Labels, classes: int) -> np.ndarray:
    return confusion(found, truth, int(found.max()) + 1, classes)


def _matched(tables: Sequence[np.ndarray]) -> tuple[float, float]:
    classes = tables[0].shape[1]
    square, sizes = np.zeros((classes, classes)), np.zeros(classes)
    for table in tables:
        segments, matched = linear_sum_assignment(-table)
        square[matched] += table[segments]
        sizes += table.sum(0)
    iou = np.diag(square) / np.maximum(square.sum(1) + sizes - np.diag(square), 1)
    return float(iou[sizes > 0].mean()), float(np.trace(square) / max(1, sizes.sum()))
