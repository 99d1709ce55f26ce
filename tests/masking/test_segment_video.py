"""From hints to a folder of masks: what it holds, what is done again, and what happens when something fails."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import neural_fields.masking.segment_video as masking
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.data.masks.layer_masks import load_masks
from neural_fields.data.segmentation.networks.words import WordFinder, WordMatch
from neural_fields.data.segmentation.segmenter import ClipSegmentation, ObjectSegmenter, UnusableHintsError
from neural_fields.data.video.metadata import make_metadata
from neural_fields.masking.hint_journal import HINTS_FILE, read_hints
from neural_fields.masking.hints import (
    AnyHint,
    BoxHint,
    MainHint,
    MaskHint,
    PointHint,
    StrokeHint,
    TextHint,
    split_hint_words,
)
from neural_fields.masking.options import MaskOptions
from neural_fields.masking.segment_video import SegmentedVideo, segment_video
from neural_fields.runs.locking import lock_folder
from tests.support.box_segmenter import BoxSegmenter

WIDTH, HEIGHT, FRAMES = 64, 48, 6
METADATA = make_metadata((WIDTH, HEIGHT), FRAMES, Fraction(24))
DOG, CAT = BoxHint("dog", 2, 8, 12, 16, 20), BoxHint("cat", 0, 40, 20, 12, 8)


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six pictures."""
    folder = tmp_path / "clip"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH + FRAMES, 3), dtype=np.uint8)
    for number in range(FRAMES):
        Image.fromarray(noise[:, number : number + WIDTH]).save(folder / f"{number:05d}.png")
    monkeypatch.chdir(tmp_path)
    return folder


def point_at(clip: Path, *hints: AnyHint, segmenter: ObjectSegmenter | None = None, **settings: Any) -> SegmentedVideo:
    options = MaskOptions(hints=hints, **{"size": "24p", "edges": "hard", **settings})
    return segment_video(clip, options, segmenter=segmenter or BoxSegmenter())


