"""Imports of diffusers and transformers without what loading and running a model does not need.

That is most of what they take: for names which only LoRAs, training, compiling and rare options of schedulers ever use
they import peft, sympy with the whole of torch's compiler, scipy's statistics, and each network that there is beside
the one that is asked for. Inside of ``sparing()``, and only there,

- modules of ``WHO`` get such names from stand-ins, which import the real thing when they are used;
- packages that do no more than list what is in them (``LISTS``) read their lists when a name of them is asked for;
- mappings that such modules fill (``FILLED``, diffusers' of all packages' files) are filled when they are first looked
  into, and the lists of transformers' thousand files are sought from their ends;
- questions whether a network is of one of those libraries (``NOT_YET``) are answered at once until it is imported;
- garbage, of which imports leave little and scan much, waits.

Whoever imports peft, scipy or torch's compiler, before or after, gets them as they are; all that stays is the stand-ins
in the modules that took them. What a stand-in does not know is imported for real, so other versions are at worst slow.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from inspect import signature
from pathlib import Path
from threading import RLock, get_ident
from types import ModuleType
from typing import Any

WHO = ("diffusers.", "transformers.")
NAMES = {
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
    "requests": (),
    "scipy.integrate": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "torch._dynamo": (),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "torch.distributed._composable.fsdp": ("fully_shard",),
    "torch.distributed.checkpoint.hf_storage": ("HuggingFaceStorageReader", "HuggingFaceStorageWriter"),
    "torch.distributed.fsdp": ("CPUOffloadPolicy", "MixedPrecisionPolicy"),
    "torch.distributed.tensor": ("DTensor", "Shard"),
    "torch.distributed.tensor._utils": ("compute_local_shape_and_global_offset",),
    "torch.distributed.tensor.placement_types": ("Shard", "_StridedShard"),
    "transformers.distributed.expert_parallel": ("apply_expert_parallelism",),
    "transformers.distributed.tensor_parallel": (
        "apply_tensor_parallelism",
        "gather_state_dict_for_save",
        "get_kv_heads_per_rank",
        "verify_tp_plan",
    ),
}
MARKS = ("allow_in_graph", "assume_constant_result")
"""Decorators of torch._dynamo that give back what they mark: it is told when it is imported."""
LISTS = {
    "diffusers.hooks",
    *(f"diffusers.models.{kind}" for kind in ("autoencoders", "controlnets", "transformers", "unets")),
}
NOT_YET: dict[str, dict[str, tuple[tuple[str, ...], Callable[..., Any]]]] = {
    "diffusers.utils.torch_utils": {"is_compiled_module": (("torch._dynamo",), lambda module: False)},
    "diffusers.utils.peft_utils": dict.fromkeys(
        ("scale_lora_layers", "unscale_lora_layers"), (("peft",), lambda model, weight=None: None)
    ),
    "diffusers.pipelines.pipeline_loading_utils": {"_unwrap_model": (("torch._dynamo", "peft"), lambda model: model)},
    "transformers.distributed.utils": {"is_dtensor": (("torch.distributed.tensor",), lambda obj: False)},
}
"""Module -> its functions, and what they come to as long as none of these is imported."""
FILLED = {
    "transformers.distributed.parallel_utils": {
        "ALL_PARALLEL_STYLES": ("transformers.distributed.tensor_parallel", "transformers.distributed.expert_parallel")
    }
}
"""Module -> its mappings, and the modules of which each is filled, when it is first looked into."""


@contextmanager
def sparing() -> Iterator[None]:
    """Import sparingly while the block runs, in this thread."""
    with _LOCK:
        if any(isinstance(finder, _Finder) for finder in sys.meta_path):
            yield
            return
        finder, often = _Finder(), gc.get_threshold()
        gc.set_threshold(max(often[0], _OBJECTS) if often[0] else 0, *often[1:])
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            gc.set_threshold(*often)


_LOCK, _READING = RLock(), RLock()
_OBJECTS = 100_000


class _Later:
    """A function or class of a module that is imported when it is called, or asked for anything of its own."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__name__ = module, name

    def _real(self) -> Any:
        return getattr(_real(self.__module__), self.__name__)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._real()(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked for in passing, as by inspect
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: Any) -> bool:  # nothing is of a class that nobody has imported
        return _imported(self.__module__) and isinstance(instance, self._real())

    def __subclasscheck__(self, kind: type) -> bool:
        return _imported(self.__module__) and issubclass(kind, self._real())


