"""The pages with code: it is run as it stands there, and does what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sfumato.core.denoising import denoise, plan

PAGES = Path(__file__).parents[1] / "docs"


def run(page: str, but: str = "") -> dict[str, Any]:
    """The names that a page's code leaves behind, without blocks that say a word."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = "\n".join(block for block in blocks if not but or but not in block)
    names: dict[str, Any] = {"__name__": page.rpartition("/")[2].replace("-", "_")}
    exec(compile(code, f"{page}.md", "exec", dont_inherit=True), names)
    return names


def test_the_core():
    names = run("core", but="sd-2.1")  # which is not here
    image, again, path = (names[k] for k in ("image", "again", "path"))
    assert torch.equal(denoise(names["model"], image.prompts, guide=4.0, steps=4, seed=7).latents, image.latents)
    assert again.images.shape == (2, 3, 128, 128)
    torch.testing.assert_close(names["edited"]["source"].latents, path.image, atol=1e-4, rtol=0)
    assert (names["edited"]["target"].latents - path.image).abs().max() > 0.1
    assert [row["does"] for row in names["priced"].table()] == ["writes out"]


def test_a_method():
    names = run("authors/write-a-method")
    model, louder, prompt = names["model"], names["Louder"], "a red cube on grass"
    plain = denoise(model, prompt, steps=4).latents
    assert torch.equal(denoise(model, prompt, methods=[louder("red", until=0.0)], steps=4).latents, plain)
    assert (names["image"].latents - plain).abs().max() > 1e-2
    torch.testing.assert_close(
        denoise(model, prompt, methods=[louder("red", 1.0)], steps=4).latents, plain, atol=1e-4, rtol=0
    )
    (row,) = plan(model, prompt, methods=[louder("red")], steps=10).table()
    assert row["does"] == "writes logits" and row["steps"] == "0-7"


def test_a_backbone():
    names = run("authors/write-a-backbone")
    assert names["image"].images.shape == (1, 3, 16, 16) and names["image"].images.isfinite().all()


def test_a_generator():
    names = run("authors/write-a-generator")
    assert names["picture"].colours.abs().max() > 0.01


def test_a_view():
    names = run("authors/write-a-view")
    x, swapped = torch.arange(8.0).view(1, 1, 2, 4), names["Swapped"]()
    assert swapped.project(x)[0, 0, 0].tolist() == [2, 3, 0, 1]
    assert torch.equal(swapped.unproject(swapped.project(x), (2, 4))[0], x)
    both = names["both"].latents
    assert names["wide"].latents.shape == (1, 4, 16, 32)
    plain = denoise(names["model"], "a red cube on grass", steps=4).latents
    assert both.isfinite().all() and (both - plain).abs().max() > 0.1


def test_every_page_is_found_from_the_readme():
    """By links, of which one to a folder is to its README or else to all in it."""
    seen, left = set[Path](), [PAGES.parent / "README.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in re.findall(r"\]\(([^)#\s:]+)", page.read_text(encoding="utf-8")):
            place = (page.parent / link).resolve()
            inside = [place / "README.md"] if (place / "README.md").is_file() else [*place.glob("*.md")]
            left += inside if place.is_dir() else [place] if place.suffix == ".md" else []
    assert PAGES / "index.md" in seen and not set(PAGES.rglob("*.md")) - seen
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert not [page.name for page in PAGES.glob("*.md") if page.name != "index.md" and f"({page.name})" not in index]