def read_mattes(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "cache" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- what the folder holds ------------------------------------------------------------------------------------------


def test_each_object_has_a_gray_matte_of_the_videos_size_for_every_frame(clip: Path) -> None:
    masks = point_at(clip, DOG, CAT)
    assert masks.folder == Path("clip-masks")
    names = sorted(path.name for path in (masks.folder / "dog").glob("*.png"))
    assert names == [f"{number:05d}.png" for number in range(FRAMES)]
    mattes = read_mattes(masks.folder / "dog")
    assert mattes.shape == (FRAMES, HEIGHT, WIDTH) and mattes.dtype == np.uint8
    assert mattes[:, 22, 16].min() == 255 and mattes[:, 4, 4].max() == 0


def test_training_takes_the_folder_as_it_is_front_first(clip: Path) -> None:
    masks = point_at(clip, DOG, CAT)
    found = load_masks([str(masks.folder)], METADATA, (WIDTH, HEIGHT))
    assert found.names == ("dog", "cat")
    assert found.masks[0, :, 22, 16].all() and found.masks[1, :, 24, 46].all()
    assert load_masks([f"pet={point_at(clip, DOG, out=Path('one')).folder}"], METADATA, (WIDTH, HEIGHT)).names == (
        "pet",
    )
    with pytest.raises(UserError, match="one name for 2 objects"):
        load_masks([f"pet={masks.folder}"], METADATA, (WIDTH, HEIGHT))


def test_outside_the_in_and_out_points_mattes_are_black_and_the_points_are_remembered(clip: Path) -> None:
    masks = point_at(clip, DOG, frames="1:4")
    assert read_mattes(masks.folder / "dog").max((1, 2)).tolist() == [0, 255, 255, 255, 0, 0]
    assert point_at(clip, BoxHint("cat", 1, 40, 20, 12, 8)).frames == range(1, 4)
    assert point_at(clip, frames=":").frames == range(FRAMES)


def test_the_order_is_that_asked_for_and_is_kept(clip: Path) -> None:
    assert [item.name for item in point_at(clip, DOG, CAT, order=("cat", "dog")).objects] == ["cat", "dog"]
    again = point_at(clip, PointHint("dog", 1, 10, 20))
    assert [item.name for item in again.objects] == ["cat", "dog"]
    assert "front to back: cat, dog (as you asked)" in again.notes


def test_doubtful_frames_are_named_and_the_way_to_mend_them(clip: Path) -> None:
    masks = point_at(clip, DOG, segmenter=BoxSegmenter(confidence=(1, 0.2, 0.1, 1, 0, 0)))
    assert masks.objects[0].check == (range(1, 3),) and masks.objects[0].lost == (range(4, 6),)
    assert masks.advice[0] == "dog: check frames 1-2"
    assert "lost in frames 4-5" in masks.advice[1] and "--object dog --frame 4 --box" in masks.advice[1]


def test_the_contact_sheet_shows_outlines_and_a_red_border_at_doubtful_frames(clip: Path) -> None:
    masks = point_at(clip, DOG, segmenter=BoxSegmenter(confidence=(1, 1, 1, 1, 0.1, 1)))
    assert masks.contact_sheet is not None
    sheet = np.asarray(Image.open(masks.contact_sheet)).astype(int)
    assert sheet.shape == (2 * 240, 4 * 320, 3)
    assert sheet[241, 100].tolist() == [255, 40, 40]  # frame 4 is the first of the second row
    assert (np.abs(sheet[:240, :320] - [[[5, 255, 0]]]).sum(-1) < 30).any()


def test_soft_edges_follow_the_colors_and_hard_ones_the_shares(clip: Path) -> None:
    for edges in ("soft", "hard"):
        mattes = read_mattes(point_at(clip, DOG, out=Path(edges), edges=edges).folder / "dog")
        assert mattes[:, 22, 16].min() == 255 and mattes[:, 40, 50].max() == 0
    assert (read_mattes(Path("soft/dog")) != read_mattes(Path("hard/dog"))).any()


def test_a_trace_of_an_object_that_is_gone_is_not_read_as_white(clip: Path) -> None:
    class Fading(BoxSegmenter):
        def segment(self, *given: Any) -> ClipSegmentation:
            found = super().segment(*given)
            found.shares[:, 3:] = found.shares[:, 3:] // 255  # 1 of 255
            return found

    masks = point_at(clip, DOG, segmenter=Fading())
    found = load_masks([str(masks.folder)], METADATA, (WIDTH, HEIGHT))
    assert found.masks[0].any((1, 2)).tolist() == [True] * 3 + [False] * 3


def test_words_are_found_once_and_stay_where_they_were_found(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:40, 30:50] = True
    looked = []
    answers = {"dog": [WordMatch(0.9, (8, 12, 24, 32)), WordMatch(0.4, (0, 0, 9, 9))]}
    answers |= {"cat": [WordMatch(0.8, (30, 20, 50, 40), mask)], "cow": []}

    def find(self: WordFinder, frame: np.ndarray, words: str) -> list[WordMatch]:
        looked.append((words, frame.shape))
        return answers[words]

    monkeypatch.setattr(WordFinder, "find_in_frame", find)
    hints = (TextHint("dog", 2, "dog"), TextHint("cat", 3, "cat"))
    for _ in range(2):
        masks = point_at(clip, *hints, text_model="words")
    assert looked == [("dog", (HEIGHT, WIDTH, 3)), ("cat", (HEIGHT, WIDTH, 3))]
    assert read_mattes(masks.folder / "dog")[0, 22, 16] == 255
    assert read_mattes(masks.folder / "cat")[0, 30, 40] == 255
    with pytest.raises(UserError, match="nothing in frame 0 looks like 'cow'"):
        point_at(clip, TextHint("cow", 0, "cow"), text_model="words")


def test_words_without_a_frame_are_looked_for_in_several_frames_until_found(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[list[WordMatch]] = [[], [], [WordMatch(0.9, (8, 12, 24, 32))]]
    looked: list[bytes] = []

    def find(self: WordFinder, frame: np.ndarray, words: str) -> list[WordMatch]:
        looked.append(frame.tobytes())
        return answers.pop(0) if answers else []

    monkeypatch.setattr(WordFinder, "find_in_frame", find)
    hints, _ = split_hint_words(["--object", "dog", "--text", "a dog"])
    for _ in range(2):
        masks = point_at(clip, *hints, text_model="words")
    assert len(looked) == 3 and looked[2] == np.asarray(Image.open(clip / "00005.png")).tobytes()
    (hint,) = read_hints(masks.folder).hints
    assert isinstance(hint, TextHint) and (hint.frame, hint.box) == (5, (8, 12, 16, 20))
    with pytest.raises(UserError, match="nothing in frames 1, 2, 3 looks like 'a cow'"):
        point_at(clip, TextHint("cow", 0, "a cow", any_frame=True), text_model="words", frames="1:4", out=Path("cow"))
    assert len(looked) == 6 and len(set(looked)) == 5, "frame 2 was looked at for the dog too"


# --- more hints, and what they change -------------------------------------------------------------------------------


def test_only_objects_with_new_hints_are_done_again(clip: Path) -> None:
    segmenter = BoxSegmenter()
    point_at(clip, DOG, CAT, segmenter=segmenter)
    before = contents(Path("clip-masks/dog"))
    masks = point_at(clip, PointHint("cat", 3, 42, 22), segmenter=segmenter)
    point_at(clip, segmenter=segmenter)
    assert segmenter.asked == [["dog", "cat"], ["cat"]]
    assert {item.name: item.is_new for item in masks.objects} == {"dog": False, "cat": True}
    assert contents(Path("clip-masks/dog")) == before


def test_settings_are_remembered_so_that_a_correction_does_not_do_everything_again(clip: Path) -> None:
    segmenter = BoxSegmenter()
    point_at(clip, DOG, segmenter=segmenter, size="32p", matte_model="none")
    point_at(clip, CAT, segmenter=segmenter, size=None, edges=None)
    assert segmenter.asked == [["dog"], ["cat"]]
    point_at(clip, segmenter=segmenter, size="24p")
    assert segmenter.asked[2] == ["dog", "cat"]


def test_the_same_hint_again_changes_nothing(clip: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (0, 255, 0)).save("stroke.png")
    hints = (DOG, StrokeHint("cat", 1, Path("stroke.png")))
    with pytest.raises(UserError, match="cat was not found"):
        point_at(clip, *hints)
    point_at(clip, DOG)
    before = contents(Path("clip-masks"))
    point_at(clip, DOG)
    assert contents(Path("clip-masks")) == before


def test_hints_can_be_taken_back_and_restored(clip: Path) -> None:
    point_at(clip, DOG)
    point_at(clip, CAT)
    assert [item.name for item in point_at(clip, undo=True).objects] == ["dog"]
    segmenter = BoxSegmenter()
    restored = point_at(clip, redo=True, segmenter=segmenter)
    assert [item.name for item in restored.objects] == ["cat", "dog"]
    assert segmenter.asked == [], "the mattes of the hints that are in force again are still there"
    for _ in range(2):
        empty = point_at(clip, undo=True)
    assert empty.objects == () and empty.contact_sheet is None
    with pytest.raises(UserError, match="nothing to undo"):
        point_at(clip, undo=True)
    with pytest.raises(UserError, match="holds no masks"):
        load_masks(["clip-masks"], METADATA, (WIDTH, HEIGHT))


def test_pictures_of_hints_are_copied_so_that_they_last(clip: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 10:30] = 255
    cv2.imwrite("mask.png", mask)
    point_at(clip, MaskHint("dog", 0, Path("mask.png")))
    Path("mask.png").unlink()
    segmenter = BoxSegmenter()
    point_at(clip, PointHint("dog", 3, 15, 15), segmenter=segmenter)
    assert segmenter.asked == [["dog"]]
    assert read_mattes(Path("clip-masks/dog"))[:, 20, 20].min() == 255


def test_a_later_box_in_the_same_frame_replaces_the_earlier_one(clip: Path) -> None:
    point_at(clip, DOG)
    point_at(clip, BoxHint("dog", 2, 40, 20, 10, 10))
    mattes = read_mattes(Path("clip-masks/dog"))
    assert mattes[2, 25, 45] == 255 and mattes[2, 22, 12] == 0


def test_an_earlier_box_can_be_given_again(clip: Path) -> None:
    for hint in (DOG, BoxHint("dog", 2, 40, 20, 10, 10), DOG):
        point_at(clip, hint)
    assert read_mattes(Path("clip-masks/dog"))[2, 22, 12] == 255


# --- objects that want the same pixels ------------------------------------------------------------------------------

BESIDE = BoxHint("cow", 1, 16, 12, 24, 20)  # shares half of the dog's box


def test_overlaps_with_objects_of_earlier_commands_are_settled_and_undone(clip: Path) -> None:
    point_at(clip, DOG)
    alone = contents(Path("clip-masks/dog"))
    segmenter = BoxSegmenter()
    point_at(clip, BESIDE, segmenter=segmenter)
    assert segmenter.asked == [["cow"]]
    both = [read_mattes(Path("clip-masks") / name).astype(int) for name in ("dog", "cow")]
    assert (both[0] + both[1]).max() == 255 and both[0].any() and both[1].any()
    point_at(clip, DOG, BESIDE, out=Path("at-once"))
    for name, mattes in zip(("dog", "cow"), both, strict=True):
        assert (read_mattes(Path("at-once") / name) == mattes).all(), "the order of the commands does not count"
    point_at(clip, undo=True, segmenter=segmenter)
    assert contents(Path("clip-masks/dog")) == alone and len(segmenter.asked) == 1


def test_two_names_for_one_object_are_refused(clip: Path) -> None:
    error = refuse(clip, "cat and dog are the same object", BoxHint("cat", 4, 8, 12, 16, 20))
    assert "dog, frame 2: --box 8,12,16,20" in error.where and "cat, frame 4: --box 8,12,16,20" in error.where


def test_without_the_cache_nothing_changes_and_a_new_object_is_settled_all_the_same(clip: Path) -> None:
    point_at(clip, DOG)
    before = contents(Path("clip-masks"))
    shutil.rmtree("clip-masks/cache")
    segmenter = BoxSegmenter()
    point_at(clip, segmenter=segmenter)
    assert contents(Path("clip-masks")) == before and segmenter.asked == []
    shutil.rmtree("clip-masks/cache")
    point_at(clip, BESIDE, segmenter=segmenter)
    assert segmenter.asked == [["dog", "cow"]]


# --- nothing is lost ------------------------------------------------------------------------------------------------


def test_masks_and_hints_are_as_before_when_the_work_fails(clip: Path) -> None:
    point_at(clip, DOG)
    before = contents(Path("clip-masks"))
    for problem in (bad_input("no"), KeyboardInterrupt()):
        failing = BoxSegmenter(problem=problem)
        with pytest.raises(type(problem)):
            point_at(clip, PointHint("dog", 1, 10, 20), segmenter=failing)
        after = contents(Path("clip-masks"))
        assert after.pop(HINTS_FILE).startswith(before[HINTS_FILE])
        assert after == {name: data for name, data in before.items() if name != HINTS_FILE}
        segmenter = BoxSegmenter()
        point_at(clip, segmenter=segmenter)
        is_kept = isinstance(problem, KeyboardInterrupt)  # a hint that cannot be used is taken back
        assert segmenter.asked == ([["dog"]] if is_kept else [])


def test_what_was_found_is_not_found_again_after_an_interruption(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    segmenter = BoxSegmenter()
    with monkeypatch.context() as patch:
        patch.setattr(masking, "write_mattes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            point_at(clip, DOG, segmenter=segmenter)
    assert point_at(clip, DOG, segmenter=segmenter).objects[0].is_new
    assert segmenter.asked == [["dog"]]


def test_a_command_that_fails_leaves_what_can_be_redone(clip: Path) -> None:
    point_at(clip, DOG)
    point_at(clip, CAT)
    point_at(clip, undo=True)
    with pytest.raises(UserError, match="no"):
        point_at(clip, PointHint("dog", 1, 10, 20), segmenter=BoxSegmenter(problem=bad_input("no")))
    assert {item.name for item in point_at(clip, redo=True).objects} == {"dog", "cat"}
    with pytest.raises(UserError, match="nothing to redo"):
        point_at(clip, redo=True)


def test_one_command_at_a_time_writes_to_a_folder(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(clip, DOG)
    before = contents(Path("clip-masks"))
    with lock_folder(Path("clip-masks"), "the folder"), pytest.raises(UserError, match="is in use") as caught:
        point_at(clip, CAT)
    assert caught.value.code == ExitCode.LOCKED
    del before["LOCK"]
    assert {name: data for name, data in contents(Path("clip-masks")).items() if name != "LOCK"} == before

    check = masking.convert_hints

    def let_another_in(*given: Any) -> Any:
        monkeypatch.setattr(masking, "convert_hints", check)
        point_at(clip, BESIDE)
        return check(*given)

    monkeypatch.setattr(masking, "convert_hints", let_another_in)
    with pytest.raises(UserError, match="has just changed") as caught:
        point_at(clip, CAT)
    assert caught.value.code == ExitCode.LOCKED
    assert {item.name for item in point_at(clip, CAT).objects} == {"dog", "cow", "cat"}


def test_retouched_mattes_are_kept_beside_the_new_ones(clip: Path) -> None:
    masks = point_at(clip, DOG)
    Image.new("L", (WIDTH, HEIGHT), 255).save(masks.folder / "dog/00003.png")
    again = point_at(clip, PointHint("dog", 1, 10, 20))
    assert np.asarray(Image.open(masks.folder / "dog-kept1/00003.png")).min() == 255
    assert np.asarray(Image.open(masks.folder / "dog/00003.png")).min() == 0
    assert any("dog-kept1" in note for note in again.notes)


def test_a_folder_with_other_files_is_refused(clip: Path) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a folder of hints"):
        point_at(clip, DOG, out=Path("mine"))
    assert contents(Path("mine")) == {"notes.txt": b"mine"}


def test_a_line_that_was_cut_by_a_power_cut_is_survived_and_a_damaged_one_is_named(clip: Path) -> None:
    point_at(clip, DOG)
    journal = Path("clip-masks") / HINTS_FILE
    with journal.open("ab") as file:
        file.write(b'{"operation": "add", "hi')
    masks = point_at(clip, CAT)
    assert {item.name for item in masks.objects} == {"dog", "cat"}
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], '{"operation": "add", "hints": [{"kind": "circle"}]}\n', *lines[1:]]))
    with pytest.raises(UserError, match="damaged") as caught:
        point_at(clip, CAT)
    assert caught.value.code == ExitCode.DAMAGED_RUN and "line 2" in caught.value.why


# --- hints that cannot be used --------------------------------------------------------------------------------------


def refuse(clip: Path, text: str, *hints: AnyHint, **options: Any) -> UserError:
    """Gives hints that cannot be used beside a mask that is there; nothing of it may be lost."""
    point_at(clip, DOG)
    before = contents(Path("clip-masks"))
    with pytest.raises(UserError) as caught:
        point_at(clip, *hints, **options)
    assert text in str(caught.value)
    after = contents(Path("clip-masks"))
    assert read_hints(Path("clip-masks")).hints == (DOG,)
    assert after.pop(HINTS_FILE).startswith(before.pop(HINTS_FILE)), "lines are only added"
    assert {**after, "LOCK": b""} == {**before, "LOCK": b""}
    assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (BoxHint("cat", 0, 70, 0, 10, 10), "--box 70,0,10,10 is outside the frame"),
        (BoxHint("cat", 0, -20, 0, 20, 10), "is outside the frame"),
        (PointHint("cat", 0, -1, 10), "is outside the frame"),
        (PointHint("cat", 0, 64, 10), "--point 64,10 is outside the frame"),
        (PointHint("cat", 6, 10, 10), "--frame 6 is after the end"),
        (TextHint("cat", 0, "a cat"), "no model that finds objects by words"),
        (MainHint("cat", 0), "no model that finds the main thing in a frame"),
        (MainHint("cat", 6), "--frame 6 is after the end"),
        (StrokeHint("cat", 0, Path("none.png")), "none.png"),
        (MaskHint("cat", 0, Path("clip")), "is a folder"),
    ],
)
def test_a_hint_outside_the_frame_or_the_clip_is_refused(clip: Path, hint: AnyHint, text: str) -> None:
    assert "cat, frame" in str(refuse(clip, text, hint)) or hint.kind == "stroke"


