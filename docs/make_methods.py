"""docs/methods: a page for each method, made of its docstrings, fields and presets, and the list of them.

python docs/make_methods.py

What stands between the two marks of a page is written by hand and kept: an example, a picture, what was measured, when
to use the method. What the code says belongs into the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from sfumato.commands.fields import spoken
from sfumato.commands.help import bounds
from sfumato.core.described import behind, strings
from sfumato.core.settings import Between
from sfumato.inversion import Inversion
from sfumato.methods import index
from sfumato.methods.about import About, about
from sfumato.tasks import recipes

PAGES = Path(__file__).parent / "methods"
HAND, END = "<!-- by hand -->", "<!-- end -->"
GROUPS = {
    "edit": "Editing",
    "control": "Control",
    "sets": "Sets of images",
    "perceive": "Reading images",
    "distill": "Score distillation",
    "personalise": "Personalising",
}
SHOWN = "Commands with `docs/images` are run in a clone of the repository; elsewhere name a picture of your own."
INTRO = """# Methods

Each page says what a method does, shows a picture that its own command made with the built-in model
(`python docs/make_pictures.py`, of sets of images also `python docs/moving.py`), and says when to use it and when not,
what it costs, and on which models it works. Code is run by tests as it stands, beside files of yours: `photo.png`,
`other.png`, a mask `mask.png`, folders `photos/`, `frames/` and `labelled/` (`1.png` with its `1-labels.png`).
[Which method for which edit](../which-method.md) and [reading images](../reading.md) compare them, and so does
[score distillation](../distillation.md).
"""


@dataclass(frozen=True)
class Own:
    """What an example in Python has beyond its kind's template."""

    arguments: Sequence[str] = ()
    uses: Sequence[str] = ()
    before: Sequence[str] = ()
    prompt: str = "a red cube and a blue sphere on grass"
    model: str = '"stilllife"'
    more: str = ""
    kind: str = ""


