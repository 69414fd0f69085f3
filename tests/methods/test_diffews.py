"""DiffewS: the network of the paper restated by plain processors, its episodes, its mask, and exact resume."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import replace

import families
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from sfumato.backbones.load import load
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, train
from sfumato.methods import heads
from sfumato.methods.perceive.diffews import DiffewS, Episodes, FirstLayer, beside, binarised
from sfumato.reading.reader import read

METHOD = DiffewS(batch=2, steps=2, rate=1e-3, shots=2)
NAMES = ("background", "left", "right", "seldom", "small")
SIDE = 32


def pictures(n=6):
    """Noise with a bright square at the left or the right."""
    images = 0.3 * torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(n, SIDE, SIDE).long()
    for i in range(n):
        columns = slice(4, 12) if i % 2 == 0 else slice(20, 30)
        images[i, :, 5 + 2 * i : 15 + 2 * i, columns] += 0.6
        labels[i, 5 + 2 * i : 15 + 2 * i, columns] = 1 + i % 2
    labels[0, 24:, 24:] = 3  # in one picture alone
    labels[:2, 0, :4] = 4  # hardly to be seen
    return images, labels


@pytest.fixture(name="models", scope="module")
def own_models(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("families"))


@pytest.fixture
def examples(sd):
    images, labels = pictures()
    return Examples.of(METHOD, sd, METHOD.source, list(images), side=SIDE, labels=labels, names=NAMES)


def begun(model, method=METHOD):
    return method.begun({"width": model.channels}, model)


def stirred(network):
    """With weights that learned, of changes that begin at zero too."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    return network


