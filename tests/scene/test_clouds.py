"""PLY files of points: there and back, and as other programs write them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.scene.clouds import read_points, write_points

ASCII = b"""ply
format ascii 1.0
comment as nerfstudio writes them
element vertex 2
property float x
property float y
property float z
property uint8 red
property uint8 green
property uint8 blue
end_header
0.5 -1.25 3 255 0 51
1 2 4.5 0 102 255
"""


def test_there_and_back(tmp_path):
    points, colours = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(21).view(7, 3) / 255
    again, shades = read_points(write_points(tmp_path / "a.ply", points, colours))
    torch.testing.assert_close(again, points.double(), atol=0, rtol=0)
    torch.testing.assert_close(shades, colours, atol=1e-6, rtol=0)


def test_text_as_other_programs_write_it(tmp_path):
    (tmp_path / "a.ply").write_bytes(ASCII)
    points, colours = read_points(tmp_path / "a.ply")
    assert points.tolist() == [[0.5, -1.25, 3.0], [1.0, 2.0, 4.5]]
    np.testing.assert_allclose(colours.numpy(), [[1, 0, 0.2], [0, 0.4, 1]], rtol=1e-6)


@pytest.mark.parametrize("order", ["little", "big"])
def test_entries_of_any_kind_and_order_and_faces_behind(tmp_path, order):
    mark = "<" if order == "little" else ">"
    kind = np.dtype([("nx", mark + "f4"), ("z", mark + "f8"), ("y", mark + "i2"), ("x", mark + "f8")])
    table = np.array([(9, 1.5, -2, 3.25), (9, 0.5, 7, np.nan), (9, -1.0, 5, 6.0)], kind)
    head = f"ply\nformat binary_{order}_endian 1.0\nelement vertex 3\nproperty float nx\nproperty double z\n"
    head += "property short y\nproperty double x\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "a.ply").write_bytes(head.encode() + table.tobytes() + b"\x03" + bytes(12))
    points, colours = read_points(tmp_path / "a.ply")
    assert points.tolist() == [[3.25, -2.0, 1.5], [6.0, 5.0, -1.0]], "what is not finite is left out"
    assert colours is None


@pytest.mark.parametrize(
    "data",
    [b"", b"ply\n", ASCII[:-9], ASCII.replace(b"ascii", b"other"), 
     ASCII.replace(b"float x", b"float w"), ASCII.replace(b"vertex", b"face"), ASCII.replace(b"ply", b"obj")],
    ids=["empty", "head", "short", "format", "no x", "faces", "magic"],
)  # fmt: skip
def test_what_is_none_is_one_line(tmp_path, data):
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(SfumatoError, match=r"a\.ply is no PLY of points"):
        read_points(tmp_path / "a.ply")
    with pytest.raises(SfumatoError, match="there is no file"):
        read_points(tmp_path / "none.ply")


def test_a_binary_one_that_is_cut_short_is_refused(tmp_path):
    file = write_points(tmp_path / "a.ply", torch.zeros(5, 3))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SfumatoError, match="cut short"):
        read_points(file)


def test_colours_in_floats_are_parts_of_1(tmp_path):
    (tmp_path / "a.ply").write_bytes(ASCII.replace(b"uint8", b"float").replace(b"255 0 51", b"1 0 0.2"))
    np.testing.assert_allclose(read_points(tmp_path / "a.ply")[1][0].numpy(), [1, 0, 0.2], rtol=1e-6)