LAYOUT = (
    'boxes = {"a red cube": (0.1, 0.3, 0.45, 0.75), "a blue sphere": (0.6, 0.35, 0.9, 0.7)}',
    "layout = Layout(tuple(Region(phrase, box) for phrase, box in boxes.items()))",
)
PLACED = Own(("layout=layout",), ("sfumato.prompts.layout: Layout", "sfumato.prompts.layout: Region"), LAYOUT)
INSIDE = Own(('mask=Mask.read("mask.png")',), ("sfumato.prompts.layout: Mask",))
MOVING = Own(
    prompt="a duck that swims",
    model='"sd-1.5", motion="guoyww/animatediff-motion-adapter-v1-5-2"',
    more=", frames=16",
    kind="control",
)
WIDE = Own(
    uses=("sfumato.core.views: Tiles",), prompt="a red cube", more=", size=(128, 512), views=Tiles()", kind="control"
)
OWN = {
    **dict.fromkeys(("box-diff", "dense-diffusion", "layout-guidance"), PLACED),
    **dict.fromkeys(("blended-latents", "kv-edit"), INSIDE),
    **dict.fromkeys(("free-init", "free-noise"), MOVING),
    **dict.fromkeys(("merge-attend-diffuse", "spot-diffusion", "sync-diffusion", "sync-tweedies"), WIDE),
    **dict.fromkeys(("break-a-scene", "disentangled-inversion"), Own(more=', masks=Path("masks")')),
    "azimuth-inversion": Own(more=', cameras=Path("cameras.json")'),
    "reversion": Own(more=', captions=Path("photos/text.json")'),
    "attend-and-excite": Own(('words=("cube", "sphere")',)),
    "given-attention": Own(
        ('maps={"cube": {"": read_image("mask.png")[None, :1]}}', "spread=True"), ("sfumato: read_image",)
    ),
    "dynamic-thresholding": Own(prompt="a red cube on grass", model='"if-i-m"', more=", guide=15.0"),
    "stable-flow": Own(model='"stabilityai/stable-diffusion-3-medium-diffusers"'),
    "spatext": replace(PLACED, arguments=(*PLACED.arguments, 'head=Path("spatext.safetensors")'), kind="spatext"),
    "propagation": Own(("click=(60, 68)",)),
    "graph-cut": Own(kind="cut"),
    "clip-patches": Own(kind="source"),
    "encoder-tuning": Own(kind="encoder"),
}
"""Of methods that need more than their template has, by their words."""
PAINTS = ("sfumato: denoise", "sfumato: load")
EDITS = (*PAINTS, "sfumato: invert", "sfumato: read_image")
LEARNS = ("pathlib: Path", "sfumato: load")
TAUGHT = ("sfumato.tasks.learn: learn", "sfumato.tasks.learn: read")
PATCHES = ("sfumato.methods.perceive.clip_patches: ClipPatches",)
HEADS = ("sfumato.tasks.train_head: pictures", "sfumato.tasks.train_head: train_head")
TEMPLATES = {
    "edit": (
        EDITS,
        """model = load({model})
path = invert(model, read_image("photo.png", model), "a red cube on grass")
prompts = {{"source": "a red cube on grass", "target": "a blue cube on grass"}}
{lines}
out = denoise(model, prompts, start=path, methods=[method], guide=4.0)
out["target"].save("{word}.png")""",
    ),
    "start": (
        EDITS,
        """model = load({model})
{lines}
path = invert(model, read_image("photo.png", model), "a red cube on grass", method)
prompts = {{"source": "a red cube on grass", "target": "a blue cube on grass"}}
out = denoise(model, prompts, start=path, guide=method.guide(model{guide}))
out["target"].save("{word}.png")""",
    ),
    "control": (
        PAINTS,
        """model = load({model})
{lines}
image = denoise(model, "{prompt}", methods=[method]{more})
image.save("{word}.png")""",
    ),
    "spatext": (
        (*LEARNS, *PAINTS, *HEADS, *PATCHES, "sfumato.tasks.recipes: teaching"),
        """model, learner = load({model}), teaching("{word}", "stilllife")
head = train_head(model, pictures("labelled", model, names=("ground", "thing")), learner, ClipPatches())
head.save("{word}.safetensors")
{lines}
image = denoise(model, "{prompt}", methods=[method])
image.save("{word}.png")""",
    ),
    "perceive": (
        ("sfumato: load", "sfumato.reading: read"),
        """{lines}
with read(load({model}), "photo.png") as photo:
    labels = method(photo).labels  # which segment each pixel belongs to""",
    ),
    "cut": (
        ("sfumato: load", "sfumato.methods.perceive.diff_seg: DiffSeg", "sfumato.reading: read"),
        """{lines}
with read(load({model}), "photo.png", side=256) as photo:
    segments = method.refine(DiffSeg(threshold=0.07)(photo), photo.pixels)""",
    ),
    "match": (
        ("sfumato: load", "sfumato.reading: read"),
        """model = load({model})
{lines}
with read(model, "photo.png") as photo, read(model, "other.png") as other:
    found = method(photo, other, [(60, 40)])  # found.target: where that point is there""",
    ),
    "head": (
        ("sfumato: load", *HEADS, "sfumato.methods.perceive.dift: DIFT"),
        """model, source = load({model}), DIFT(ensemble=1)
{lines}
head = train_head(model, pictures("labelled", model), method, source)
head.save("{word}.safetensors")""",
    ),
    "source": (
        ("sfumato: load", *HEADS, "sfumato.methods.perceive.pacl: PACL"),
        """model = load({model})
{lines}
head = train_head(model, pictures("labelled", model), PACL(), method)
head.save("pacl.safetensors")""",
    ),
    "encoder": (
        (*LEARNS, *PAINTS, *TAUGHT, "sfumato.tasks: encoder"),
        """model, photos = load({model}), sorted(Path("photos").glob("*.png"))
taught = encoder.train(model, encoder.of_files(photos, model), "cube", encoder.settings("stilllife"))
{lines}
concept = learn(model, read(photos[:1], model, most=1), "<mug>", method, kind="cube", encoder=taught).concept
denoise(concept.on(model), "a <mug> on snow").save("{word}.png")""",
    ),
    "distill": (
        ("sfumato: load", "sfumato.media: pictures", "sfumato.tasks.distill: distill_images"),
        """{lines}
found = distill_images(load({model}), "a red cube on grass", method, 150)
pictures.write(pictures.picture(found.images[0]), "{word}.png")""",
    ),
    "personalise": (
        (*LEARNS, *PAINTS, *TAUGHT),
        """model = load({model})
photos = read([Path("photos")], model, most=8{more})
{lines}
concept = learn(model, photos, "<mug>", method, kind="cup").concept
concept.save("mug.safetensors")
denoise(concept.on(model), "a <mug> on snow").save("{word}.png")""",
    ),
}
"""Code of a kind of methods, and what it imports."""


def pages() -> dict[str, str]:
    """Every page by its name, as the code and what is written by hand there make it."""
    out = {entry.word: page(entry, by_hand(PAGES / f"{entry.word}.md")) for entry in index.METHODS}
    return out | {"README": "\n".join([INTRO, *(listed(group, title) for group, title in GROUPS.items())])}