class _StandIn(ModuleType):
    """In place of a module that is not imported yet: the names that are used later, or else the real ones."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in NAMES[self.__name__]:
            return _Later(self.__name__, name)
        return getattr(_real(self.__name__), name)


def _imported(name: str) -> bool:
    return name in sys.modules and not isinstance(sys.modules[name], _StandIn)


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return import_module(name)


_STAND_INS = {name: _StandIn(name) for name in NAMES}


def _mark(how: str, marked: Any) -> Any:
    when_compiling(lambda: getattr(import_module("torch._dynamo"), how)(marked))
    return marked


def when_compiling(call: Callable[..., Any], *args: Any) -> None:
    """Make a call when torch's compiler has been imported."""
    _AWAITED.append((call, args))
    if not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


def _not_compiled(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """As torch itself does, to the same end: looked up when the function is called."""
    import torch

    return torch._disable_dynamo(function, recursive)  # pyright: ignore


_AWAITED: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
_STAND_INS["torch._dynamo"].__dict__.update({how: partial(_mark, how) for how in MARKS}, disable=_not_compiled)


def _found(name: str, path: Any, target: Any, finder: Any) -> ModuleSpec | None:
    """What the finders behind this one find."""
    behind = sys.meta_path[sys.meta_path.index(finder) + 1 :]
    finds = (getattr(each, "find_spec", None) for each in behind)
    return next((spec for find in finds if find is not None and (spec := find(name, path, target))), None)


class _Awaiting:
    """Waits for torch's compiler."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch._dynamo":
            return None
        spec = _found(name, path, target, self)
        return spec if spec is None else _around(spec, self.run)

    def run(self, module: Any, run: Callable[[ModuleType], None]) -> None:
        run(module)
        sys.meta_path.remove(self)
        while _AWAITED:
            call, args = _AWAITED.pop()
            call(*args)


class _Finder:
    def __init__(self) -> None:
        self.thread, self.shown = get_ident(), False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if get_ident() != self.thread:
            return None
        spec = _found(name, path, target, self)
        if not (self.shown or name.startswith(WHO)) or spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        return _around(spec, self.run)

    def run(self, module: ModuleType, run: Callable[[ModuleType], None]) -> None:
        name, before = module.__name__, self.shown
        if name in LISTS and type(module) is ModuleType:
            module.__dict__[_RUN] = run
            module.__class__ = _List
            return
        self.show(name.startswith(WHO))
        try:
            with _AROUND.get(name, nullcontext)():
                run(module)
        except ImportError:
            if not self.shown:
                raise
            self.show(False)  # a part of a module that has a stand-in
            run(module)
        finally:
            self.show(before)
        for mapping, modules in FILLED.get(name, {}).items():
            if hasattr(module, mapping) and all(isinstance(sys.modules.get(each), _StandIn) for each in modules):
                _fill_later(getattr(module, mapping), modules)
        if name == _LISTING and hasattr(module, "fetch__all__"):
            module.__dict__["fetch__all__"] = _from_its_end(module.__dict__["fetch__all__"])
        for function, (libraries, otherwise) in NOT_YET.get(name, {}).items():
            if hasattr(module, function) and not _imported("torch._dynamo"):
                theirs = getattr(module, function)
                setattr(module, function, _not_yet(theirs, libraries, otherwise))
                when_compiling(setattr, module, function, theirs)  # what is compiled is the original

    def show(self, stand_ins: bool) -> None:
        """Let a module that is run now find the stand-ins, or not."""
        self.shown = stand_ins
        for name, stand_in in _STAND_INS.items():
            if not stand_ins and sys.modules.get(name) is stand_in:
                del sys.modules[name]
            elif stand_ins:
                sys.modules.setdefault(name, stand_in)


def _around(spec: ModuleSpec, run: Callable[[Any, Callable[[ModuleType], None]], None]) -> ModuleSpec:
    """The same module, which is run by ``run``, given it and how it is run."""
    loader: Any = spec.loader
    before = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        loader.__dict__.pop("exec_module", None)  # the class's own is behind it
        run(module, before)

    loader.exec_module = exec_module
    return spec


def _not_yet(function: Callable[..., Any], libraries: tuple[str, ...], otherwise: Callable[..., Any]) -> Any:
    @wraps(function)
    def answered(*args: Any, **options: Any) -> Any:
        return (function if any(map(_imported, libraries)) else otherwise)(*args, **options)

    return answered


@contextmanager
def _listed() -> Iterator[None]:
    """Let transformers not read its thousand files twice, for the same list of what is in them."""
    library: Any = sys.modules[_LISTING]
    theirs: Any = getattr(library, "define_import_structure", None)
    if not hasattr(theirs, "cache_info") or "prefix" not in signature(theirs).parameters:  # of another version
        yield
        return

    def known(path: str) -> Any:
        prefix = "models."  # of names
        inner = theirs(Path(path).parent, prefix=prefix[:-1])
        return {
            needed: {file.removeprefix(prefix): names for file, names in files.items() if file.startswith(prefix)}
            for needed, files in inner.items()
        }

    library.define_import_structure = known
    try:
        yield
    finally:
        library.define_import_structure = theirs


def _from_its_end(theirs: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """The list that a file exports is the last in it: what is before need not be looked at line by line."""
    return wraps(theirs)(lambda text: theirs(text[text.rfind("\n__all__") + 1 :]))


@contextmanager
def _not_asked() -> Iterator[None]:
    """Let diffusers not look through the files of all packages before it asks what one is called."""
    from importlib import metadata

    theirs, metadata.packages_distributions = metadata.packages_distributions, _Packages
    try:
        yield
    finally:
        metadata.packages_distributions = theirs


class _Packages(Mapping[str, list[str]]):
    """What ``packages_distributions`` finds, from when it is first looked into."""

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        from importlib.metadata import packages_distributions

        return packages_distributions()

    def __getitem__(self, name: str) -> list[str]:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


_LISTING = "transformers.utils.import_utils"
_AROUND: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "diffusers.utils.import_utils": _not_asked,
    "transformers.models": _listed,
}


def _fill_later(mapping: Any, modules: tuple[str, ...]) -> None:
    """Import the modules that fill a mapping when it is first looked into."""
    kind = type(mapping)

    def first(name: str) -> Callable[..., Any]:
        def looked(self: Any, *args: Any) -> Any:
            self.__class__ = kind
            for module in modules:
                _real(module)
            return getattr(kind, name)(self, *args)

        return looked

    looks = ("__getitem__", "__contains__", "__iter__", "__len__", "get", "keys", "items", "values", "valid_keys")
    mapping.__class__ = type(kind.__name__, (kind,), {name: first(name) for name in looks if hasattr(kind, name)})


_RUN = "__run__"


class _List(ModuleType):
    """A package that is read when a name is asked for that it does not have; what is in it is imported as ever."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        self._read()
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        self._read()
        return dir(self)

    def _read(self) -> None:
        with _READING:
            if type(self) is not _List:  # by another thread
                return
            run = self.__dict__.pop(_RUN, None)
            if run is None:
                raise AttributeError(f"{self.__name__} is being imported")
            try:
                run(self)
            except BaseException:
                self.__dict__[_RUN] = run
                raise
            self.__class__: Any = ModuleType
