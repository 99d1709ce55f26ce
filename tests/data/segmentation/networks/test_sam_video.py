"""Objects followed by SAM 2.1 and EdgeTAM, with tiny random networks: what they find is noise, its handling is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.networks.sam_video import (
    SamVideoNetwork,
    SamVideoSegmenter,
    choose_points,
    find_whole_frames,
)
from neural_fields.data.segmentation.segmenter import ClipSegmentation, FrameHints, settle_overlaps
from neural_fields.nn.pretrained import NetworkSource
from tests.support import tiny_networks

pytestmark = pytest.mark.slow  # transformers alone takes ten seconds to import

HEIGHT, WIDTH = 36, 60
FRAMES = np.random.default_rng(0).integers(0, 255, (24, HEIGHT, WIDTH, 3), np.uint8)
FRAMES.flags.writeable = False  # as those mapped from a file
NOTHING = np.zeros((HEIGHT, WIDTH), np.int8)
BLOCK = np.zeros((HEIGHT, WIDTH), bool)
BLOCK[4:20, 10:30] = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return tiny_networks.sam2_video(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def segmenter(folder: Path) -> SamVideoSegmenter:
    return SamVideoSegmenter(NetworkSource(str(folder), "cpu"))


def mark(*points: tuple[int, int], sign: int = 1) -> np.ndarray:
    labels = NOTHING.copy()
    for x, y in points:
        labels[y, x] = sign
    return labels


def segment(
    segmenter: SamVideoSegmenter, objects: dict[str, dict[int, FrameHints]], count: int = 8
) -> ClipSegmentation:
    none, sure = np.zeros((count - 1, HEIGHT, WIDTH, 2), np.float32), np.ones((count - 1, HEIGHT, WIDTH), bool)
    return segmenter.segment(FRAMES[:count], FlowField(none, none, sure, sure), objects)


def test_objects_keep_their_names_their_order_and_the_masks_that_were_given(segmenter: SamVideoSegmenter) -> None:
    found = segment(
        segmenter,
        {
            "rider": {2: FrameHints(NOTHING, mask=BLOCK), 6: FrameHints(mark((3, 30), sign=-1))},
            "board": {5: FrameHints(mark((40, 30)), box=(30, 20, 50, 34))},
            "kite": {2: FrameHints(NOTHING, mask=BLOCK[:, ::-1].copy())},
        },
    )
    assert found.names == ("rider", "board", "kite")
    assert found.shares.shape == (3, 8, HEIGHT, WIDTH) and found.confidence.shape == (3, 8)
    assert ((found.shares[0, 2] >= 128) == BLOCK).all()
    assert ((found.shares[2, 2] >= 128) == BLOCK[:, ::-1]).all() or (BLOCK & BLOCK[:, ::-1]).any()
    assert found.confidence[0, 2] == 1
    alone = segment(segmenter, {"board": {5: FrameHints(mark((40, 30)), box=(30, 20, 50, 34))}})
    assert np.allclose(alone.confidence[0, 4:6], found.confidence[1, 4:6]), "objects do not change each other"


def test_a_mask_lies_in_the_network_where_it_lies_in_the_frame(segmenter: SamVideoSegmenter) -> None:
    network = segmenter.network
    pixels = network.prepare_frame(FRAMES[0])
    logits, score = network.start_memory().point_at(0, pixels, FrameHints(NOTHING, mask=BLOCK), True, False)
    inside = logits > 0
    assert logits.shape == (HEIGHT, WIDTH) and score > 0.99
    assert (inside & BLOCK).sum() / (inside | BLOCK).sum() > 0.8


def test_points_and_boxes_lie_in_the_network_where_they_lie_in_the_frame(segmenter: SamVideoSegmenter) -> None:
    network = segmenter.network
    memory = network.start_memory()
    given: list[dict[str, Any]] = []
    add = memory.session.add_point_inputs

    def add_and_note(index: int, number: int, inputs: dict[str, Any]) -> None:
        given.append(inputs)
        add(index, number, inputs)

    memory.session.add_point_inputs = add_and_note
    hints = FrameHints(mark((29, 17)) + mark((50, 30), sign=-1), box=(15, 9, 45, 27))
    memory.point_at(0, network.prepare_frame(FRAMES[0]), hints, True, False)
    scale = torch.tensor([tiny_networks.SIDE / WIDTH, tiny_networks.SIDE / HEIGHT])
    expected = torch.tensor([[15.0, 9], [45, 27], [29.5, 17.5], [50.5, 30.5]]) * scale
    assert torch.allclose(given[0]["point_coords"][0, 0], expected, atol=1e-4)
    assert given[0]["point_labels"][0, 0].tolist() == [2, 3, 1, 0]


def test_following_frame_by_frame_equals_the_whole_clip_in_memory(segmenter: SamVideoSegmenter) -> None:
    """Against the session of transformers, which keeps every frame and every state."""
    network = segmenter.network
    video = torch.cat([network.prepare_frame(frame).values for frame in FRAMES])
    session = network.processor.init_video_session(inference_device="cpu", dtype=torch.float32)
    session.processed_frames = dict(enumerate(video))
    network.processor.add_inputs_to_inference_session(session, 0, 1, input_masks=torch.from_numpy(BLOCK))
    memory = network.start_memory()
    memory.point_at(0, network.prepare_frame(FRAMES[0]), FrameHints(NOTHING, mask=BLOCK), True, False)
    before = None
    for output in network.model.propagate_in_video_iterator(session, start_frame_idx=0):
        if output.frame_idx == 0:
            continue
        logits, _ = memory.follow(output.frame_idx, network.prepare_frame(FRAMES[output.frame_idx]), False)
        expected = torch.nn.functional.interpolate(output.pred_masks, (HEIGHT, WIDTH), mode="bilinear")[0, 0]
        assert np.allclose(logits, expected.numpy(), atol=1e-4), output.frame_idx
        assert before is None or not np.allclose(logits, before, atol=1e-2), "this network sees differences"
        before = logits
    assert output.frame_idx == len(FRAMES) - 1


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_remembered_does_not_grow_with_the_clip(segmenter: SamVideoSegmenter, reverse: bool) -> None:
    network = segmenter.network
    config = network.model.config
    memory = network.start_memory()
    numbers = range(36, -1, -1) if reverse else range(37)
    memory.point_at(numbers[0], network.prepare_frame(FRAMES[0]), FrameHints(NOTHING, mask=BLOCK), True, False)
    pixels = network.prepare_frame(FRAMES[1])
    sizes = []
    for number in numbers[1:]:
        memory.follow(number, pixels, reverse)
        passing = memory.states["non_cond_frame_outputs"].values()
        sizes.append((len(passing), sum(len(state) for state in passing)))
        assert not memory.session.processed_frames and not memory.session.cache._vision_features
        assert not memory.session.frames_tracked_per_obj[memory.index]
        assert not memory.session.mask_inputs_per_obj[memory.index]
    assert len(set(sizes[20:])) == 1
    assert sizes[-1] == (config.max_object_pointers_in_encoder - 1, 15 + 2 * (config.num_maskmem - 1))
    assert list(memory.states["cond_frame_outputs"]) == [numbers[0]], "hinted frames are kept for good"
    memory.turn()
    assert not memory.states["non_cond_frame_outputs"] and memory.states["cond_frame_outputs"]


def test_corrections_are_solved_in_context_and_stay(segmenter: SamVideoSegmenter) -> None:
    network = segmenter.network
    memory = network.start_memory()
    pixels = network.prepare_frame(FRAMES[0])
    memory.point_at(0, pixels, FrameHints(NOTHING, mask=BLOCK), True, False)
    corrected, _ = memory.point_at(5, network.prepare_frame(FRAMES[5]), FrameHints(mark((40, 30))), False, False)
    alone, _ = network.start_memory().point_at(
        5, network.prepare_frame(FRAMES[5]), FrameHints(mark((40, 30))), True, False
    )
    assert not np.allclose(corrected, alone)
    assert list(memory.states["cond_frame_outputs"]) == [0, 5] and not memory.states["non_cond_frame_outputs"]


def test_progress_counts_every_frame_of_every_object_once(segmenter: SamVideoSegmenter) -> None:
    seen: list[Progress] = []
    none, sure = np.zeros((4, HEIGHT, WIDTH, 2), np.float32), np.ones((4, HEIGHT, WIDTH), bool)
    hints = {"a": {3: FrameHints(NOTHING, mask=BLOCK)}, "b": {0: FrameHints(mark((5, 5)))}}
    segmenter.segment(FRAMES[:5], FlowField(none, none, sure, sure), hints, seen.append)
    assert [step.done for step in seen] == sorted({step.done for step in seen})
    assert (seen[-1].done, seen[-1].total, seen[-1].stage) == (10, 10, "objects")


def test_weights_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "processor_config.json").write_bytes((folder / "processor_config.json").read_bytes())
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="do not fit its config"):
        SamVideoNetwork(NetworkSource(str(tmp_path), "cpu"))
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        SamVideoNetwork(NetworkSource(str(tmp_path), "cpu"))


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="the backbone of EdgeTAM is timm's: pip install timm"
)
def test_edgetam_follows_objects_too(tmp_path: Path) -> None:
    segmenter = SamVideoSegmenter(NetworkSource(str(tiny_networks.edgetam_video(tmp_path)), "cpu"))
    found = segment(segmenter, {"rider": {1: FrameHints(NOTHING, mask=BLOCK)}}, 4)
    assert ((found.shares[0, 1] >= 128) == BLOCK).all()


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_edgetam_without_timm_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {"model_type": "edgetam_video", "vision_config": {"model_type": "edgetam_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    tiny_networks.save_sam_processor(tmp_path)
    with pytest.raises(UserError, match="pip install timm"):
        SamVideoNetwork(NetworkSource(str(tmp_path), "cpu"))


def test_a_click_is_one_point_and_a_stroke_several_along_it() -> None:
    points, signs = choose_points(mark((7, 5)) + mark((50, 30), sign=-1))
    assert points.tolist() == [[7, 5], [50, 30]] and signs.tolist() == [1, 0]
    stroke = NOTHING.copy()
    stroke[10:13, 5:55] = 1
    points, signs = choose_points(stroke)
    assert 4 <= len(points) <= 12 and set(signs.tolist()) == {1}
    assert (stroke[points[:, 1], points[:, 0]] == 1).all()
    assert np.ptp(points[:, 0]) > 40, "they reach to both ends"
    many = mark(*[(x, y) for x in range(1, 60, 3) for y in range(1, 36, 3)])
    assert len(choose_points(many)[0]) == 12
    assert choose_points(NOTHING)[0].shape == (0, 2)


def test_boxes_and_masks_say_where_an_object_is_and_the_first_points_if_there_are_none() -> None:
    point, box = FrameHints(mark((7, 5))), FrameHints(NOTHING, box=(0, 0, 9, 9))
    assert find_whole_frames("person", {9: point, 4: box, 2: point}) == [4]
    assert find_whole_frames("person", {9: point, 4: point}) == [4]
    with pytest.raises(UserError, match="person: nothing says where the object is"):
        find_whole_frames("person", {3: FrameHints(mark((7, 5), sign=-1))})
    with pytest.raises(UserError, match="the mask of frame 3 is empty"):
        find_whole_frames("person", {3: FrameHints(NOTHING, mask=BLOCK & ~BLOCK)})


def test_a_pixel_that_several_objects_want_goes_to_the_surest() -> None:
    shares = np.array([[200, 100, 255], [180, 100, 255], [100, 20, 10]], np.uint8).reshape(3, 1, 1, 3)
    settle_overlaps(shares)
    assert shares[:, 0, 0].T.tolist() == [[200, 35, 19], [100, 100, 20], [255, 0, 0]]
