"""What starts is what is needed: named modules are not imported, and are there and whole for whoever wants them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.io import sparing

LIGHT = f"""
import sys
sys.path.append({str(Path(__file__).parents[1])!r})
from parsers import keep
keep()
"""
LIGHT += """
from sfumato import cli
from sfumato.commands import help

class Needed(BaseException):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "diffusers", "transformers", "jaxtyping"):
            raise self

def wrong(action):
    kind, many = str(action.metavar), action.nargs if isinstance(action.nargs, int) else 1
    number = "-1" if "INT" in kind or kind in ("N", "PIXELS", "STEPS", "CELLS") else "nan" if "FLOAT" in kind else ""
    return [number or "/nowhere/x"] * many

sys.meta_path.insert(0, Needed())
for args, code, _ in {asked!r}:
    assert cli.main(args) == code, args
    print("---", file=sys.stderr)
seen = {any!r}
for name, line, methods in {lines!r}:
    group, _, word = name.partition(" ")
    command = cli.GROUPS[group](word)[word] if word else cli.COMMANDS[name]
    for action in help.parser(command)._actions:
        option = (action.option_strings or ["--help"])[0]
        if option not in seen and action.nargs != 0 and not action.choices:
            seen.append(option)
            given = [f"{{option}}={{wrong(action)[0]}}"] if len(wrong(action)) == 1 else [option, *wrong(action)]
            own = [*line[: line.index(option)], *line[line.index(option) + 2 :]] if option in line else line
            assert cli.main([*name.split(), *own, *given, *methods]) == 2, (name, given)
