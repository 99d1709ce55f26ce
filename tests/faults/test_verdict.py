"""An honest verdict: a layer that is not its object is named, and a cut that the model shows is no fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import Maps
from neural_fields.config.presets import planar_presets
from neural_fields.core.box import Box
from neural_fields.core.coords import frame_xy
from neural_fields.data.flow.compute import FlowField
from neural_fields.evaluation.report.layer_faults import (
    NO_FAULTS,
    FrameBox,
    Jump,
    LayerFaults,
    MissingPart,
    SmallClip,
    UnheldObject,
    find_unheld_objects,
    measure_layer_faults,
)
from neural_fields.evaluation.report.layer_sheet import draw_layer_sheet
from neural_fields.evaluation.report.verdict import (
    ClipMeasurements,
    LayerMeasurements,
    Reason,
    TrainCommandLine,
    judge_clip,
)
from tests.support.map_arrays import save_map

WIDTH, HEIGHT, COUNT = 160, 90, 24
SPEED, SIDES = 3, (50, 40)  # of the object, in pixels
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def locate_object(t: int) -> np.ndarray:
    """A box that moves to the right over a still background."""
    left, top = 15 + SPEED * t, 25
    return (left <= COLUMNS) & (left + SIDES[0] > COLUMNS) & (top <= ROWS) & (top + SIDES[1] > ROWS)


@cache
def make_ground() -> np.ndarray:
    random = np.random.default_rng(0)
    ground = cv2.GaussianBlur(random.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32), (0, 0), 3)
    return ((ground - ground.mean()) * 3 + 80).clip(0, 255).astype(np.uint8)


@cache
def make_frames() -> np.ndarray:
    """Smooth colors on the object, so that only its true outline is an edge."""
    random = np.random.default_rng(1)
    skin = cv2.GaussianBlur(random.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32), (0, 0), 9) + 60
    frames = np.stack([make_ground().astype(np.float32)] * COUNT)
    for t in range(COUNT):
        frames[t][locate_object(t)] = np.roll(skin, SPEED * t, axis=1)[locate_object(t)]
    return frames.clip(0, 255).astype(np.uint8)


@cache
def make_flow() -> FlowField:
    """The exact flow; what the object uncovers or covers, or moves out of the frame, is not trusted."""
    forward = np.zeros((COUNT - 1, HEIGHT, WIDTH, 2), np.float16)
    ok = np.ones((COUNT - 1, HEIGHT, WIDTH), bool)
    for t in range(COUNT - 1):
        forward[t][locate_object(t), 0] = SPEED
        ok[t] = ~(locate_object(t + 1) & ~locate_object(t)) & ~(locate_object(t) & (COLUMNS >= WIDTH - SPEED))
    return FlowField(forward, -forward, ok, ok)


def write_maps(folder: Path, masks: np.ndarray, names: tuple[str, ...] = ("box", "background")) -> Maps:
    """Baked maps of masks [layers, time, height, width], front to back; uv are the frame's own."""
    folder.mkdir(exist_ok=True)
    left = np.ones(masks.shape[1:], bool)
    planes = []
    for mask in masks:
        planes.append(mask & left)
        left &= ~mask
    weights = 255 * np.stack([*planes, left], axis=1).astype(np.uint8)
    save_map(folder, "weight", np.pad(weights, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"))
    uv = np.pad(frame_xy(WIDTH, HEIGHT).numpy(), ((1, 1), (1, 1), (0, 0)), mode="edge")
    box = [-1.0, -HEIGHT / WIDTH, 1.0, HEIGHT / WIDTH]
    for name in names:
        save_map(folder, f"uv-{name}", np.stack([uv] * masks.shape[1]))
    header = {"layers": names, "boxes": [box] * len(names), "size": [WIDTH, HEIGHT], "has_gain": False}
    (folder / "maps.json").write_text(json.dumps({**header, "frame_count": masks.shape[1]}))
    return Maps.open(folder)


def true_masks() -> np.ndarray:
    return np.stack([locate_object(t) for t in range(COUNT)])


def cut_columns(share: float, t: int) -> np.ndarray:
    """The left part of the object."""
    return locate_object(t) & (15 + SPEED * t + share * SIDES[0] > COLUMNS)


def lose_some_frames(masks: np.ndarray) -> None:
    masks[10:14] = False


def shift_some_frames(masks: np.ndarray) -> None:
    masks[10:14] = np.roll(masks[10:14], 25, axis=1)


def cut_off_the_head(masks: np.ndarray) -> None:
    masks[12:, :35] = False


def grow_from_a_part(masks: np.ndarray) -> None:
    for t in range(COUNT):
        masks[t] = cut_columns(0.3 + 0.7 * t / (COUNT - 1), t)


def leave_out_a_half(masks: np.ndarray) -> None:
    for t in range(COUNT):
        masks[t] = cut_columns(0.5, t)


def make_a_hole(masks: np.ndarray) -> None:
    for t in range(COUNT):
        left = 30 + SPEED * t
        masks[t, 35:55, left : left + 20] = False


def measure(folder: Path, masks: np.ndarray, layer: int = 0) -> LayerFaults:
    maps = write_maps(folder, masks)
    return measure_layer_faults(SmallClip(make_frames(), maps, make_flow()), layer, (range(COUNT),))


def judge(faults: LayerFaults, unheld: tuple[UnheldObject, ...] = ()) -> tuple[str, list[Reason]]:
    """The verdict on a clip that is good but for its layer, and its reasons that are not good."""
    layer = LayerMeasurements("background", 0.9, 30.0, 0.01, 0.0, 0.8, 20.0, 1.5, 0.9, 0.1, 0.0, None)
    command = TrainCommandLine(
        "clip.mp4",
        "runs/clip",
        range(1001, 1001 + COUNT),
        "atlas",
        "normal",
        ("box",),
        "auto",
        source_size=(1920, 1080),
    )
    clip = ClipMeasurements(
        tuple(command.frames), (30.0,) * COUNT, (0.95,) * (COUNT - 1),
        (replace(layer, name="box", pixel_share=0.1, faults=faults), layer), command, tuple(planar_presets()), unheld,
    )  # fmt: skip
    verdict = judge_clip(clip)
    return verdict.title, [reason for reason in verdict.reasons if reason.level != "good"]


FAULTS: list[tuple[Callable[[np.ndarray], None], tuple[str, ...]]] = [
    (lose_some_frames, ("jumps", "is empty in 4 of 24 frames (the first is 1011)")),
    (shift_some_frames, ("jumps",)),
    (cut_off_the_head, ("jumps: it loses 1", "between frames 1012 and 1013")),
    (grow_from_a_part, ("grows over the clip",)),
    (leave_out_a_half, ("is cut off",)),
    (make_a_hole, ("has a hole",)),
]


@pytest.mark.parametrize(("spoil", "words"), FAULTS)
def test_u3_wrong_masks(tmp_path: Path, spoil: Callable[[np.ndarray], None], words: tuple[str, ...]) -> None:
    masks = true_masks()
    spoil(masks)
    title, reasons = judge(measure(tmp_path / "maps", masks[None]))
    assert title == "Usable with care"
    for sentence in words:
        (named,) = [reason for reason in reasons if sentence in reason.text]
        assert named.commands[0].startswith("unwrap mask clip.mp4 --object box --frame 10")


def test_u3_a_true_mask_that_leaves_the_frame_is_a_good_fit(tmp_path: Path) -> None:
    title, reasons = judge(measure(tmp_path / "maps", true_masks()[None]))
    assert (title, reasons) == ("Good fit", [])


def test_u3_an_object_that_another_layer_hides_does_not_jump(tmp_path: Path) -> None:
    wall = np.broadcast_to((COLUMNS >= 60) & (COLUMNS < 100), (COUNT, HEIGHT, WIDTH))
    maps = write_maps(tmp_path / "maps", np.stack([wall, true_masks()]), ("wall", "box", "background"))
    flow = make_flow()
    still = np.where(wall[:-1, ..., None], 0, flow.forward).astype(np.float16)
    trusted = flow.forward_ok & ~(np.roll(wall[:-1], -SPEED, axis=2) & ~wall[:-1])
    clip = SmallClip(make_frames(), maps, FlowField(still, -still, trusted, trusted))
    faults = measure_layer_faults(clip, 1, (range(COUNT),))
    assert judge(faults)[1] == []


def test_u3_nothing_is_followed_across_a_cut(tmp_path: Path) -> None:
    masks = true_masks()
    masks[12:] = np.roll(masks[:12], 30, axis=1)
    maps = write_maps(tmp_path / "maps", masks[None])
    shots = (range(12), range(12, COUNT))
    jumps = measure_layer_faults(SmallClip(make_frames(), maps, make_flow()), 0, shots).jumps
    assert 11 not in [jump.t for jump in jumps]


def test_u3_an_object_without_a_layer_is_named_with_a_box_around_it(tmp_path: Path) -> None:
    maps = write_maps(tmp_path / "maps", np.zeros((0, COUNT, HEIGHT, WIDTH), bool), ("background",))
    picture = np.dstack([make_ground() / 255, np.ones((HEIGHT, WIDTH))]).astype(np.float32)
    canonical = CanonicalImage(picture, Box(-1.0, -HEIGHT / WIDTH, 1.0, HEIGHT / WIDTH), "background")
    (found,) = find_unheld_objects(SmallClip(make_frames(), maps, make_flow()), canonical)
    title, reasons = judge(NO_FAULTS, (found,))
    assert title == "Usable with care" and "no layer" in reasons[0].text
    frame, box = (reasons[0].commands[0].split(f"{flag} ")[1].split(" ")[0] for flag in ("--frame", "--box"))
    left, top, wide, high = (float(number) * WIDTH / 1920 for number in box.split(","))
    t = int(frame) - 1001
    truth = np.array([15 + SPEED * t, 25, SIDES[0], SIDES[1]])
    assert np.abs(np.array([left, top, wide, high]) - truth).max() <= 8

    empty = SmallClip(np.stack([make_ground()] * COUNT), maps, make_flow())
    assert find_unheld_objects(empty, canonical) == ()


def test_u3_what_is_beside_a_layer_may_be_its_shadow_and_is_named_so(tmp_path: Path) -> None:
    masks = true_masks()
    leave_out_a_half(masks)
    maps = write_maps(tmp_path / "maps", masks[None])
    picture = np.dstack([make_ground() / 255, np.ones((HEIGHT, WIDTH))]).astype(np.float32)
    canonical = CanonicalImage(picture, Box(-1.0, -HEIGHT / WIDTH, 1.0, HEIGHT / WIDTH), "background")
    (found,) = find_unheld_objects(SmallClip(make_frames(), maps, make_flow()), canonical)
    assert found.beside == "box"
    _, reasons = judge(NO_FAULTS, (found,))
    assert "a part that the mask misses, a shadow, or a reflection" in reasons[0].text
    assert "--object box" in reasons[0].commands[0]


PLACE = FrameBox(3, (0.25, 0.5, 0.125, 0.25))
WORST = {
    "jumps": LayerFaults(jumps=(Jump(2, 0.5, 0.0, PLACE),)),
    "grows": LayerFaults(growth=0.6, largest=PLACE),
    "shrinks": LayerFaults(growth=-0.6, largest=PLACE),
    "does not follow one object": LayerFaults(astray=0.4, largest=PLACE),
    "is cut off": LayerFaults(missing=MissingPart(0.5, False, PLACE)),
    "has a hole": LayerFaults(missing=MissingPart(0.5, True, PLACE)),
    "is empty": LayerFaults(empty_frames=tuple(range(3, 20)), last_box=PLACE.box),
}


@pytest.mark.parametrize("words", WORST)
def test_u3_good_fit_is_impossible_where_a_layer_is_wrong(words: str) -> None:
    title, reasons = judge(WORST[words])
    assert title != "Good fit" and reasons[0].level == "bad" and words in reasons[0].text
    assert reasons[0].commands == ("unwrap mask clip.mp4 --object box --frame 1004 --box 480,540,240,270",)


def test_u3_a_layer_that_holds_hardly_anything_is_named() -> None:
    title, reasons = judge(LayerFaults(area=0.0004))
    assert title == "Usable with care" and reasons[0].text == "'box' fills only 0.04% of a frame."


def test_u3_the_sheet_shows_each_layer_in_its_own_color_on_frames_from_first_to_last(tmp_path: Path) -> None:
    second = np.roll(true_masks(), 22, axis=1)[:, :, ::-1]
    maps = write_maps(tmp_path / "maps", np.stack([true_masks(), second]), ("box", "other", "background"))
    gray = np.full((COUNT, HEIGHT, WIDTH, 3), 90, np.uint8)
    sheet = draw_layer_sheet(gray, range(1001, 1001 + COUNT), maps, ("box", "other"), named=(7,))
    assert len(sheet.numbers) >= 6 and {1001, 1008, 1000 + COUNT} <= set(sheet.numbers)
    assert len(set(sheet.colors.values())) == 2 and list(sheet.colors) == ["box", "other"]
    inside = sheet.picture[round(30 * 400 / WIDTH), round(40 * 400 / WIDTH)].astype(int)  # of the first frame
    assert np.abs(inside - (0.65 * 90 + 0.35 * np.array(sheet.colors["box"]))).max() <= 2
    assert sheet.draw_legend().shape[0] > sheet.picture.shape[0]


def cut_clip(psnr_after: float, starts: frozenset[int]) -> ClipMeasurements:
    layer = LayerMeasurements("background", 1.0, 29.0, 0.01, 0.0, 0.8, 20.0, 1.5, 0.9, 0.1, 0.0, None)
    command = TrainCommandLine("clip.mp4", "runs/clip", range(36), "atlas", "draft", ("none",), "auto")
    psnr = (29.2,) * 20 + (psnr_after,) * 16
    trust = (*(0.9,) * 19, 0.02, *(0.9,) * 15)
    return ClipMeasurements(tuple(range(36)), psnr, trust, (layer,), command, (), chart_starts=starts)


def test_u4_handled_cuts_are_good_and_need_no_parts() -> None:
    verdict = judge_clip(cut_clip(29.0, frozenset({0, 20})))
    (reason,) = [reason for reason in verdict.reasons if "shots" in reason.text]
    assert reason.text == "2 shots found (cut between frames 19 and 20); each has its own part of the picture."
    assert reason.level == "good" and verdict.title == "Good fit" and reason.commands == ()


def test_u4_a_cut_with_a_bad_side_is_to_be_trained_in_parts() -> None:
    verdict = judge_clip(cut_clip(19.0, frozenset({0, 20})))
    assert verdict.title == "Poor fit" and "One picture cannot show both sides" in verdict.reasons[0].text
    assert [line.split("--frames ")[1].split(" ")[0] for line in verdict.reasons[0].commands] == ["0:20", "20:36"]


def test_u4_a_flash_that_is_reconstructed_is_no_shot() -> None:
    verdict = judge_clip(cut_clip(29.0, frozenset()))
    assert verdict.title == "Good fit"
    assert any("changes abruptly between frames 19 and 20, and is" in reason.text for reason in verdict.reasons)
