"""Metrics of recognition, against cases counted by hand, in both protocols."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.metrics.matching import Found, normalised_error, pck
from sfumato.metrics.segmentation import miou_of_images, miou_per_image, miou_per_set, named_iou

A = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])


def test_names_of_segments_do_not_matter_but_they_do_to_a_set():
    swapped = 1 - A
    assert miou_per_image([swapped, A], [A, A], 2) == (1.0, 1.0)
    assert miou_of_images([swapped, A], [A, A]) == 1.0
    mean, right = miou_per_set([swapped, A], [A, A], 2)
    assert right == 0.5 and mean == pytest.approx(1 / 3)
    assert named_iou([swapped], [A], 2).tolist() == [0.0, 0.0]


def test_a_case_counted_by_hand():
    found = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1]])
    # class 0: 4 of 6; class 1: 2 of 4
    expected = (4 / 6 + 2 / 4) / 2
    assert miou_per_image([found], [A], 2)[0] == pytest.approx(expected)
    assert miou_of_images([found], [A]) == pytest.approx(expected)
    np.testing.assert_allclose(named_iou([found], [A], 3)[:2], [4 / 6, 2 / 4])
    assert np.isnan(named_iou([found], [A], 3)[2])


def test_surplus_segments_are_lost_and_too_few_are_misses():
    many = torch.tensor([[0, 1, 2, 2], [0, 1, 2, 2]])
    assert miou_per_image([many], [A], 2)[0] == pytest.approx((2 / 4 + 1) / 2)
    one = torch.zeros_like(A)
    mean, right = miou_per_image([one], [A], 2)
    assert (mean, right) == (pytest.approx((4 / 8 + 0) / 2), 0.5)


def test_what_is_not_labelled_is_not_counted():
    truth = A.clone()
    truth[:, 0] = -1
    assert miou_per_image([A], [truth], 2) == (1.0, 1.0)
    assert miou_of_images([A], [truth]) == 1.0
    with pytest.raises(SfumatoError, match="different sizes"):
        miou_per_image([A[:, :2]], [A], 2)


def test_pck_by_point_and_by_image_by_box_and_by_image_side():
    zero = torch.zeros(1, 2)
    near = Found(torch.tensor([[3.0, 4.0]]), zero, box=50, image=100)  # 5 away
    far = Found(torch.tensor([[0.0, 9.0]] * 3), torch.zeros(3, 2), box=50, image=100)
    assert pck([near], 0.1) == 1.0 and pck([near], 0.099) == 0.0
    assert pck([near, far], 0.1) == 0.25
    assert pck([near, far], 0.1, each="image") == 0.5
    assert pck([near, far], 0.1, by="image") == 1.0


def test_normalised_errors_worked_by_hand():
    """Over sizes of 10 and 2: 0.5 and 0.1 in the first image, 2 in the second, whose other landmark is hidden."""
    truth = torch.zeros(2, 2, 2)
    found = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 4.0], [99.0, 99.0]]])
    visible = torch.tensor([[True, True], [True, False]])
    size = torch.tensor([10.0, 2.0])
    assert normalised_error(found, truth, size, visible) == pytest.approx((0.3 + 2) / 2)
    assert normalised_error(found, truth, size, visible, each="point") == pytest.approx(2.6 / 3)
    assert normalised_error(found, truth, size, torch.tensor([[True, True], [False, False]])) == pytest.approx(0.3)
    assert normalised_error(found[:1], truth[:1], size[:1]) == pytest.approx(0.3)
    for bad in ((size, visible & False), (size * 0, visible)):
        with pytest.raises(SfumatoError, match="visible, over sizes above 0"):
            normalised_error(found, truth, *bad)
