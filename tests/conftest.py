"""Shared by all tests: no network, tiny random models of every family and one of the shipped one's kind."""

from __future__ import annotations

import gc
import math
import os
from copy import copy

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", NO_COLOR="1", COLUMNS="100")
gc.set_threshold(100_000, 20, 50)  # imports and small networks make a lot, and next to none of it is in circles

LEVELS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the laws' models compute: cpu, cuda, cuda:1, mps")
    parser.addoption("--dtype", default="float32", help="of their weights: float32, float16, bfloat16")


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Training sets threads and the precision of products, which other tests are not to meet."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True, scope="session")
def lines_of_progress():
    """A slow machine is not to say more than a quick one."""
    from sfumato.io.progress import Lines

    every, Lines.every = Lines.every, math.inf
    yield
    Lines.every = every


@pytest.fixture(autouse=True, scope="module")
def only_what_a_file_makes_is_looked_through():
    """Whoever collects garbage would look through all that thousands of tests are made of: half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device(request):
    """``--device``."""
    return request.config.getoption("device")


@pytest.fixture(scope="session")
def dtype(request):
    """``--dtype``."""
    return request.config.getoption("dtype")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Name -> the family's tiny model, one for all tests; so they leave it as it was."""
    from families import made

    return made(tmp_path_factory.mktemp("families"))


@pytest.fixture
def sd(models):
    """A tiny Stable Diffusion."""
    return models("sd")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """A folder of weights such as ``ship`` writes, of tiny networks; and the networks."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel

    from sfumato.stilllife import tokenizer, weights
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.train.ship import plain

    place = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    start, end = tokenizer.special_ids()
    half = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = half | {
        "vocab_size": tokenizer.vocab_size(),
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    networks = {
        "unet": UNet2DConditionModel(sample_size=16, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **LEVELS),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            norm_num_groups=2,
            mid_block_add_attention=False,
        ),
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=half | {"image_size": 32, "patch_size": 16})),
        "depth": ControlNetModel(conditioning_embedding_out_channels=(4, 4, 8, 8), **LEVELS),
    }
    for name, network in networks.items():
        config = network.config.to_diff_dict() if name == "clip" else plain(network.config)
        weights.save(network.state_dict(), config, place / f"{name}.safetensors")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
    changes = {name + weights.CHANGE: torch.randn(16, 16) * 0.1, "conv_in.weight": torch.randn(8, 8, 3, 3) * 0.1}
    weights.save(changes, {"in_channels": 8}, place / "instruct.safetensors")
    Oracle((8, 8), (1, 1)).save(place / "oracle.safetensors")
    tokenizer.write_tokenizer(place / weights.TOKENIZER)
    weights.write_manifest(place)
    return place, networks


@pytest.fixture
def here(shipped, monkeypatch):
    """``sfumato.stilllife.weights`` reads the tiny model."""
    from sfumato.stilllife import weights

    monkeypatch.setattr(weights, "folder", lambda: shipped[0])
    return shipped[0]


@pytest.fixture(scope="session")
def read_once(shipped):
    """The tiny model, which ``stilllife`` copies."""
    from sfumato.backbones.load import load
    from sfumato.stilllife import weights

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weights, "folder", lambda: shipped[0])
        return load("stilllife", device="cpu")


@pytest.fixture
def stilllife(here, read_once):
    """The tiny model as ``load`` gives it; its networks are all tests', which leave them as they were."""
    model = copy(read_once)
    model._of = ([], None)  # without the texts that others have read
    return model


class Networks:
    """Networks of the built-in model: a command gets those that the one before left as they were, and of a second model
    in one command others. To make them is most of a small command's time; that they are read is what others test."""

    def __init__(self, make):
        self.make, self.kept, self.given = make, {}, None

    def __call__(self, name):
        from sfumato.stilllife import weights

        if self.given is None or name in self.given:
            return self.make(name)
        self.given.add(name)
        key = weights.folder(), name
        network, state = self.kept.get(key, (None, None))
        if network is None or state_of(network) != state:
            network = self.make(name)
            self.kept[key] = network, state_of(network)
        return network


def state_of(network):
    """What a change of it changes: layers, what computes their attention, hooks, settings, the tensors themselves."""
    layers = [
        (name, type(layer), type(getattr(layer, "processor", None)), len(layer._forward_hooks),
         len(layer._forward_pre_hooks), [(k, v) for k, v in vars(layer).items() if isinstance(v, bool | int | float)])
        for name, layer in network.named_modules()
    ]  # fmt: skip
    tensors = [*network.parameters(), *network.buffers()]
    return layers, [(id(t), t.data_ptr(), t._version, t.dtype, t.requires_grad) for t in tensors]


@pytest.fixture(scope="session")
def networks():
    """``Networks``."""
    from sfumato.stilllife import weights

    return Networks(weights.module)


@pytest.fixture(scope="session")
def parsers():
    """``parsers.keep``."""
    from parsers import keep

    undo = keep()
    yield
    undo()


@pytest.fixture
def run(capsys, networks, parsers, monkeypatch):
    """Run a command; returns (exit code, stdout, stderr)."""
    from sfumato import cli
    from sfumato.stilllife import weights

    monkeypatch.setattr(weights, "module", networks)

    def call(*args: object):
        networks.given = set()
        try:
            code = cli.main([str(a) for a in args])
        finally:
            networks.given = None
        out = capsys.readouterr()
        return code, out.out, out.err

    return call