assert len(seen) > 100
heavy = {{"torch", "diffusers", "transformers", "scipy", "matplotlib", "jaxtyping"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
OF_ANY_KIND = (
    "--help --out --model --negative --from --to --prompt --as --kind --mask-word --words --names --only --looks"
)
OF_ANY_KIND += " --template --host --for --and --not --variant"
OF_THE_MODEL = "--config --clip-skip --stride --layers --controlnet --control-mode"
"""Whose values a loaded model alone can refuse."""
LOADED = """
import gc, sys, warnings
from importlib.metadata import packages_distributions as packages
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

# what packages hold is looked for when somebody asks
import importlib.metadata
found = diffusers.utils.import_utils._package_map
assert importlib.metadata.packages_distributions is packages and not vars(found), "all packages were looked through"
assert found == packages() and found["PIL"] == packages()["PIL"] and "nobody's" not in found and vars(found)

# and so do modules that import more of it than is foreseen
import transformers.models
from transformers.utils.import_utils import define_import_structure, fetch__all__
for text in ("", "x = 1", "# __all__", "__all__ = ['a']", "a\\n__all__ = ['a']\\n__all__ = [\\n 'b',\\n]\\nc\\n"):
    assert fetch__all__(text) == fetch__all__.__wrapped__(text), text
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


def fresh(code: str, place: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_help_lists_and_whatever_is_wrong_need_no_torch(tmp_path: Path):
    """A device, a model, pictures, a method's options, which are read in its file; and of each option of all commands a
    number out of range, or a file that is not there."""
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64), "red").save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:50])
    edit = ("--from", "a", "--to", "b", "p2p", "--cross", "0.5")
    rows = tmp_path / "rows.csv"
    rows.write_text("picture,from,to,method\nwhole.png,a,b,p2p --croos .3\n")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('[{"phrase": "x", "mask": "nosuch.png"}]')
    scenes = {"edit": ("blue", "csd-edit"), "segment": ("--words", "a")}
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
        (["edit", str(whole), *edit, "--grid", "croos=1,2"], 2, "did you mean cross?"),
        (["edit", str(whole), *edit, "--grid", "cross=0.5,2"], 2, "lies between 0 and 1, got 2.0"),
        (["edit", "--list", str(rows)], 2, "line 2: unknown option --croos"),
        (["edit", str(whole), *edit[:4], "--compare", "p2p,masactrl:no"], 2, "unknown preset of masactrl 'no'"),
        (["edit", str(whole), *edit[:5], "--box", "a", "1,2"], 2, "a box is left,top,right,bottom"),
        (["edit", str(whole), *edit[:5], "--box", "a", "1,2,3,4"], 2, "--box is of methods with a layout"),
        (["edit", str(whole), *edit[:5], "--blend", "a", "b", "2"], 2, "threshold"),
        (["edit", str(whole), *edit[:4], "diff-edit", "--mask", "nosuch.png"], 2, "there is no file nosuch.png"),
        (["generate", "x", "--grid", "steps=1.5", "p2p"], 2, "steps is a whole number"),
        (["generate", "x", "box-diff", "--layout", str(boxes)], 2, "there is no file"),
        (["generate", "x", "sdedit"], 2, "sdedit starts from a picture"),
        (["distill2d", "x", "sds", "--times", "x"], 2, "'x' is no ramp"),
        (["distill2d", "x", "--clip", "x", "sds"], 2, "'x' is no ramp"),
        (["experiment", "one-noise", "--foo"], 2, "unknown option --foo"),
        (["experiment", "guidance-grid", "--methods", "sds,no"], 2, "unknown method that distils 'no'"),
        (["shapes", "nosuch.obj"], 2, "there is no file nosuch.obj"),
        *((["shapes", str(whole)], 2, "is no mesh by its name"), (["capture", "nosuch"], 2, "there is no capture")),
        *(([f"{each}-scene", "nosuch", *rest], 2, "there is no capture") for each, rest in scenes.items()),
        (["reconstruct", str(tmp_path)], 2, "has no transforms.json and no COLMAP model"),
        (["learn", str(whole), "--as", "w", "break-a-scene"], 2, "learns from pictures with masks"),
        (["learn", "nosuch", "--as", "w"], 2, "there is no photograph or folder nosuch"),
        (["train-head", str(tmp_path), "diff-seg"], 2, "diff-seg learns no head"),
        (["match", str(whole), str(whole), "diff-seg"], 2, "does not match"),
        (["segment", str(whole), "few-shot"], 2, "learns from examples"),
        (["segment", str(whole), "normalised-cut", "--values", "1"], 2, "normalised"),
    ]
    (tmp_path / "m.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "scene.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / "film.gif").write_bytes(b"")
    (shots := tmp_path / "shots").mkdir()
    frame = {"file_path": "../whole.png", "transform_matrix": np.eye(4).tolist()}
    (shots / "transforms.json").write_text(json.dumps({"fl_x": 9, "frames": [frame]}))
    every = [
        ("generate", ["x"], ["perturbed-attention"]),
        ("panorama", ["x", "--size", "512x128"], ["sync-diffusion"]),
        ("illusion", ["a", "b"], ["perturbed-attention"]),
        ("views", ["x"], []),
        ("video", ["film.gif", *edit[:4]], ["p2p"]),
        ("edit", ["whole.png", *edit[:4]], ["p2p"]),
        ("invert", ["whole.png", "x"], []),
        ("segment", ["whole.png"], ["diff-seg"]),
        ("match", ["whole.png", "whole.png"], ["dift"]),
        ("keypoints", ["whole.png"], []),
        ("features", ["whole.png"], []),
        ("shapes", ["m.obj"], ["diff3f"]),
        ("learn", ["whole.png", "--as", "w"], ["ti"]),
        ("train-encoder", [], []),
        ("train-head", ["."], ["stego"]),
        ("distill2d", ["x"], ["sds"]),
        ("lift", ["x"], ["sds"]),
        ("capture", ["shots"], []),
        ("reconstruct", ["shots"], []),
        ("segment-scene", ["shots", "--words", "a"], []),
        ("edit-scene", ["shots", "make it blue", "instruct-nerf2nerf"], []),
        ("export-scene", ["scene.safetensors"], []),
        ("show scene", ["scene.safetensors"], []),
        ("show plan", [], ["p2p"]),
        ("experiment one-noise", [], []),
        ("render", [], []),
    ]
    known = f"{OF_ANY_KIND} {OF_THE_MODEL}".split()
    lines = fresh(LIGHT.format(asked=asked, any=known, lines=every), tmp_path).stderr.split("---\n")
    for (args, code, says), line in zip(asked, lines, strict=False):
        assert says in line and line.count("\n") == (code == 2), (args, line)


def test_a_list_at_the_end_of_a_file_is_found_without_what_is_before_it():
    assert sparing._from_its_end(str)("a\n__all__ = [1]\nb\n__all__ = [\n2]\n") == "__all__ = [\n2]\n"


def test_a_model_loads_and_paints_without_what_it_does_not_need_and_all_is_there_later(tmp_path: Path):
    """Of a process: what is not imported, and that LoRAs, scipy, networks, marks for compiling are as they would be."""
    (tmp_path / "named.py").write_text("from scipy.stats import beta")
    (tmp_path / "inside.py").write_text("import scipy.optimize.linesearch, scipy.stats.distributions")
    assert fresh(LOADED.replace("PLACE", repr(str(tmp_path)))).stderr == ""