def some(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Banked(AttnProcessor):
    """The paper's attention, plainly: the first pass leaves keys and values, the next one reads them beside its own."""

    bank = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        def split(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q, k, v = (split(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        if self.bank is None:
            self.bank = k, v
        else:
            shots = len(self.bank[0]) // len(q)
            more = [x.reshape(len(q), shots, *x.shape[1:]).transpose(1, 2).flatten(2, 3) for x in self.bank]
            k, v = torch.cat([k, more[0]], 2), torch.cat([v, more[1]], 2)
        out = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1) @ v
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def test_it_is_the_papers_network(sd, examples):
    """Two episodes of two shots: the mask is the network's negative, and the loss a mean square."""
    network = stirred(begun(sd))
    problem = Episodes(METHOD, examples, network)
    step = next(s for s in range(9) if len(problem.drawn(s)[0][1]) == 3)
    drawn = problem.drawn(step)
    found = problem.loss(step)

    unet, text = network.model.network, sd.embed([""]).text
    banks = {name: Banked() if "attn1" in name else old for name, old in unet.attn_processors.items()}
    unet.set_attn_processor(banks)
    latents = [examples.maps(pictures) for _, pictures in drawn]
    masks = [torch.cat([problem.mask(kind, i) for i in pictures]) for kind, pictures in drawn]
    unet.conv_in.mask = torch.cat([each[1:] for each in masks])
    unet(torch.cat([each[1:] for each in latents]), 1, text.expand(4, -1, -1))
    unet.conv_in.mask = None
    v = unet(torch.stack([each[0] for each in latents]), 1, text.expand(2, -1, -1)).sample
    wanted = (v + torch.stack([each[0] for each in masks])).square().mean()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    black, white = (sd.encode(torch.full((1, 3, SIDE, SIDE), float(c))) for c in (0, 1))
    inside = (examples.labels[0] == 1).float()  # where there is another class as well
    torch.testing.assert_close(problem.mask(1, 0), sd.encode(inside.expand(1, 3, -1, -1)))
    torch.testing.assert_close(network.painted(torch.zeros(8, 8), (4, 4)), black)
    assert not torch.allclose(black, white)


def test_keys_of_several_images_lie_side_by_side():
    """Two episodes of two images, one head, two tokens: 1 to 4 are the first one's."""
    kv = torch.arange(1.0, 9).view(1, 4, 1, 2, 1).repeat(2, 1, 1, 1, 1)
    assert beside(kv, 2)[0, :, 0, :, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_an_image_as_its_own_mask_is_read_as_the_image_alone(sd):
    network, x = begun(sd), some(2, 4, 8, 8)
    first = network.model.network.conv_in
    assert isinstance(first, FirstLayer)
    first.mask = x
    torch.testing.assert_close(first(x), sd.network.conv_in(x))
    first.mask = None
    assert torch.equal(first(x), sd.network.conv_in(x))


def test_with_nothing_learned_the_network_is_the_models_that_attends_to_the_support_too(sd):
    """Its own keys beside its own are its own: where a support is the image, masked by itself, nothing changes."""
    network, x = begun(sd), some(1, 4, 8, 8)
    with torch.no_grad():
        found = network(x, network.shown(x, x))
        other = network(x, network.shown(x, some(1, 4, 8, 8, seed=1)))
        torch.testing.assert_close(found, -sd.predict(x, sd.schedule.thousandths(1).t, sd.embed([""])))
    assert (found - other).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_reach_what_learns_through_both_passes_and_nothing_else(sd, examples, rank):
    method = replace(METHOD, rank=rank)
    network = stirred(begun(sd, method))
    Episodes(method, examples, network).loss(0).backward()
    learns = dict(network.named)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learns.values())
    assert {"beside.weight", "beside.bias"} < set(learns) and any("lora_A" in n for n in learns) == bool(rank)
    own = {id(p) for p in learns.values()}
    assert all(p.grad is None for p in network.model.network.parameters() if id(p) not in own)
    assert all(p.grad is None for p in sd.network.parameters())
    if not rank:
        assert len(learns) == len(list(sd.network.parameters())) + 2


def test_the_mask_is_where_the_mean_is_above_a_quarter_of_the_greatest_value():
    """Greatest 0.8, so 0.2: means of 0.3, 0.2 (not above) and, of what is clipped, 0.1."""
    image = torch.tensor([[[0.8, 0.2, 0.3]], [[0.1, 0.2, -9.0]], [[0.0, 0.2, 0.0]]])
    thing = binarised(image, 0.25)
    torch.testing.assert_close(thing[1], torch.tensor([[0.375, 0.25, 0.125]]))
    assert thing.argmax(0).tolist() == [[1, 0, 0]]
    assert binarised(torch.zeros(3, 1, 1), 0.25).argmax(0).item() == 0


def test_episodes_are_of_classes_that_two_pictures_show(sd, examples):
    problem = Episodes(METHOD, examples, begun(sd))
    assert problem.seen == {1: [0, 2, 4], 2: [1, 3, 5]}
    drawn = [problem.drawn(step) for step in range(40)]
    for step in drawn:
        assert len(step) == 2 and len({len(pictures) for _, pictures in step}) == 1
        for kind, found in step:
            assert len(set(found)) == len(found) and set(found) <= set(problem.seen[kind])
    flat = [each for step in drawn for each in step]
    assert {kind for kind, _ in flat} == {1, 2} and {len(found) for _, found in flat} == {2, 3}
    assert {found[0] for _, found in flat} == set(range(6))
    assert drawn[7] == problem.drawn(7) != drawn[8]
    few = replace(METHOD, shots=5, without=("left",))
    again = [found for step in range(9) for _, found in Episodes(few, examples, begun(sd)).drawn(step)]
    assert {len(found) for found in again} == {2, 3, 4, 5, 6}
    assert all(found[0] not in found[1:] for found in again if found[0] in (1, 3, 5))
    assert {i for found in again for i in found} >= {1, 3, 5}


def answered(head, model, order=(0, 2)):
    images, labels = pictures()
    readers = [read(model, image) for image in images]
    masks = [(labels[i] == 1).float() for i in order]
    return head.with_support([readers[i] for i in order], masks)(readers[4]).scores


def test_a_run_that_is_cut_off_goes_on_bit_for_bit_and_a_file_is_the_head(sd, examples, tmp_path):
    method = replace(METHOD, batch=1)

    def taught(**options):
        return train(method, examples, model=sd, source=method.source, side=SIDE, **options)

    def cut(run):
        if run.step == 1:
            raise KeyboardInterrupt

    whole, half = taught(), taught(steps=1)
    with suppress(KeyboardInterrupt):
        taught(keep=tmp_path / "cut", on_progress=cut)
    found = taught(keep=tmp_path / "cut")
    tensors = found.network.state_dict()
    assert all(torch.equal(v, tensors[k]) for k, v in whole.network.state_dict().items())
    assert not any(torch.equal(v, tensors[k]) for k, v in half.network.state_dict().items() if "beside" in k)
    before = {k: v.clone() for k, v in begun(sd, method).state_dict().items()}
    assert sum(not torch.equal(v, tensors[k]) for k, v in before.items()) > 0.9 * len(before)
    found.save(tmp_path / "head.safetensors")
    again = heads.load(tmp_path / "head.safetensors")
    assert (again.method, again.source, again.names) == (method, METHOD.source, NAMES)
    assert torch.equal(answered(again, sd), answered(found, sd))
    assert not torch.equal(answered(half, sd), answered(found, sd))


def test_shots_have_no_order_and_count_all(sd, examples):
    head = train(METHOD, examples, model=sd, source=METHOD.source, side=SIDE, steps=1)
    both = answered(head, sd)
    torch.testing.assert_close(both, answered(head, sd, (2, 0)), atol=1e-5, rtol=1e-5)
    assert (both - answered(head, sd, (0,))).abs().max() > 1e-5
    assert torch.equal(both, answered(head, sd)), "the last support is not asked"


def test_rates_fall_to_zero_in_a_straight_line():
    assert [METHOD.paced(2.0, 0, part) for part in (0.0, 0.25, 1.0)] == [2.0, 1.5, 0.0]


def test_the_error_falls(sd, examples):
    losses = []
    method = replace(METHOD, rate=2e-2, shots=1, batch=1)
    train(method, examples, model=sd, source=method.source, steps=9, on_progress=lambda r: losses.append(r.loss))
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_what_it_cannot_learn_or_read_is_refused_in_one_line(models, sd, examples, tmp_path):
    for name in ("sd3", "instruct"):
        with pytest.raises(SfumatoError, match=rf"DiffewS teaches UNets that read .* alone, which .*{name}"):
            begun(models(name))
    assert begun(models("ddpm")).named
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None}
    with pytest.raises(SfumatoError, match="DiffewS asks for 'image->image' attention"):
        begun(load(families.stable_diffusion(network=plain)))
    with pytest.raises(SfumatoError, match="no class is in two of them"):
        train(replace(METHOD, without=NAMES), examples, model=sd)
    with pytest.raises(SfumatoError, match="DiffewS teaches a model's own network, and there is none"):
        train(METHOD, examples)
    head = train(METHOD, examples, model=sd, source=METHOD.source, steps=1)
    with read(sd, pictures()[0][0]) as reader:
        with pytest.raises(SfumatoError, match="looks for what examples show"):
            head(reader)
        with pytest.raises(SfumatoError, match="each support image has a mask"):
            head.with_support([reader], [])
    with read(models("sd2"), pictures()[0][0]) as other, pytest.raises(SfumatoError, match="cannot read those of"):
        head.with_support([other], [torch.ones(SIDE, SIDE)])
    renamed = copy(models("sd2"))
    renamed.name = sd.name
    head.network._parameters.pop("beside/bias")
    with read(renamed, pictures()[0][0]) as other, pytest.raises(SfumatoError, match="of another network than"):
        head.with_support([other], [torch.ones(SIDE, SIDE)])