def test_a_hint_outside_the_in_and_out_points_is_refused(clip: Path) -> None:
    assert refuse(clip, "outside the frames in use", PointHint("dog", 5, 9, 13), frames="1:4").fix == "--frames 1:6"


def test_pictures_that_cannot_be_read_or_have_another_size_or_show_nothing_are_refused(clip: Path) -> None:
    Path("text.png").write_text("no picture")
    refuse(clip, "text.png is not a picture", StrokeHint("cat", 0, Path("text.png")))
    Image.new("RGB", (WIDTH // 2, HEIGHT)).save("half.png")
    refuse(clip, "half.png is 32x48, the video is 64x48", MaskHint("cat", 0, Path("half.png")))
    Image.new("RGB", (WIDTH, HEIGHT)).save("black.png")
    refuse(clip, "shows nothing", MaskHint("cat", 0, Path("black.png")))
    refuse(clip, "shows nothing", StrokeHint("cat", 0, Path("black.png")))
    Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255)).save("white.png")
    refuse(clip, "shows the whole frame", MaskHint("cat", 0, Path("white.png")))


@pytest.mark.parametrize(
    "hints",
    [
        (PointHint("dog", 2, 40, 40),),  # outside of the box
        (PointHint("dog", 1, 10, 20), PointHint("dog", 1, 10, 20, is_object=False)),
        (MaskHint("dog", 2, Path("right.png")),),  # the box is on the left
        (StrokeHint("dog", 1, Path("red.png")), PointHint("dog", 1, 50, 20)),
    ],
)
def test_hints_that_contradict_each_other_are_named_with_the_frame(clip: Path, hints: tuple[AnyHint, ...]) -> None:
    for name, color in (("right.png", (255, 255, 255)), ("red.png", (255, 0, 0))):
        picture = Image.new("RGB", (WIDTH, HEIGHT))
        picture.paste(color, (36, 4, 60, 44))
        picture.save(name)
    error = refuse(clip, "contradict each other", *hints)
    assert f"frame {hints[0].frame}" in error.what
    assert hints[-1].words in error.where


