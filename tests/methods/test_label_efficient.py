"""Label-efficient segmentation: features of single pixels are the whole's, ten perceptrons are ten, on every family."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.methods.perceive.label_efficient import (
    Activations,
    Classifier,
    Ensemble,
    LabelEfficient,
    decoder,
    divergence,
    doubtful,
    pixels_of,
    voted,
)
from sfumato.ops.correspondence import middles
from sfumato.reading.reader import read

QUICK = LabelEfficient(members=3, batch=32, epochs=3, sure=1, pixels=200, t=(50, 250))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("labels"))


def halves(n: int, h: int = 40, w: int = 48):
    """Images whose left is dark red and whose right is light blue, from another column on in each."""
    images, labels = (
        torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(0)) * 0.2,
        torch.zeros(n, h, w).long(),
    )
    for i in range(n):
        labels[i, :, 12 + 6 * i :] = 1
        images[i] += torch.where(
            labels[i] == 0, torch.tensor([0.3, 0, 0])[:, None, None], torch.tensor([0.3, 0.3, 0.8])[:, None, None]
        )
    return list(images.clamp(0, 1)), list(labels)


def test_features_of_single_pixels_are_those_of_maps_made_larger():
    """Of images and maps of several sizes."""
    store, whole = Activations(), []
    for n, grid in enumerate(((3, 5), (4, 2))):
        maps = [torch.randn(2, *grid, generator=torch.Generator().manual_seed(n)), torch.randn(3, 6, 6)]
        store.add(maps)
        halved = [map.half().float()[None] for map in maps]
        whole.append(torch.cat([F.interpolate(m, (9, 11), mode="bilinear") for m in halved], 1)[0].flatten(1).T)
    for image in (0, 1):
        found = store.gather(torch.full((99,), image), middles((9, 11)))
        torch.testing.assert_close(found, whole[image])
    some = store.gather(torch.tensor([1, 0]), middles((9, 11))[[7, 50]])
    torch.testing.assert_close(some, torch.stack([whole[1][7], whole[0][50]]))
    assert store.width == 5 and store.bytes == 2 * (2 * (15 + 8) + 3 * 72)


def network(p: dict[str, torch.Tensor], m: int) -> torch.nn.Module:
    """One member as torch's own layers."""
    layers: list[torch.nn.Module] = []
    for n in range(3):
        _, a, b = p[f"weight{n}"].shape
        linear = torch.nn.Linear(a, b)
        linear.weight.data, linear.bias.data = p[f"weight{n}"][m].T.clone(), p[f"bias{n}"][m, 0].clone()
        layers.append(linear)
        if n < 2:
            layers += [torch.nn.ReLU(), torch.nn.BatchNorm1d(linear.out_features)]
    return torch.nn.Sequential(*layers)


def test_ten_side_by_side_learn_as_each_would_alone():
    """Three batches of Adam, beside torch's layers: the same weights, running moments and predictions."""
    x = torch.randn(96, 7, generator=torch.Generator().manual_seed(1))
    truth = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    how = LabelEfficient(members=2, batch=32, epochs=1)
    net = Ensemble.made(2, (7, 6, 5, 3), torch.Generator().manual_seed(0))
    alone = [network(net.tensors, m) for m in range(2)]
    dice = torch.Generator().manual_seed(5)
    orders = torch.stack([torch.randperm(96, generator=dice) for _ in range(2)])
    learned = net.trained(lambda some: x[some], truth, how, torch.Generator().manual_seed(5))
    for m, one in enumerate(alone):
        optimizer = torch.optim.Adam(one.parameters(), lr=how.rate)
        for some in orders[m].split(32):
            optimizer.zero_grad()
            F.cross_entropy(one(x[some]), truth[some]).backward()
            optimizer.step()
        one.eval()
        torch.testing.assert_close(learned(x.expand(2, -1, -1))[m], one(x), atol=1e-4, rtol=1e-3)


def test_each_member_stops_when_it_no_longer_gets_better():
    """With nothing to learn (a rate of 0) the loss changes by batches alone; the weights kept are the first."""
    x, truth = torch.randn(64, 4), torch.zeros(64).long()
    seen = []
    how = LabelEfficient(members=2, batch=32, rate=0.0, sure=1, patience=3, epochs=100)
    net = Ensemble.made(2, (4, 3, 3, 2), torch.Generator().manual_seed(0))

    def features(some):
        seen.append(len(some))
        return x[some]

    net.trained(features, truth, how, torch.Generator().manual_seed(0))
    assert 2 + 4 <= len(seen) < 100 and set(seen) == {64}


def test_the_first_layer_may_come_before_the_interpolation():
    maps = [torch.randn(3, 2, 4), torch.randn(2, 5, 5), torch.randn(1, 2, 4)]
    net = Ensemble.made(2, (6, 5, 4, 3), torch.Generator().manual_seed(0))
    net.tensors["bias0"] += 0.3
    pixels = torch.cat([F.interpolate(m[None], (7, 9), mode="bilinear") for m in maps], 1)[0].flatten(1).T
    wanted = net(pixels.expand(2, -1, -1)).softmax(2).transpose(1, 2).unflatten(2, (7, 9))
    torch.testing.assert_close(net.of_maps(maps, (7, 9)), wanted)


