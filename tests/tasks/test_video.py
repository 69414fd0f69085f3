"""Videos edited by words: in parts that are one whole, kept frame by frame, priced before they begin."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from families import FAMILIES, controlnet, randomised
from PIL import Image

from sfumato.backbones.controlnets import ControlNet
from sfumato.backbones.load import family
from sfumato.core.method import Method, Phases, Requires, Run
from sfumato.core.steppers import DDIM
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, EditFriendly, NegativePrompt
from sfumato.io.progress import Progress, Stopped
from sfumato.media import video as videos
from sfumato.media.video import Video
from sfumato.methods.edit import InstructPix2Pix, PlugAndPlay, PromptToPrompt, SDEdit
from sfumato.methods.edit.prompt_to_prompt import LocalBlend
from sfumato.methods.sets import FateZero, Pix2Video, SharedAttention, TokenFlow
from sfumato.methods.sets.noise import Independent, Mixed, Progressive, Shared, Translated
from sfumato.prompts.layout import Mask
from sfumato.tasks.edit import PictureEdit, run_edits
from sfumato.tasks.frames import Aligned, Reads
from sfumato.tasks.video import Footage, VideoEdit, beside, edit_video, price

SOURCE, TARGET = "a red cube on grass", "a blue duck on grass"


def name(value) -> str | None:
    return None if isinstance(value, str | tuple) else type(value).__name__


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    pipe = FAMILIES["sd"]()
    randomised(*pipe.components.values())
    return family("sd", pipe)


@dataclass(frozen=True)
class Clip(Video):
    """Frames from nowhere, noted as long as they live."""

    alive: list = field(default_factory=list)

    def _all(self, start: int = 0):
        for i in range(self.count):
            dice = np.random.default_rng(i)
            frame = Image.fromarray(dice.integers(0, 256, (self.size[1], self.size[0], 3), np.uint8))
            self.alive.append(weakref.ref(frame))
            yield frame

    @property
    def now(self) -> int:
        return sum(ref() is not None for ref in self.alive)


def clip(tmp_path, n: int = 6) -> Clip:
    place = tmp_path / "clip.mp4"
    place.write_bytes(b"film")
    return Clip(place, Fraction(12), (36, 32), n)


def sdedit(tmp_path, n: int = 6, **options) -> VideoEdit:
    edit = PictureEdit(SOURCE, TARGET, SDEdit(0.6, steps=5, seed=3))
    return VideoEdit(Footage(clip(tmp_path, n)), edit, **options)


def pixels(folder) -> np.ndarray:
    return np.stack([np.asarray(f, int) for f in videos.opened(folder).frames()])


@pytest.mark.parametrize("noises", [Independent(), Shared(), Mixed(1.0), Progressive(2.0), Translated()], ids=name)
def test_parts_of_a_video_are_the_whole(model, tmp_path, noises):
    """But for the rounding of batches of other sizes."""
    found = []
    for chunk in (4, 2, 3):
        edit_video(model, sdedit(tmp_path, 4, noises=noises, chunk=chunk), tmp_path / f"{chunk}")
        found.append(pixels(tmp_path / f"{chunk}"))
    assert found[0].shape == (4, 32, 36, 3) and np.abs(found[0][0] - found[0][3]).mean() > 1
    assert np.abs(found[1] - found[0]).max() <= 1 and np.abs(found[2] - found[0]).max() <= 1


def test_a_frame_alone_is_the_picture_s_edit(model, tmp_path):
    asked = sdedit(tmp_path, 1)
    edit_video(model, asked, tmp_path / "out")
    fitted = asked.fitted(model, asked.footage.frames())
    wanted = run_edits(model, fitted, {"": asked.edit})[""].edited.pictures
    assert np.array_equal(pixels(tmp_path / "out")[0], np.asarray(wanted[0]))


def test_what_is_stopped_goes_on_where_it_was(model, tmp_path):
    asked = sdedit(tmp_path, chunk=2)
    edit_video(model, asked, tmp_path / "whole")

    def stop(event: Progress) -> None:
        if event.what == "editing frames" and event.done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        edit_video(model, asked, tmp_path / "out", on_progress=stop)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png")}
    assert sorted(kept) == ["00000.png", "00001.png", "00002.png", "00003.png"]
    done = edit_video(model, replace(asked, noises=Independent()), tmp_path / "out")
    assert (done.count, done.again) == (6, 4) and done.steps == 3
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == at for name, at in kept.items())
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "whole"))
    (tmp_path / "out" / "00003.png").unlink()
    kept.pop("00003.png")
    assert edit_video(model, asked, tmp_path / "out").again == 5
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == at for name, at in kept.items())
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "whole"))
    assert edit_video(model, asked, tmp_path / "out").steps == 0


def test_frames_of_other_settings_are_replaced_and_a_person_s_own_are_not(model, tmp_path):
    asked = sdedit(tmp_path, 2)
    edit_video(model, asked, tmp_path / "out")
    first = pixels(tmp_path / "out")
    others = (
        replace(asked, noises=Shared()),
        replace(asked, edit=replace(asked.edit, target="a red duck")),
        replace(asked, footage=replace(asked.footage, start=1)),
    )
    for other in others:
        assert edit_video(model, other, tmp_path / "out").again == 0
        again = pixels(tmp_path / "out")
        assert len(again) == len(other.footage) and not np.array_equal(again, first[: len(again)])
    assert edit_video(model, others[-1], tmp_path / "out", settings={"model": "another"}).again == 0
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "00000.png")
    with pytest.raises(SfumatoError, match="pictures of another origin"):
        edit_video(model, asked, tmp_path / "mine")


@dataclass(frozen=True, eq=False)
class Seen(Method):
    """Notes of each run its images and what they start from."""

    runs: list = field(default_factory=list)

    def start(self, run: Run) -> Phases:
        return Phases(before=lambda step: self.runs.append(step.x.clone()) if step.i == 0 else None)


@pytest.mark.parametrize(
    ("noises", "anchor"),
    [
        (Independent(), False),
        (Mixed(1.0), True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((Independent(), True), (Mixed(1.0), False))),
    ],
    ids=name,
)
def test_frames_of_a_part_are_images_of_one_run_and_the_anchor_is_with_each(model, tmp_path, noises, anchor):
    asked = sdedit(tmp_path, 5, noises=noises, chunk=2, anchor=anchor)
    seen = Seen()
    edit_video(model, replace(asked, edit=replace(asked.edit, methods=(seen,))), tmp_path / "out")
    targets = [x[len(x) // 2 :] for x in seen.runs]  # the second of two streams
    assert [len(x) for x in targets] == ([2, 3, 2] if anchor else [2, 2, 1])
    whole = Seen()
    at_once = replace(asked, chunk=5, anchor=False, edit=replace(asked.edit, methods=(whole,)))
    edit_video(model, at_once, tmp_path / "whole")
    wanted = whole.runs[0][5:]
    numbers = [(0, 1), (0, 2, 3), (0, 4)] if anchor else [(0, 1), (2, 3), (4,)]
    for x, which in zip(targets, numbers, strict=True):
        assert torch.allclose(x, wanted[list(which)], atol=1e-5)
    assert np.abs(pixels(tmp_path / "out") - pixels(tmp_path / "whole")).max() <= 1


@dataclass(frozen=True)
class Alone(Method):
    requires = Requires(batch=False)

    def start(self, run: Run) -> Phases:
        return Phases()


def test_a_method_of_one_image_gets_one_at_a_time(model, tmp_path):
    asked = sdedit(tmp_path, 3)
    alone = replace(asked, edit=replace(asked.edit, methods=(Alone(),)))
    assert edit_video(model, alone, tmp_path / "out").count == 3 and price(model, alone).runs == 3
    with pytest.raises(SfumatoError, match="Alone edits one frame a run; leave the anchor out"):
        replace(alone, anchor=True)


@pytest.mark.parametrize(
    ("start", "methods", "of"),
    [
        (SDEdit(0.6, steps=5), (), "sd"),
        (Direct(steps=4), (PlugAndPlay(),), "sd"),
        (EditFriendly(steps=5), (), "sd"),
        (InstructPix2Pix(steps=3), (), "instruct"),
    ],
    ids=name,
)
def test_what_it_costs_is_known_before(models, tmp_path, monkeypatch, start, methods, of):
    net, rows = models(of), []
    asked = sdedit(tmp_path, 5, chunk=2, anchor=True)
    asked = replace(asked, edit=PictureEdit(SOURCE, TARGET, start, methods))
    cost = price(net, asked)
    predict = net.predict
    monkeypatch.setattr(net, "predict", lambda x, *args: rows.append(len(x)) or predict(x, *args))
    done = edit_video(net, asked, tmp_path / "out")
    assert cost.rows == sum(rows) and (cost.frames, cost.runs) == (5, 3) and done.count == 5
    assert cost.seconds > 0 and "5 frames in 3 runs, " in str(cost)
    on_disk = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.png"))
    assert on_disk / 2 < cost.disk < 4 * on_disk


def test_four_thousand_frames_are_priced_without_reading_them(model, tmp_path):
    asked = sdedit(tmp_path, 4000)
    cost = price(model, asked)
    assert (cost.frames, cost.runs) == (4000, 500) and len(asked.footage.video.alive) <= asked.chunk + 1


def across(tmp_path, methods, n: int = 7, start=None, **options) -> VideoEdit:
    edit = PictureEdit(SOURCE, TARGET, start or Direct(steps=3), methods)
    return VideoEdit(Footage(clip(tmp_path, n)), edit, **options)


@pytest.mark.parametrize(
    ("start", "methods"),
    [
        (Direct(steps=2), (PlugAndPlay(features=1.0, attention=1.0), TokenFlow(every=4))),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (Direct(steps=3), (SharedAttention("first+previous"),)),
                (EditFriendly(steps=3, skip=0.0), (SharedAttention("middle", own=True),)),
                (NegativePrompt(steps=3), (FateZero(1.0, 1.0),)),
                (SDEdit(0.7, steps=4), (Pix2Video(until=1.0),)),
            )
        ),
    ],
    ids=name,
)
def test_parts_of_a_video_see_each_other(model, tmp_path, start, methods):
    """All frames are one run, the edit of as many pictures, though a few go through the network together."""
    asked = across(tmp_path, methods, start=start, chunk=3)
    edit_video(model, asked, tmp_path / "3")
    fitted = asked.fitted(model, asked.footage.frames())
    whole = run_edits(model, fitted, {"": asked.edit})[""].edited.pictures
    whole, parts = np.stack([np.asarray(picture, int) for picture in whole]), pixels(tmp_path / "3")
    assert np.abs(parts - whole).max() <= 1
    plain = across(tmp_path, [m for m in methods if isinstance(m, PlugAndPlay)], start=start, chunk=3)
    edit_video(model, plain, tmp_path / "plain")
    assert np.abs(pixels(tmp_path / "plain") - whole).max() > 1
    assert not (tmp_path / "3" / ".work").exists()


def test_each_frame_of_a_run_is_steered_by_its_own_picture(model, tmp_path):
    """As in the edit of as many pictures, also where a few go through the network together."""
    network = controlnet("sd", model.network)

    def steer(net, shown):
        return net.given(lambda cond: replace(cond, controls=(ControlNet(network, shown[0]),)))

    def control(i: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(90 + i).integers(0, 256, (32, 36, 3), np.uint8))

    reads = Reads((Aligned(lambda: map(control, range(9))),), steer)
    asked = across(tmp_path, (SharedAttention("first"),), 4, chunk=3, reads=reads)
    edit_video(model, asked, tmp_path / "3")
    fitted = asked.fitted(model, asked.footage.frames())
    net = reads.given(model, range(4), fitted)
    whole = np.stack([np.asarray(f, int) for f in run_edits(net, fitted, {"": asked.edit})[""].edited.pictures])
    assert np.abs(pixels(tmp_path / "3") - whole).max() <= 1
    net = reads.given(model, [0] * 4, fitted)
    first = np.stack([np.asarray(f, int) for f in run_edits(net, fitted, {"": asked.edit})[""].edited.pictures])
    assert np.abs(first - whole).max() > 1
    assert not replace(asked, reads=Reads(mask=Mask(torch.ones(32, 36, dtype=torch.bool)))).streamed


class Halted(Exception):
    """As Ctrl-C is."""


@pytest.mark.parametrize("after", [14, pytest.param(5, marks=pytest.mark.slow)], ids=["painting", "inverting"])
def test_a_video_that_is_one_run_goes_on_at_its_step(model, tmp_path, monkeypatch, after):
    """What was found of the way to noise and the last step that was taken are not done again."""
    blend = PromptToPrompt(0.5, 0.5, blend=LocalBlend("cube", "duck", threshold=0.93, start=0.0, res=1.0))
    asked, predict, calls = across(tmp_path, (blend, TokenFlow(every=4)), chunk=3), model.predict, []
    monkeypatch.setitem(vars(model), "predict", lambda x, *args: calls.append(len(x)) or predict(x, *args))
    edit_video(model, asked, tmp_path / "whole")
    total = len(calls)

    def halting(x, *args):
        if len(calls) == after:
            raise Halted
        calls.append(len(x))
        return predict(x, *args)

    calls.clear()
    monkeypatch.setitem(vars(model), "predict", halting)
    with pytest.raises(Halted):
        edit_video(model, asked, tmp_path / "out")
    calls.clear()
    monkeypatch.setitem(vars(model), "predict", lambda x, *args: calls.append(len(x)) or predict(x, *args))
    done = edit_video(model, asked, tmp_path / "out")
    assert total - after <= len(calls) < total - after + 3 and done.count == 7
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "whole"))
    (tmp_path / "out" / "00003.png").unlink()
    assert edit_video(model, asked, tmp_path / "out").again == 6
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "whole"))


def test_noise_of_steps_goes_on_as_well(model, tmp_path, monkeypatch):
    """A stochastic stepper draws what it would have drawn."""
    asked = across(tmp_path, (SharedAttention(),), start=SDEdit(1.0, steps=4), chunk=3)
    monkeypatch.setattr("sfumato.inversion.noise_space.suited", lambda schedule: DDIM(1.0))
    monkeypatch.setattr("sfumato.core.denoising.suited", lambda schedule: DDIM(1.0))
    edit_video(model, asked, tmp_path / "whole")
    calls, predict = [], model.predict

    def halting(x, *args):
        if len(calls) == 7:
            raise Halted
        calls.append(len(x))
        return predict(x, *args)

    monkeypatch.setitem(vars(model), "predict", halting)
    with pytest.raises(Halted):
        edit_video(model, asked, tmp_path / "out")
    monkeypatch.setitem(vars(model), "predict", predict)
    edit_video(model, asked, tmp_path / "out")
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "whole"))


def test_a_run_of_all_frames_is_priced(model, tmp_path, monkeypatch):
    asked = across(tmp_path, (PlugAndPlay(), TokenFlow(every=4)), chunk=3)
    cost, rows, predict = price(model, asked), [], model.predict
    monkeypatch.setitem(vars(model), "predict", lambda x, *args: rows.append(len(x)) or predict(x, *args))
    edit_video(model, asked, tmp_path / "out")
    assert cost.rows == sum(rows) and cost.runs == 1 and max(rows) == 3 * 2 * 2
    image = model.encode(asked.fitted(model, asked.footage.frames())[0].pixels[None])
    assert cost.work == 7 * (4 + 2) * image.nbytes  # the track of 3 steps, the start and the image
    assert 0 < cost.held < 7 * 50 * image.nbytes and "latents" in str(cost)


def test_four_thousand_frames_of_one_run_are_priced_too(model, tmp_path):
    asked = across(tmp_path, (SharedAttention("first+previous"),), 4000)
    cost = price(model, asked)
    assert (cost.frames, cost.runs) == (4000, 1) and len(asked.footage.video.alive) <= asked.chunk + 1
    with pytest.raises(SfumatoError, match="500 images read each other in every layer"):
        price(model, across(tmp_path, (TokenFlow(),), 4000))
    with pytest.raises(SfumatoError, match="400 images read each other"):
        price(model, across(tmp_path, (SharedAttention("all"),), 400))
    with pytest.raises(SfumatoError, match=r"all frames of the video are one run.*leave the anchor out"):
        across(tmp_path, (TokenFlow(),), anchor=True)


def test_no_more_frames_are_held_than_a_part(model, tmp_path):
    asked, most = sdedit(tmp_path, 12, chunk=3), []
    edit_video(model, asked, tmp_path / "out", on_progress=lambda event: most.append(asked.footage.video.now))
    assert max(most) <= asked.chunk + 2 and len(list(beside(asked, tmp_path / "out"))) == 12


def test_a_video_beside_what_it_became(model, tmp_path):
    asked = sdedit(tmp_path, 2)
    edit_video(model, asked, tmp_path / "out")
    both, frame = list(beside(asked, tmp_path / "out")), next(asked.footage.frames())
    assert both[0].size == (74, 32) and np.array_equal(np.asarray(both[0])[:, :36], np.asarray(frame))
    assert np.array_equal(np.asarray(both[1], int)[:, 38:], pixels(tmp_path / "out")[1])


def test_what_has_no_frames_is_refused(model, tmp_path):
    asked = sdedit(tmp_path)
    for ask in (price, lambda m, a: edit_video(m, a, tmp_path / "out")):
        with pytest.raises(SfumatoError, match="has 6 frames, none of them in 6:"):
            ask(model, replace(asked, footage=replace(asked.footage, start=6)))
    with pytest.raises(SfumatoError, match="one frame or more, got 0"):
        replace(asked, chunk=0)