def test_a_point_that_is_not_the_object_may_be_in_its_box(clip: Path) -> None:
    point_at(clip, DOG, PointHint("dog", 2, 10, 14, is_object=False))


def test_objects_that_overlap_fully_are_refused(clip: Path) -> None:
    error = refuse(clip, "the same in frame 2", BoxHint("cat", 2, 8, 12, 16, 20))
    assert error.what == "dog and cat are the same in frame 2"


def test_hints_of_another_video_are_refused(clip: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(clip / "00000.png")
    Path("other").mkdir()
    for number in range(FRAMES):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 9, 99)).save(f"other/{number:05d}.png")
    masks = point_at(clip, DOG)
    before = contents(masks.folder)
    with pytest.raises(UserError, match="about another video"):
        point_at(Path("other"), CAT, out=masks.folder)
    assert contents(masks.folder) == before


def test_no_hints_an_object_that_is_nowhere_and_an_unknown_name_are_refused(clip: Path) -> None:
    with pytest.raises(UserError, match="nothing points at an object"):
        point_at(clip)
    with pytest.raises(UserError, match="dog was not found in any frame"):
        point_at(clip, PointHint("dog", 1, 10, 20))
    assert not [path for path in Path("clip-masks").iterdir() if path.name in ("dog", "masks.json")]
    refuse(clip, "--order horse: there is no such object", order=("horse",))