def by_hand(file: Path) -> str:
    """What stands between the marks of a page; nothing of one that is not there yet."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text.partition(f"{HAND}\n")[2].partition(f"\n{END}")[0].strip("\n")


def page(entry: index.Entry, hand: str) -> str:
    found = about(entry)
    name, paper, does = found.head
    idea = [text for text in found.text[:1] if not text.startswith("Default")]
    rest = found.text[len(idea) :]
    parts = [
        f"# {name}",
        markdown(f"{sentence(does)}{f' ({paper})' if paper else ''}"),
        *map(markdown, idea),
        f"{HAND}\n\n{hand}\n\n{END}",
        *([SHOWN] if re.search(r"^ *sfumato .*docs/images/", hand.replace("\\\n", ""), re.M) else []),
        *([] if "```python" in hand else ["## From Python", f"```python\n{example(entry)}\n```"]),
        *(["## Defaults and differences", *map(markdown, rest)] if rest else []),
        *(called(entry) if entry.is_function else options(entry)),
        "## What it takes",
        takes(found),
        source(entry),
    ]
    return "\n\n".join(parts) + "\n"


def example(entry: index.Entry) -> str:
    """How it is called from Python beside a reader's pictures, with the settings that suit the built-in model."""
    name, own = entry.method.__name__, OWN.get(entry.word, Own())
    row = recipes.RECIPES.get(("stilllife", entry.word))
    settings = {} if row is None or row.head else row.settings
    spelled = [f"{key}={value!r}".replace("'", '"') for key, value in settings.items()]
    uses, method = {*own.uses, f"{home(entry)}: {name}"}, f"{name}({', '.join([*own.arguments, *spelled])})"
    if sum(map(len, spelled)) > 50:
        uses = {*own.uses, "sfumato.tasks.recipes: find"}
        method = f'find("{entry.word}").method  # as it suits the built-in model'
        if own.arguments:
            uses.add("dataclasses: replace")
            method = f'replace(find("{entry.word}").method, {", ".join(own.arguments)})'
    more, code = TEMPLATES[own.kind or kind(entry)]
    texts = {"lines": "\n".join([*own.before, f"method = {method}"]), "word": entry.word, "prompt": own.prompt}
    texts |= {"model": own.model, "more": own.more, "guide": "" if row and row.guidance is None else ", 4.0"}
    return f"{imported(uses | set(more))}\n\n{code.format(**texts)}"


def kind(entry: index.Entry) -> str:
    """Which template is a method's."""
    if entry.group == "edit" and issubclass(entry.method, Inversion):
        return "start"
    return {"match": "match", "train-head": "head"}.get(next(iter(entry.commands), ""), entry.group)


def home(entry: index.Entry) -> str:
    """Where a method is imported from: its group, if that has it."""
    group = import_module(f"sfumato.methods.{entry.group}")
    return group.__name__ if hasattr(group, entry.method.__name__) else entry.module.__name__


def imported(uses: Collection[str]) -> str:
    """``MODULE: NAME`` as statements in ruff's order."""
    names: dict[str, set[str]] = {}
    for use in uses:
        module, _, name = use.partition(": ")
        names.setdefault(module, set()).add(name)
    written = {m: f"from {m} import {', '.join(sorted(n))}" if n != {""} else f"import {m}" for m, n in names.items()}
    parts = [[], [], []]
    for module in sorted(written):
        first = module.partition(".")[0]
        parts[2 if first == "sfumato" else int(first not in sys.stdlib_module_names)].append(written[module])
    return "\n\n".join("\n".join(part) for part in parts if part)


def takes(found: About) -> str:
    lines = [f"- Needs: {found.needs}", f"- Families: {found.families}"]
    lines += [f"- Asks for: {'; '.join(found.asks)}."] if found.asks else []
    return "\n".join(markdown(line, "  ") for line in lines)


def source(entry: index.Entry) -> str:
    """Where the code is, and what else the method is called."""
    module, _, name = entry.home.partition(":")
    path = f"src/sfumato/methods/{module.replace('.', '/')}.py"
    also = f" On a command line also `{entry.alias}`." if entry.alias else ""
    return f"`{name}` in [{path}](../../{path}).{also}"


def called(entry: index.Entry) -> list[str]:
    """How a function is called."""
    names = ", ".join(inspect.signature(entry.method).parameters)
    text = inspect.getdoc(entry.method) or ""
    return ["## Call", f"`{entry.method.__name__}({names})`", *map(markdown, text.split("\n\n"))]


