"""Heads on frozen features: what is read once, exact resume, and a file that says what it does not fit."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError
from sfumato.learning.heads import (
    HEADER,
    Examples,
    Given,
    Head,
    HeadMethod,
    Projection,
    Standard,
    cells,
    dropping,
    train,
)
from sfumato.reading.reader import read
from sfumato.reading.results import Segments


@dataclass(frozen=True)
class Mean(Settings):
    """Describes an image by its pixels, 2 x 2 a cell."""

    lean: float = 0.0
    """Added towards the right."""

    def features(self, reader):
        return nn.functional.avg_pool2d(reader.pixels, 2) + self.lean * torch.linspace(0, 1, reader.size[1] // 2)


@dataclass(frozen=True)
class Classes(HeadMethod):
    """Learns labels by a linear layer."""

    wants = ("labels",)
    mirrors: bool = False
    steps: int = 4
    rate: float = 0.1
    seed: int = 0
    drop: float = 0.0

    def sizes(self, examples):
        return {**super().sizes(examples), "classes": len(examples.names)}

    def network(self, width, classes):
        return nn.Sequential(Standard(width), nn.Linear(width, classes))

    def loss(self, network, examples, step):
        which = [step % len(examples)]
        x = dropping(self.drop, self.seed, step)(cells(examples.maps(which)))
        return nn.functional.cross_entropy(network(x)[0], examples.pooled(examples.labels)[which].flatten())

    def answer(self, head, maps, size):
        both = [head.network(cells(map[None]))[0].softmax(1).T.unflatten(1, map.shape[1:]) for map in maps]
        return Segments(sum(m if i == 0 else m.flip(-1) for i, m in enumerate(both)) / len(both), size, head.names)


METHOD, SOURCE, NAMES = Classes(), Mean(), ("dark", "light")
KNOWN = {"Classes": Classes, "Mean": Mean}.__getitem__


def pictures(n=3):
    """Left dark, right light."""
    images = 0.3 * torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[:, :, :, 8:] += 0.6
    labels = torch.zeros(n, 16, 16).long()
    labels[:, :, 8:] = 1
    return images, labels


@pytest.fixture
def taught(sd):
    images, labels = pictures()
    examples = Examples.of(METHOD, sd, SOURCE, list(images), labels=labels, names=NAMES)
    return lambda method=METHOD, **options: train(method, examples, model=sd, source=SOURCE, **options)


def same(a, b):
    return all(torch.equal(v, b.network.state_dict()[k]) for k, v in a.network.state_dict().items())


def test_pictures_are_read_once_and_a_head_reads_others(sd, taught):
    images, labels = pictures()
    examples = Examples.of(METHOD, sd, SOURCE, list(images), labels=labels, names=NAMES)
    torch.testing.assert_close(examples.maps([1])[0], nn.functional.avg_pool2d(images[1], 2).half().float())
    assert examples.width == 3 and examples.grid == (8, 8) and len(examples) == 3
    head = taught(steps=40)
    with read(sd, images[0].flip(-1)) as reader:
        found = head(reader)
    assert torch.equal(found.labels, labels[0].flip(-1)) and found.names == NAMES
    assert head.about == {"steps": 40, "pictures": 3}


def test_a_mirrored_image_is_read_as_well_where_that_is_asked(sd, taught):
    head = replace(taught(replace(METHOD, mirrors=True), steps=2), source=Mean(1.0))
    image = pictures()[0][0]
    with read(sd, image) as one, read(sd, image.flip(-1)) as other:
        torch.testing.assert_close(head(one).scores, head(other).scores.flip(-1))
        assert len(head.features(one)) == 2
        alone = replace(head, method=METHOD)
        assert not torch.allclose(alone(one).scores, head(one).scores)


def test_a_run_that_is_cut_off_goes_on_bit_for_bit(taught, tmp_path):
    method = replace(METHOD, drop=0.4)

    def cut(run):
        if run.step == 2:
            raise KeyboardInterrupt

    whole, half = taught(method), taught(method, steps=2)
    with suppress(KeyboardInterrupt):
        taught(method, keep=tmp_path / "cut", on_progress=cut)
    steps = []
    found = taught(method, keep=tmp_path / "cut", on_progress=lambda run: steps.append(run.step))
    assert same(found, whole) and not same(half, whole) and steps == [3, 4]
    with pytest.raises(SfumatoError, match=r"of another run.*it has rate=0.1, and this run rate=0.2"):
        taught(replace(method, rate=0.2), keep=tmp_path / "cut")


@dataclass(frozen=True)
class Still(Classes):
    """Whose rate is nothing from the start."""

    clip: float | None = 1.0

    def paced(self, rate, step, fraction):
        return 0.0


def test_rates_and_the_clipping_of_gradients_are_the_methods(taught):
    norms = []
    head = taught(Still(), on_progress=lambda run: norms.append(float(run.norm)))
    begun = Still().begun(head.sizes, "").state_dict()
    assert all(torch.equal(value, begun[key]) for key, value in head.network.state_dict().items())
    assert all(norms) and not same(taught(), head)


def test_the_same_seed_gives_the_same_head_and_another_another(taught):
    torch.manual_seed(1)
    one = taught()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(taught(), one) and torch.equal(torch.random.get_rng_state(), state)
    assert not same(taught(replace(METHOD, seed=1)), one)


def test_a_file_is_the_head(sd, taught, tmp_path):
    head = taught(side=16)
    head.save(tmp_path / "head.safetensors")
    found = Head.load(tmp_path / "head.safetensors", KNOWN)
    assert (found.method, found.source, found.names, found.model) == (METHOD, SOURCE, NAMES, Path(sd.name).name)
    assert found.side == 16 and found.about == head.about and same(found, head)
    found.check(sd)  # which is known by the name of its folder, wherever that lies


def test_what_does_not_fit_is_named(models, taught, tmp_path):
    head, file = taught(), tmp_path / "head.safetensors"
    head.save(file)
    other = models("sdxl")
    wrong = rf"Classes learned of .*\(Mean, 3 numbers a cell\).*of {other.name}"
    with read(other, pictures()[0][0]) as reader, pytest.raises(SfumatoError, match=wrong):
        head(reader)
    with pytest.raises(SfumatoError, match="cannot read 4 numbers a cell"):
        head.of([torch.zeros(4, 8, 8)], (16, 16))
    with pytest.raises(SfumatoError, match=r"there is no head .*sfumato train-head DATA METHOD"):
        Head.load(tmp_path / "none", KNOWN)
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(SfumatoError, match=r"is no head that sfumato train-head wrote"):
        Head.load(tmp_path / "other", KNOWN)
    tensors = head.network.state_dict()
    for change in ({"settings": {"colour": 1}}, {"sizes": {"width": 4, "classes": 2}}):
        about = {"method": "Classes", "settings": {}, "sizes": dict(head.sizes), "source": "Mean", "features": {},
                 "side": None, "model": "", "names": [], "about": {}} | change  # fmt: skip
        save_file(tensors, file, {HEADER: json.dumps(about)})
        with pytest.raises(SfumatoError, match=r"a head of Classes that this version cannot read \("):
            Head.load(file, KNOWN)


def test_bad_examples_are_refused(sd):
    images, labels = pictures()
    with pytest.raises(SfumatoError, match="there is none"):
        Examples.of(METHOD, sd, SOURCE, [])
    with pytest.raises(SfumatoError, match=r"picture 2 has features of .*crop all pictures"):
        Examples.of(METHOD, sd, SOURCE, [images[0], images[1, :, :14]])
    with pytest.raises(SfumatoError, match="each picture has its labels; got 3 pictures and 2 labels"):
        Examples.of(METHOD, sd, SOURCE, list(images), labels=labels[:2])
    with pytest.raises(SfumatoError, match="Classes learns from pictures with labels"):
        train(METHOD, Examples.of(METHOD, sd, SOURCE, list(images)))


def test_features_that_are_given_need_no_model(sd):
    images, labels = pictures()
    maps = [nn.functional.avg_pool2d(image, 2)[None] for image in images]
    head = train(METHOD, Examples.given(maps, labels=labels, names=NAMES), steps=40)
    assert torch.equal(head.of([maps[0][0]], (16, 16)).labels, labels[0])
    assert head.source == Given() and head.model == ""
    with read(sd, images[0]) as reader, pytest.raises(SfumatoError, match="features that are given, and none are"):
        head(reader)


def test_standard_features_have_mean_zero_and_deviation_one():
    maps = torch.randn(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    examples, layer = Examples.given(list(maps)), Standard(3)
    assert torch.equal(layer(maps.flatten(3).transpose(2, 3)), maps.flatten(3).transpose(2, 3))
    layer.learn(examples)
    found = layer(maps.half().float().flatten(3).transpose(2, 3)).flatten(0, 2)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(3))


def test_a_projection_is_a_line_and_a_bend():
    """By hand: (1, -2) through w = (1, 1) is -1; through the identity and a ReLU, then (10, 100): 10; in all 9."""
    net = Projection(2, 1)
    net.load_state_dict({
        "linear.weight": torch.ones(1, 2), "linear.bias": torch.zeros(1), "nonlinear.0.weight": torch.eye(2),
        "nonlinear.0.bias": torch.zeros(2), "nonlinear.2.weight": torch.tensor([[10.0, 100.0]]),
        "nonlinear.2.bias": torch.zeros(1),
    })  # fmt: skip
    x = torch.tensor([[1.0, -2.0]])
    assert net(x).item() == 9 and net(x, lambda x: 2 * x).item() == 18
    assert Projection(2, 1, nonlinear=False)(x).shape == (1, 1)


def test_channels_are_dropped_in_all_cells_of_a_picture_and_the_mean_stays():
    x = torch.ones(3, 5, 4000)
    drop = dropping(0.25, 0, 7)
    one, two = drop(x), drop(x)
    assert torch.equal(one, one[:, :1].expand_as(one)) and not torch.equal(one, two)
    assert not torch.equal(one[0], one[1]) and torch.equal(dropping(0.25, 0, 7)(x), one)
    assert not torch.equal(dropping(0.25, 0, 8)(x), one) and not torch.equal(dropping(0.25, 1, 7)(x), one)
    assert set(one.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert abs(one.mean() - 1) < 0.03 and dropping(0, 0, 7)(x) is x
