"""Mappers: their features and anchors against formulas, lengths, dropped numbers, cameras, and their files."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.learning.mappers import Mapped, Mapper, around, features, named, numbered, read_as, seen_from

WIDTHS, NORMS = {"clip_l": 6, "clip_g": 4}, {"clip_l": 0.5, "clip_g": 3.0}
TIMES = torch.tensor([0.0, 500.0, 999.0])


def neti(layers=16, waves=64, bypass=0.2, seed=0):
    """As NeTI has it."""
    torch.manual_seed(seed)
    anchors = torch.cartesian_prod(torch.arange(0, 1000, 100.0), torch.arange(float(layers)))
    return Mapper(
        WIDTHS, NORMS, torch.randn(waves, 2) * torch.tensor([0.03, 2.0]), layers=layers, total=1000, hidden=128,
        shift=torch.zeros(2), scale=torch.ones(2), length=1.0, anchors=anchors, bypass=bypass,
    )  # fmt: skip


def of_views(m=3, seed=1, layers=16):
    torch.manual_seed(seed)
    return Mapper(
        WIDTHS, NORMS, torch.randn(8, 2 + m), layers=layers, total=1000, hidden=16, length=math.sqrt(8), bypass=5.0,
        shift=torch.tensor([500.0, 8.0, *[0.0] * m]), scale=torch.tensor([1 / 500, 1 / 8, *[1.0] * m]),
        usual=torch.tensor([10.0, 20.0]),
    )  # fmt: skip


def test_features_are_sines_and_cosines_along_each_wave():
    waves = torch.tensor([[0.5, 2.0], [-1.0, 0.25]])
    found = features(torch.tensor([3.0, 1.0]), waves)
    angles = [0.5 * 3 + 2, -3 + 0.25]
    wanted = [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(found, torch.tensor(wanted))
    assert float(features(torch.randn(2), torch.randn(9, 2)).norm()) == pytest.approx(3)


def test_the_first_layer_begins_as_the_features_of_its_anchors():
    mapper = neti()
    assert mapper.anchors.weight.shape == (160, 128) and mapper.inner[0].weight.shape == (128, 160)
    for row, (t, layer) in {0: (0, 0), 17: (100, 1), 159: (900, 15)}.items():
        own = mapper.encoded(torch.tensor([float(t), float(layer)]))
        assert float(own.norm()) == pytest.approx(1)
        assert torch.equal(mapper.anchors.weight[row], own)
        assert int((mapper.anchors(own) - mapper.anchors.bias).argmax()) == row


def test_it_is_the_published_network():
    mapper = neti(layers=3)
    rows, beside = mapper(TIMES)
    w = mapper.state_dict()
    for n, t in enumerate(TIMES.tolist()):
        for layer in range(3):
            angles = mapper.waves @ torch.tensor([t, float(layer)])
            v = torch.cat([angles.sin(), angles.cos()])
            h = F.linear(v / v.norm(), w["anchors.weight"], w["anchors.bias"])
            for i in range(2):
                h = F.linear(h, w[f"inner.{i}.weight"], w[f"inner.{i}.bias"])
                h = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt() * w[f"norms.{i}.weight"]
                h = h + w[f"norms.{i}.bias"]
                h = torch.where(h > 0, h, 0.01 * h)
            for key, width in WIDTHS.items():
                out = F.linear(h, w[f"out.{key}.weight"], w[f"out.{key}.bias"])
                word, around = out[:width], out[width:]
                close = {"atol": 1e-5, "rtol": 1e-4}
                torch.testing.assert_close(rows[key][n, layer], word / word.norm() * NORMS[key], **close)
                torch.testing.assert_close(beside[key][n, layer], 0.2 * around / around.norm(), **close)


def test_one_whose_waves_do_not_go_along_layers_is_asked_once_for_all():
    mapper = of_views(layers=5)
    mapper.waves[:, 1] = 0
    camera = torch.tensor([10.0, 2.0, 1.0])
    rows, beside = mapper(TIMES, camera)
    once, _ = Mapped([mapper], camera).at(TIMES, 5)
    mapper.waves[:, 1] = 1e-30  # the same sines, of each layer
    each, around_each = mapper(TIMES, camera)
    for key, width in WIDTHS.items():
        assert rows[key].shape == (3, 1, width) and once[key].shape == (3, 1, 1, width)
        assert each[key].shape == (3, 5, width)
        torch.testing.assert_close(each[key], rows[key].expand_as(each[key]))
        torch.testing.assert_close(around_each[key], beside[key].expand_as(each[key]))


def test_it_may_begin_as_a_vector_that_is_given():
    rows = {key: torch.randn(2, width) for key, width in WIDTHS.items()}
    rows = {key: own / own.norm(dim=-1, keepdim=True) * NORMS[key] for key, own in rows.items()}
    mapper, near = of_views(), of_views()
    mapper.begins_as(rows, spread=0.0)
    near.begins_as({key: own / 1000 for key, own in rows.items()})  # of any length
    camera = torch.tensor([10.0, 2.0, 1.0])
    with torch.no_grad():
        (found, beside), (other, _) = mapper(TIMES, camera), near(TIMES, camera)
    for key, own in rows.items():
        torch.testing.assert_close(found[key], own[-1].expand_as(found[key]))
        assert float(F.cosine_similarity(other[key], own[-1], dim=-1).min()) > 0.8
        assert float((other[key][0] - other[key][1]).abs().max()) > 1e-4, "times are read alike"
        torch.testing.assert_close(beside[key], of_views()(TIMES, camera)[1][key])


def test_vectors_are_as_long_as_the_kinds_and_what_is_beside_them_as_its_part():
    rows, beside = neti()(TIMES)
    for key, width in WIDTHS.items():
        assert rows[key].shape == beside[key].shape == (3, 16, width)
        torch.testing.assert_close(rows[key].norm(dim=-1), torch.full((3, 16), NORMS[key]))
        torch.testing.assert_close(beside[key].norm(dim=-1), torch.full((3, 16), 0.2))
    rows, beside = neti(bypass=0)(TIMES)
    assert beside is None and rows["clip_l"].shape == (3, 16, 6)


def test_hidden_numbers_are_dropped_from_one_on():
    mapper = neti(layers=2)
    kept = torch.tensor([[3, 128], [0, 64], [127, 1]])
    rows, beside = mapper(TIMES, kept=kept)
    for n, layer in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)):
        cut = neti(layers=2)
        with torch.no_grad():
            for out in cut.out.values():
                out.weight[:, int(kept[n, layer]) :] = 0
        alone, around = cut(TIMES)
        torch.testing.assert_close(rows["clip_l"][n, layer], alone["clip_l"][n, layer])
        torch.testing.assert_close(beside["clip_g"][n, layer], around["clip_g"][n, layer])
    assert torch.equal(rows["clip_l"][0, 1], mapper(TIMES)[0]["clip_l"][0, 1])


def test_cameras_of_azimuth_and_elevation_are_directions_and_others_themselves():
    found = numbered(torch.tensor([[0.0, 0.0], [90.0, 0.0], [360.0, 0.0], [0.0, 90.0], [180.0, 30.0]]))
    half = math.sqrt(3) / 2
    wanted = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0.5, -half]])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    twelve = torch.randn(3, 12)
    assert torch.equal(numbered(twelve), twelve)


def test_a_camera_is_of_all_rows_or_one_each():
    mapper = of_views()
    cameras = torch.tensor([[0.0, 20.0], [90.0, 20.0], [0.0, 20.0]])
    each, _ = mapper(TIMES[:1].expand(3), cameras)
    one, _ = mapper(TIMES[:1].expand(3), cameras[0])
    assert torch.equal(each["clip_l"][0], each["clip_l"][2]) and torch.equal(each["clip_l"][0], one["clip_l"][0])
    assert (each["clip_l"][0] - each["clip_l"][1]).abs().amax() > 1e-3


def test_a_word_of_two_mappers_has_the_views_vector_first_and_plain_ones_of_the_same_length():
    view, thing = of_views(), neti()
    word = Mapped((view, thing), torch.tensor([[30.0, 20.0]] * 3))
    rows, beside = word.at(TIMES, 16)
    assert rows["clip_g"].shape == (3, 16, 2, 4)
    assert torch.equal(rows["clip_g"][:, :, 0], view(TIMES, torch.tensor([30.0, 20.0]))[0]["clip_g"])
    assert torch.equal(rows["clip_g"][:, :, 1], thing(TIMES)[0]["clip_g"])
    assert torch.equal(beside["clip_l"][:, :, 1], thing(TIMES)[1]["clip_l"])
    assert word.plain["clip_l"].shape == (3, 2, 6)
    torch.testing.assert_close(word.plain["clip_l"].norm(dim=-1), torch.full((3, 2), 0.5))
    middle = thing(torch.tensor([500.0]))[0]["clip_l"].mean(1)
    torch.testing.assert_close(word.plain["clip_l"][1, 1], F.normalize(middle[0], dim=0) * 0.5)
    silent = Mapped((neti(bypass=0), thing)).at(TIMES, 16)[1]
    assert silent["clip_l"][:, :, 0].abs().amax() == 0 and torch.equal(
        silent["clip_l"][:, :, 1], thing(TIMES)[1]["clip_l"]
    )
    with pytest.raises(SfumatoError, match=r"learned with 16 layers .* this model has 4"):
        word.at(TIMES, 4)


def test_it_is_made_again_of_its_tensors():
    kept = named({"view": of_views(), "thing": neti()})
    word = Mapped.of(seen_from(kept, (30.0, 40.0)))
    assert [k.partition(".")[0] for k in kept] == sorted((k.partition(".")[0] for k in kept), reverse=True)
    wanted = Mapped((of_views(), neti()), torch.tensor([30.0, 40.0]))
    for a, b in zip(word.at(TIMES, 16), wanted.at(TIMES, 16), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in WIDTHS)
    assert all(not p.requires_grad for mapper in word.mappers for p in mapper.parameters())
    assert torch.equal(seen_from(kept, (30.0,))["camera"], torch.tensor([30.0, 20.0]))
    assert torch.equal(seen_from(kept, ())["camera"], torch.tensor([10.0, 20.0]))
    assert len(Mapped.of(kept).mappers) == 1 and Mapped.of(kept).plain["clip_l"].shape == (1, 6)
    for camera in ((1.0, 2.0, 3.0), (math.nan,)):
        with pytest.raises(SfumatoError, match="azimuth and elevation in degrees, got"):
            seen_from(kept, camera)
    with pytest.raises(SfumatoError, match="without cameras"):
        seen_from(named({"thing": neti()}), (1.0,))
    with pytest.raises(SfumatoError, match="damaged"):
        Mapped.of({"other.x": torch.zeros(1)})


def test_between_azimuths_the_nearest_count_the_inverse_of_their_distance():
    rows = torch.eye(6)[:, None]
    found = around(rows, torch.tensor([20.0, 350.0, 60.0, 420.0, -300.0]), 3)[:, 0]
    parts = torch.tensor([1 / 20, 1 / 40, 0, 0, 0, 1 / 80])
    torch.testing.assert_close(found[0], parts / parts.sum())
    parts = torch.tensor([1 / 10, 1 / 70, 0, 0, 0, 1 / 50])
    torch.testing.assert_close(found[1], parts / parts.sum())
    assert found[2].tolist() == found[3].tolist() == found[4].tolist() == [0, 1, 0, 0, 0, 0]
    kept = {"ring.clip_l": rows, "ring.neighbours": torch.tensor(2), "ring.usual": torch.zeros(1)}
    assert read_as(kept)["clip_l"].tolist() == [[1, 0, 0, 0, 0, 0]]
    at = read_as(seen_from(kept, (30.0,)))["clip_l"]
    torch.testing.assert_close(at, torch.tensor([[0.5, 0.5, 0, 0, 0, 0]]))
    with pytest.raises(SfumatoError, match="seen from an azimuth in degrees, got"):
        seen_from(kept, (1.0, 2.0))