def options(entry: index.Entry) -> list[str]:
    """Tables of a method's fields, as a command line spells them, and of its presets."""
    cls = entry.method
    hints = get_type_hints(spoken(cls), include_extras=True)
    docs = strings(cls)
    lines = [
        [option(f.name, hints[f.name]), " ".join(lying(f, hints[f.name])), markdown(docs.get(f.name, ""), wrap=False)]
        for f in fields(cls)
        if f.init
    ]
    out = ["## Options", table(["option", "default", ""], lines)] if lines else []
    texts = behind(ast.parse(inspect.getsource(entry.module)).body)
    suiting = {row.preset: beside(row) for row in recipes.RECIPES.values() if row.word == entry.word}
    lines = []
    for word, value in recipes.presets(entry).items():
        if word == recipes.DEFAULTS:  # the table of options has it
            continue
        new = [f for f in fields(cls) if f.init and getattr(value, f.name) != start(f)]
        settings = " ".join(spelled(f.name, hints[f.name], getattr(value, f.name)) for f in new)
        text = texts.get(word.upper().replace("-", "_")) or suiting.get(word, "")
        lines.append([f"`{word}`", f"`{settings}`" if settings else "as published", markdown(text, wrap=False)])
    return out + (["## Presets", table(["`--preset`", "settings", ""], lines)] if lines else [])


def beside(row: recipes.Recipe) -> str:
    """What suits a model, and what suits beside the method's own settings."""
    more = {"guidance": row.guidance, "invert": row.start, "side": row.side}
    options = " ".join(f"--{k} {written(v, None)}" for k, v in more.items() if v is not None)
    return f"Suits `{row.model}`{f', with `{options}`' if options else ''}."


def lying(f: Field[Any], hint: Any) -> list[str]:
    """Its default, and what it lies in."""
    within = bounds(hint) if metavar(hint) is not None else ""
    return [default(f, hint), *([f"({within})"] if within else [])]


def option(name: str, hint: Any) -> str:
    """A field as a command line spells it; its bare name where it is for Python alone."""
    value = metavar(hint)
    if value is None:
        return f"`{name}`, from Python"
    flag = name.replace("_", "-")
    return f"`--{flag} {value}`" if value else f"`--{flag}`, `--no-{flag}`"


def metavar(hint: Any) -> str | None:
    """What follows an option of a type: nothing for a switch, None where no command line can give it."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        spec = inside[1]
        if isinstance(spec, Between):
            return metavar(inside[0])
        return spec.metavar if isinstance(spec, tyro.constructors.PrimitiveConstructorSpec) else None
    if kind is Literal:
        return "{" + ",".join(map(str, inside)) + "}"
    if kind in (Union, types.UnionType):
        found = [metavar(one) for one in inside if one is not type(None)]
        return None if None in found else "|".join(filter(None, found))
    if kind is tuple:
        return f"{metavar(inside[0])} ..." if ... in inside else " ".join(metavar(one) or "" for one in inside)
    if hint is bool:
        return ""
    return hint.__name__.upper() if hint in (int, float, str) else None


def start(f: Field[Any]) -> Any:
    """A field's default; ``MISSING`` where it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def default(f: Field[Any], hint: Any) -> str:
    value = start(f)
    return (
        "required"
        if value is MISSING
        else "none"
        if value in (None, "", ()) or value == {}
        else f"`{written(value, hint)}`"
    )


def spelled(name: str, hint: Any, value: Any) -> str:
    """A field with a value as a command line says it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {written(value, hint) or repr('')}"


def written(value: Any, hint: Any) -> str:
    if get_origin(hint) is Annotated and hasattr(get_args(hint)[1], "str_from_instance"):
        return " ".join(get_args(hint)[1].str_from_instance(value))
    if isinstance(value, tuple):
        return " ".join(written(one, None) for one in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(text: str, indent: str = "", wrap: bool = True) -> str:
    """A docstring's paragraph in Markdown: code, links to papers, lines of 120."""
    text = " ".join(text.split()).replace("``", "`")
    if wrap:
        text = textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return re.sub(r"arXiv(\s+)(\d{4}\.\d{5})", r"[arXiv\1\2](https://arxiv.org/abs/\2)", text)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def listed(group: str, title: str) -> str:
    """A group's heading and table: the picture if there is one, the name, and what it does."""
    rows = []
    for entry in sorted((e for e in index.METHODS if e.group == group), key=lambda e: e.word):
        name, _, does = about(entry).head
        files = [f"images/{kind}/{entry.word}.webp" for kind in ("methods", "moving")]
        there = [file for file in files if (PAGES.parent / file).exists()]
        shown = f'<img src="../{there[0]}" width="160" alt="">' if there else ""
        rows.append([shown, f"[{name}]({entry.word}.md)", markdown(sentence(does), wrap=False)])
    return f"## {title}\n\n{table(['', 'method', ''], rows)}\n"


if __name__ == "__main__":
    for name, text in pages().items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