def test_a_click_where_nothing_differs_from_its_surroundings_is_refused(clip: Path) -> None:
    class Blob(BoxSegmenter):
        def segment(self, *given: Any) -> ClipSegmentation:
            found = super().segment(*given)
            found.shares[:, :, :5, :5] = 255
            return found

    segmenter = Blob(confidence=(0.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    error = refuse(clip, "cat was not found in any other frame", PointHint("cat", 1, 3, 3), segmenter=segmenter)
    assert error.where == "frame 1: --point 3,3" and "unwrap mask" in error.fix


def test_hints_that_no_object_fits_are_named_with_the_frame_of_the_video(clip: Path) -> None:
    problem = UnusableHintsError("dog", 1, bad_input("nothing in the box", why="it is flat"))
    with pytest.raises(UserError, match="dog, frame 2: nothing in the box") as caught:
        point_at(clip, DOG, frames="1:4", segmenter=BoxSegmenter(problem=problem))
    assert caught.value.where == DOG.words and "--object dog --frame 2 --box" in caught.value.fix


def test_marks_of_what_is_not_the_object_are_not_enough(clip: Path) -> None:
    error = refuse(clip, "nothing says where cat is", PointHint("cat", 3, 5, 5, is_object=False))
    assert error.fix == f"unwrap mask {clip} --object cat --frame 3 --box x,y,width,height"