def test_standard_features_are_folded_into_the_first_layer():
    net, x = Ensemble.made(2, (6, 5, 4, 3), torch.Generator().manual_seed(0)), torch.randn(8, 6) * 5 + 3
    mean, scale = x.mean(0), x.std(0)
    torch.testing.assert_close(
        net.folded(mean, scale)(x.expand(2, -1, -1)), net(((x - mean) / scale).expand(2, -1, -1)), atol=1e-5, rtol=1e-4
    )


def test_votes_are_the_mode_and_ties_go_by_probability():
    p = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.0, 0.9, 0.1]]).view(3, 3, 1, 1)
    assert int(p.mean(0).argmax(0)) == 1 and int(voted(p).argmax(0)) == 0
    assert int(voted(p[1:]).argmax(0)) == 1  # one vote each
    torch.testing.assert_close(voted(p).sum(0), torch.ones(1, 1))


def test_uncertainty_is_the_divergence_of_jensen_and_shannon():
    p = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    mean = p.mean(0)
    wanted = (p * (p / mean).log()).sum(1).mean(0)  # mean divergence of Kullback and Leibler from the mean
    torch.testing.assert_close(divergence(p), wanted)
    assert not divergence(p[:1].expand(4, -1, -1, -1)).abs().gt(1e-6).any()
    sure = torch.eye(2).view(2, 2, 1)
    torch.testing.assert_close(divergence(sure), torch.tensor([2.0]).log())
    found = torch.arange(20.0).view(4, 5)
    assert doubtful(found).nonzero().tolist() == [[3, 3], [3, 4]]


def test_rare_classes_and_unlabelled_pixels_are_not_learned_from():
    labels = torch.zeros(6, 10).long()
    labels[0, :3], labels[5] = 1, -1
    at, what = pixels_of(labels, 4, 0, torch.Generator())
    assert len(at) == 47 and not what.any()
    assert set(pixels_of(labels, 3, 0, torch.Generator())[1].tolist()) == {0, 1}
    at, what = pixels_of(labels, 1, 9, torch.Generator().manual_seed(0))
    x, y = (at * torch.tensor([10, 6])).long().T
    assert len(at) == 9 and torch.equal(labels[y, x], what)


def test_published_blocks_lie_at_the_same_part_of_the_decoder(made):
    model = made("sd")
    ends = [layer.path for layer in decoder(model, range(18))]
    assert ends == [
        "up_blocks.0.resnets.0",
        "up_blocks.0.upsamplers.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
    ]
    assert [layer.path for layer in decoder(model, (17, 0))] == [ends[0], ends[-1]]
    assert [layer.kind for layer in decoder(made("pixart"), (17,))] == ["tokens"]


@pytest.mark.parametrize("name", families.SOME)
def test_every_family_learns_where_two_halves_meet(made, name, tmp_path):
    """As well from its features as their resolution allows; what is saved says the same."""
    model = made(name)
    images, labels = halves(3)
    method = replace(QUICK, epochs=8, standard=True)
    found = method.fit(model, images, labels, names=("left", "right"), side=families.side(model))
    with read(model, images[1], families.side(model)) as reader:
        segments = found.segments(reader)
        assert segments.names == ("left", "right") and segments.labels.shape == (40, 48)
        assert float((segments.labels == labels[1]).float().mean()) > 0.8
        found.save(tmp_path / "two.safetensors")
        again = Classifier.load(tmp_path / "two.safetensors")
        assert again.method == method and again.side == found.side
        assert torch.equal(again.segments(reader).scores, segments.scores)
        assert found.uncertainty(reader).shape == (40, 48)


def test_the_same_seed_learns_the_same_and_pixels_alone_need_no_network(made):
    images, labels = halves(3)
    method = replace(QUICK, of="pixels", epochs=12, rate=1e-2)
    a, b = (method.fit(made("sd"), images, labels) for _ in range(2))
    assert all(torch.equal(a.net.tensors[k], b.net.tensors[k]) for k in a.net.tensors)
    reader = read(made("sd"), images[0])
    assert float((a.segments(reader).labels == labels[0]).float().mean()) > 0.95
    assert "latents" not in reader.__dict__


def test_what_it_cannot_do_is_said(made, tmp_path):
    model, (images, labels) = made("sd"), halves(2)
    for match, options in (
        ("one step t or several", {"t": ()}),
        ("unknown of 'words'; known: features, pixels", {"of": "words"}),
        ("two hidden widths", {"hidden": (8,)}),
    ):
        with pytest.raises(SfumatoError, match=match):
            LabelEfficient(**options)  # pyright: ignore
    with pytest.raises(SfumatoError, match="each image has its labels"):
        QUICK.fit(model, images, labels[:1])
    with pytest.raises(SfumatoError, match="they lie pixel on pixel"):
        QUICK.fit(model, images[:1], [labels[0][:5]])
    with pytest.raises(SfumatoError, match="nothing to learn"):
        QUICK.fit(model, images[:1], [labels[0] - 5], side=64)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(SfumatoError, match="not a classifier"):
        Classifier.load(tmp_path / "no.safetensors")
    found = replace(QUICK, of="pixels").fit(model, images, labels)
    with pytest.raises(SfumatoError, match="learn again for it"):
        replace(found, method=QUICK).segments(read(model, images[0], 64))
