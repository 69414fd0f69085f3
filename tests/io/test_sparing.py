"""What starts is what is needed: named modules are not imported, and are there and whole for whoever wants them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

LIGHT = """
import sys
from sfumato.cli import main
for args, code, _ in {asked!r}:
    assert main(args) == code, args
    print("---", file=sys.stderr)
heavy = {{"torch", "diffusers", "transformers", "safetensors", "scipy", "matplotlib", "jaxtyping"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
LOADED = """
import gc, sys, warnings
warnings.filterwarnings("error", "of my own")
finders, often, filters = list(sys.meta_path), gc.get_threshold(), list(warnings.filters)
from contextlib import contextmanager
from sfumato.io import terminal
waited = []
@contextmanager
def waiting(what):
    waited.append({"torch", "diffusers"} & {*sys.modules})
    yield
terminal.waiting = waiting
terminal.quiet()
assert waited == [set()]
from sfumato import denoise, load
model = load("stilllife", device="cpu")
denoise(model, "a cube", steps=1, size=32)
heavy = ["peft", "torch._dynamo", "scipy.stats", "scipy.optimize", "requests", "torch.distributed.fsdp"]
heavy += ["torch.distributed.tensor", "transformers.distributed.tensor_parallel", "sympy"]
heavy += ["diffusers.models.transformers.transformer_flux", "diffusers.models.unets.unet_1d"]
assert not {*heavy} & {*sys.modules}, {*heavy} & {*sys.modules}
assert [f for f in warnings.filters if f in filters] == filters and gc.get_threshold() == often

# whoever asks gets the real thing
import diffusers, diffusers.loaders.lora_base as theirs, diffusers.utils.torch_utils as utils
assert not isinstance(model.network, theirs.BaseTunerLayer) and "peft" not in sys.modules
assert not utils.is_compiled_module(model.network) and "torch._dynamo" not in sys.modules
from transformers.distributed import parallel_utils, sharding_utils
assert not isinstance(model.network.conv_in.weight, sharding_utils.DTensor) and "sympy" not in sys.modules
styles = parallel_utils.ALL_PARALLEL_STYLES
assert len(styles) > 15 and {"colwise", "grouped_gemm"} <= {*styles}
assert type(styles) is parallel_utils.ParallelInterface
from torch.distributed.tensor import DTensor, Shard
assert styles["colwise"].output_layouts == Shard(-1) and issubclass(DTensor, sharding_utils.DTensor)
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES as old, ColwiseParallel
assert old is styles and isinstance(styles["colwise"], ColwiseParallel)

class Own(theirs.BaseTunerLayer): pass
import peft
from peft.tuners.tuners_utils import BaseTunerLayer
assert Own.__mro__[1] is BaseTunerLayer
model.network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
layers = [m for m in model.network.modules() if isinstance(m, BaseTunerLayer)]
assert len(layers) == 32 and all(isinstance(m, theirs.BaseTunerLayer) for m in layers)

import diffusers.models.unets as unets
assert "UNet1DModel" in dir(unets) and type(unets) is type(sys)
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert linear_sum_assignment([[1, 0], [0, 1]])[1].tolist() == [1, 0]

# and so do modules that import more of it than is foreseen
import transformers.models
from transformers.utils.import_utils import define_import_structure
read = define_import_structure(transformers.models.__file__)
again = type(transformers.models)("again", transformers.models.__file__, read)
assert again._class_to_module == transformers.models._class_to_module
assert {*again._modules} == {*transformers.models._modules}
from sfumato.io.sparing import sparing
transformers.__path__.append(PLACE)
with sparing():
    import transformers.named, transformers.inside
assert "scipy.stats" in sys.modules and transformers.named.beta.cdf(0.5, 1, 1) == 0.5
betas = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True)
betas.set_timesteps(4)
assert betas.sigmas.isfinite().all() and (betas.sigmas.diff() < 0).all()

# torch's compiler is told what was marked for it, and finds the libraries as they were
import torch._dynamo
from torch._dynamo.trace_rules import is_callable_allowed
from diffusers.models.attention import BasicTransformerBlock
assert is_callable_allowed(BasicTransformerBlock)
assert utils.is_compiled_module.__code__.co_filename == utils.__file__
assert sys.meta_path[: len(finders)] == finders
"""


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_help_lists_and_whatever_is_wrong_need_no_torch(tmp_path: Path):
    """A device, a model, pictures, and a method's options, which are read in its file."""
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64), "red").save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:50])
    edit = ("--from", "a", "--to", "b", "p2p", "--cross", "0.5")
    asked = [
        (["--help"], 0, ""),
        (["methods"], 0, ""),
        (["edit", "--help"], 0, ""),
        (["edit"], 2, "needs --from"),
        (["edit", "nosuch.png", "--from", "a", "p2p"], 2, "needs --to"),
        (["generate", "x", "--stepz", "3"], 2, "unknown option --stepz"),
        (["generate", "x", "--steps", "abc"], 2, "a whole number"),
        (["edit", str(whole), *edit[:4], "p3p"], 2, "unknown method 'p3p'"),
        (["edit", str(whole), *edit[:5], "--croos", "0.5"], 2, "did you mean --cross of p2p"),
        (["edit", str(whole), *edit[:5], "--cross", "much"], 2, "--cross takes a number, got 'much'"),
        (["edit", str(whole), *edit[:5], "--cross", "3"], 2, "lies between 0 and 1, got 3.0"),
        (["edit", str(whole), *edit[:5], "--padding", "middle"], 2, "known: position, end"),
        (["segment", str(whole), "diff-seg", "--kk", "3"], 2, "unknown option --kk"),
        (["generate", "x", "--device", "rocm", "p2p"], 2, "unknown device 'rocm'"),
        (["segment", "--device=cuda:x", str(broken)], 2, "unknown device 'cuda:x'"),
        (["generate", "x", "p2p", "--model", "nosuch"], 2, "unknown model 'nosuch'"),
        (["show", "sites", "nosuch"], 2, "unknown model 'nosuch'"),
        (["edit", "nosuch.png", *edit], 2, "there is no file or folder nosuch.png"),
        (["edit", str(broken), *edit], 2, "cannot read"),
        (["edit", str(whole), *edit, "--appearance", "nosuch.png"], 2, "there is no file nosuch.png"),
        (["invert", str(tmp_path), "x"], 2, "a picture file is meant"),
        (["match", str(broken), "b.png"], 2, "cannot read"),
        (["describe", "nosuch.png"], 2, "there is no file or folder nosuch.png"),
        (["generate", "x", "--inpaint", "nosuch.png", "--mask", "m.png"], 2, "there is no file nosuch.png"),
        (["export", "stilllife"], 2, "needs DIR"),
    ]
    lines = fresh(LIGHT.format(asked=asked)).stderr.split("---\n")
    for (args, code, says), line in zip(asked, lines, strict=False):
        assert says in line and line.count("\n") == (code == 2), (args, line)


def test_a_model_loads_and_paints_without_what_it_does_not_need_and_all_is_there_later(tmp_path: Path):
    """Of a process: what is not imported, and that LoRAs, scipy, networks, marks for compiling are as they would be."""
    (tmp_path / "named.py").write_text("from scipy.stats import beta")
    (tmp_path / "inside.py").write_text("import scipy.optimize.linesearch, scipy.stats.distributions")
    assert fresh(LOADED.replace("PLACE", repr(str(tmp_path)))).stderr == ""
