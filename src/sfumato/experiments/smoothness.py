"""How smooth a guided run is (Jambon 2023, figs. 5.6-5.8): ``trajectory`` with the source's finding."""

from __future__ import annotations

from collections.abc import Callable

from sfumato.experiments.common import listed, percent
from sfumato.experiments.trajectory import Course

SOURCE = (
    "Jambon 2023, figures 5.6 to 5.8: the guidance term is noisy from step to step even at a low scale and more so the "
    "higher it is, latents stray over larger ranges, and at a high scale pixels collapse to 0 and 1."
)


def ours(course: Course) -> str:
    """What the numbers say."""
    rows = course.numbers()

    def along(values: list[float], form: Callable[[float], str]) -> str:
        grows = values == sorted(values) and values[0] < values[-1]
        falls = values == sorted(values, reverse=True) and values[0] > values[-1]
        way = "grows" if grows else "falls" if falls else "goes up and down"
        return f"{way} ({listed([form(v) for v in values])})"

    guidance = [row["similarity"]["guidance"] for row in rows]
    noise = [row["similarity"]["unconditional"] for row in rows]
    noisier = sum(g < n for g, n in zip(guidance, noise, strict=True))
    scales = listed([f"{s:g}" for s in course.scales])
    likeness = along(guidance, "{:.3f}".format)
    wide = along([row["range"] for row in rows], "{:.2f}".format)
    border = along([row["border"] for row in rows], lambda v: percent(v, 1))
    return (
        f"Over guidance {scales}, the likeness of successive guidance terms {likeness}, below that of the "
        f"unconditional noise at {noisier} of {len(rows)} scales; the range of the latents' paths {wide}; the part of "
        f"pixel values at 0 or 1 {border}."
    )
