"""Reading pictures as calls: segments of a method that is ready, points that are found, batches that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.backbones.load import load
from sfumato.errors import SfumatoError
from sfumato.io.progress import Progress, Stopped
from sfumato.media.labels import write_labels
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.few_shot import FewShot
from sfumato.methods.perceive.graph_cut import GraphCut
from sfumato.methods.perceive.label_efficient import LabelEfficient
from sfumato.methods.perceive.prompt_embeddings import PromptEmbeddings
from sfumato.reading.reader import read
from sfumato.reading.results import Segments
from sfumato.tasks.batch import Batch, pictures_in
from sfumato.tasks.kept import Kept
from sfumato.tasks.match import match
from sfumato.tasks.segment import Segmenter, examples_in, ready, split


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


def photo(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.fixture
def labelled(tmp_path):
    for i in range(2):
        photo(i).save(tmp_path / f"{i}.png")
    write_labels((torch.arange(30) > 15).long().expand(40, 30), tmp_path / "0-labels.png")
    return tmp_path


def test_a_method_then_cuts_then_names(model):
    image, scores = photo(), torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))

    def method(reader):
        return Segments(scores, reader.size)

    with read(model, image, 64) as reader:
        plain = method(reader)
        cut = GraphCut(8.0).refine(plain, reader.pixels)
    assert torch.equal(Segmenter(model, method, side=64)(image).labels, plain.labels)
    assert torch.equal(Segmenter(model, method, [GraphCut(8.0)], side=64)(image).labels, cut.labels)
    assert not torch.equal(cut.labels, plain.labels)
    named = Segmenter(model, method, names=("cube", "grass"), side=64)(image)
    assert set(named.names) <= {"cube", "grass"} and named.names


def test_one_method_segments_and_cuts_follow():
    assert split([DiffSeg(), GraphCut(2.0)], ["diff-seg", "graph-cut"]) == (DiffSeg(), (GraphCut(2.0),))
    for methods in ([GraphCut()], [DiffSeg(), DiffSeg()]):
        with pytest.raises(SfumatoError, match="one method segments"):
            split(methods, ["a", "b"])
    with pytest.raises(SfumatoError, match="dift does not segment"):
        split([DIFT()], ["dift"])


def test_what_needs_examples_has_them_and_what_learns_has_learned(model, labelled):
    ((image, labels),) = examples_in(labelled)
    assert image.shape == (3, 40, 30) and labels.unique().tolist() == [0, 1]
    method = FewShot()
    with read(model, photo(2), 64) as reader:
        found = ready(method, model, labelled=labelled, side=64)(reader)
        by_hand = method(reader, [read(model, image, 64)], [(labels == 1).float()])
        assert torch.equal(found.labels, by_hand.labels)
        quick, kept = LabelEfficient(epochs=1, members=2, blocks=(5,)), labelled / "learned.safetensors"
        learned = ready(quick, model, labelled=labelled, learned=kept, side=64)(reader)
        assert torch.equal(ready(quick, model, learned=kept)(reader).labels, learned.labels)
    assert ready(plain := DiffSeg(), model) is plain
    for method, given, why in (
        (FewShot(), {}, "learns from examples"),
        (DiffSeg(), {"labelled": labelled}, "takes no examples"),
        (DiffSeg(), {"learned": kept}, "learns nothing"),
        (FewShot(), {"labelled": labelled / "none"}, "no file or folder"),
    ):
        with pytest.raises(SfumatoError, match=why):
            ready(method, model, **given)


def test_points_or_a_grid_are_found_and_a_mask_and_an_edit_are_carried(model):
    a, b, dift = photo(0), photo(1, (30, 50)), DIFT(ensemble=1)
    grid = match(model, a, b, dift, side=64)
    assert len(grid.matches.source) == 36 and grid.method.cycle == 0.1 and grid.mask is None
    points = match(model, a, b, dift, points=[(3, 4)], side=64)
    assert points.method.cycle is None and points.matches.source.tolist() == [[3, 4]]
    mask = torch.zeros(40, 30)
    mask[5:20, 5:20] = 1
    done = match(model, a, b, dift, mask=mask, edited=torch.zeros(3, 40, 30), side=64)
    assert done.mask is not None and done.mask.shape == (30, 50)
    assert done.edited is not None and done.edited.shape == (3, 30, 50)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (PromptEmbeddings(), {"mask": mask}, "matches points alone"),
        (dift, {"edited": torch.zeros(3, 40, 30)}, "needs the mask"),
        (dift, {"mask": mask[1:]}, "30 x 39 pixels, its image is 30 x 40"),
    ]
    for method, given, why in refused:
        with pytest.raises(SfumatoError, match=why):
            match(model, a, b, method, side=64, **given)


def test_a_batch_is_heard_and_ended_and_what_was_done_is_kept(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        photo(i).save(file)
    (tmp_path / "notes.txt").write_text("")
    assert pictures_in(tmp_path) == files
    done: list[str] = []

    def work(file, stem):
        done.append(file.stem)
        if file.stem == "1":
            raise SfumatoError("not this one")
        made = Path(f"{stem}-x.png")
        made.touch()
        return {"files": [str(made)], "shown": str(made)}

    def stop(event: Progress) -> None:
        if event.done == 1 and not event.over:
            raise Stopped

    out = tmp_path / "out"
    out.mkdir()
    batch = Batch(files, Kept(out, "x", "-x.png"), {"side": 64})
    with pytest.raises(Stopped):
        batch.run("reading", work, on_progress=stop)
    assert done == ["0"]
    events: list[Progress] = []
    worked = batch.run("reading", work, on_progress=events.append)
    assert done == ["0", "1", "2"] and worked.failed == {str(files[1]): "not this one"}
    assert [row["image"] for row in worked.rows] == [str(files[0]), str(files[2])]
    assert [e.done for e in events if not e.over] == [0, 1, 2, 3]
