"""The pictures that README opens with: showpieces, each checked by the oracle or the truth.

python docs/make_face.py

What is claimed of a picture and does not hold ends the run, and nothing is written.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import shown
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Image as Picture

from sfumato.io.device import choose
from sfumato.io.terminal import quiet
from sfumato.studio.showpieces import Piece, Showpieces

IMAGES = Path(__file__).parent / "images"
ROWS = (("segments",), ("matches", "edit"), ("boxes", "words"))
WIDE, GAP, LINE = 1000, 6, 20
LABELS = {
    "segments": "photographs, and the segments that the small model finds",
    "matches": "points, found in another picture",
    "edit": "“make the sphere yellow”: before, after, the truth",
    "boxes": "a red cube and a blue sphere, in boxes",
    "words": "where “mug” and “sphere” look",
}


def checked(piece: Piece) -> Piece:
    """The piece, if all holds that is claimed of it."""
    if not piece.holds:
        wrong = ", ".join(claim for claim, right in piece.claims.items() if not right)
        raise SystemExit(f"{piece.title}: does not hold: {wrong}")
    print(piece.title, *(words for words, _ in piece.figures), sep="\n  ", flush=True)
    return piece


def sheet(found: dict[str, Piece]) -> Picture:
    """Rows of pictures of one width, each group with its words above it."""
    rows = []
    for names in ROWS:
        groups = [[frames[0] for _, frames in found[name].figures[:3]] for name in names]
        shapes = [[p.width / p.height for p in group] for group in groups]
        gaps = GAP * (sum(map(len, groups)) - 1 + len(groups) - 1)
        high = round((WIDE - gaps) / sum(map(sum, shapes)))
        row = Image.new("RGB", (WIDE, high + LINE), "white")
        x = 0
        for name, group, shape in zip(names, groups, shapes, strict=True):
            ImageDraw.Draw(row).text((x, 3), LABELS[name], fill="black", font=ImageFont.load_default(13))
            for picture, ratio in zip(group, shape, strict=True):
                row.paste(
                    picture.convert("RGB").resize((round(high * ratio), high), Image.Resampling.LANCZOS), (x, LINE)
                )
                x += round(high * ratio) + GAP
            x += GAP
        rows.append(row)
    out = Image.new("RGB", (WIDE, sum(r.height + GAP for r in rows)), "white")
    y = 0
    for row in rows:
        out.paste(row, (0, y))
        y += row.height + GAP
    return out


if __name__ == "__main__":
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        work = Showpieces(Path(folder), choose("auto"))
        makers = {"segments": work.segments, "matches": work.matches, "edit": work.edit}
        makers |= {"boxes": work.boxes, "words": work.words, "distilled": work.distilled}
        found = {name: checked(make()) for name, make in makers.items()}
        if sys.argv[1:]:
            found["distilled"].figures[0][1][-1].save(sys.argv[1])
    print(shown.write(sheet(found), IMAGES / "face.webp"))
    ((_, frames),) = found["distilled"].figures
    print(shown.write(frames, IMAGES / "distilled.webp", [*[120] * (len(frames) - 1), 1500]))
