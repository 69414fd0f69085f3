"""Four axes by name: condition, stream, image, view."""

from __future__ import annotations

import torch

from sfumato.core.rows import Rows, single

ROWS = Rows(("source", "target"), ("uncond", "cond"), 2, 3)


def test_rows_lie_condition_by_condition_stream_by_stream_image_by_image_view_by_view():
    order = [(c, s, i, v) for c in ROWS.conditions for s in ROWS.streams for i in range(2) for v in range(3)]
    assert len(ROWS) == len(order) == 24 and ROWS.each == 6
    for stream, condition in ROWS.names:
        at = order[ROWS[stream, condition]]
        assert at == [(condition, stream, i, v) for i in range(2) for v in range(3)]
    seen = [(s, i, v) for s in ROWS.streams for i in range(2) for v in range(3)]
    whole = [(s, i) for s in ROWS.streams for i in range(2)]
    assert seen[ROWS.stream("target")] == [("target", i, v) for i in range(2) for v in range(3)]
    assert whole[ROWS.images("target")] == [("target", 0), ("target", 1)]


def test_what_belongs_to_an_image_is_given_to_all_of_its_views():
    x = torch.arange(4.0).view(2, 2)
    assert ROWS.spread(x)[:, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert single(2).spread(x) is x
