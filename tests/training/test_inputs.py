"""Inputs of a training: the user's masks, flow and cuts, and what is handed on to the report."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editors.demo import make_clip_metadata
from neural_fields.core.errors import UserError
from neural_fields.core.progress import report_nothing
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.segmentation import moving_objects
from neural_fields.data.segmentation.moving_objects import MovingObjects
from neural_fields.data.synthetic.planar_clips import make_demo_clip, make_translation_clip
from neural_fields.data.video.io import read_video, write_video
from neural_fields.data.video.metadata import Video, make_metadata
from neural_fields.evaluation import report
from neural_fields.evaluation.report import Report, report_training
from neural_fields.open_runs import planar_run
from neural_fields.planar.config import PlanarConfig, load_planar_config
from neural_fields.runs.run import Run
from neural_fields.training import estimate, inputs, train_planar
from neural_fields.training.estimate import CostSettings, TrainingEstimate
from neural_fields.training.flow_size import choose_flow_size
from neural_fields.training.initialize import plan_model
from neural_fields.training.options import TrainOptions

COUNT, HEIGHT, WIDTH = 12, 20, 30


def still() -> FlowField:
    vectors, ok = np.zeros((COUNT - 1, HEIGHT, WIDTH, 2), np.float16), np.ones((COUNT - 1, HEIGHT, WIDTH), bool)
    return FlowField(vectors, vectors, ok, ok)


def given() -> LayerMasks:
    masks = np.zeros((2, COUNT, HEIGHT, WIDTH), bool)
    masks[0, :, 5:15, 5:15] = masks[1, :, 2:18, 18:28] = True
    return LayerMasks(("a", "b"), masks)


def refined(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: tuple[int, int],
    settings: inputs.GivenMaskSettings = inputs.DEFAULTS,
) -> tuple[LayerMasks, list[int]]:
    """The masks after a refinement that takes some rows off each layer, and how often it was asked."""
    calls: list[int] = []

    def refine(frames: np.ndarray, flow: FlowField, masks: LayerMasks, progress: object = None) -> LayerMasks:
        calls.append(len(frames))
        better = np.array(masks.masks)
        for layer, off in enumerate(rows):
            better[layer, :, :off] = False
        return LayerMasks(masks.names, better)

    monkeypatch.setattr(inputs, "refine_masks", refine)
    frames = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    result = inputs._refine_given_masks(tmp_path, frames, still(), given(), report_nothing, settings)
    return result, calls


def test_a_mask_that_the_refinement_changes_much_is_replaced_and_a_sure_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = refined(tmp_path, monkeypatch, (8, 2))  # of the first mask 3 of 10 rows go, of the second none
    assert result.masks[0].sum() == COUNT * 70 and np.array_equal(result.masks[1], given().masks[1])


def test_masks_are_refined_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, calls = refined(tmp_path, monkeypatch, (8, 2))
    again, more = refined(tmp_path, monkeypatch, (8, 2))
    assert calls == [COUNT] and more == [] and np.array_equal(first.masks, again.masks)


def test_a_long_clip_with_sure_masks_is_only_looked_at_in_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = inputs.GivenMaskSettings(max_full_frames=10, sample_frames=4)
    same, calls = refined(tmp_path, monkeypatch, (0, 0), settings)
    assert calls == [4, 4] and np.array_equal(same.masks, given().masks)
    _, calls = refined(tmp_path, monkeypatch, (9, 0), settings)
    assert calls == [4, COUNT]


def test_of_a_time_budget_some_is_kept_for_baking_but_no_more_than_half_and_some_for_steps() -> None:
    stages = {"baking": 8.0, "report": 4.0}
    made = TrainingEstimate(4, (32, 18), 100, stages, 30.0, 12.0, 900.0, 10.0, 5.0)
    left = [made.find_step_seconds(*budget) for budget in ((60.0, 10.0), (6.0, 1.0), (6.0, 9.0))]
    assert left == pytest.approx([60 - 10 - 8 - 4, 6 - 1 - 3, 0.6])


def test_further_cores_make_every_stage_shorter_and_stages_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_slowness", lambda settings: 1.0)
    made = []
    for cores in (1, 2):
        monkeypatch.setattr(estimate, "thread_count", lambda cores=cores: cores)
        clip, options = make_metadata((640, 360), 50, Fraction(24)), TrainOptions(size="360p")
        made.append(estimate.estimate_training(clip, options, load_planar_config("atlas"), CostSettings(core_gain=0.6)))
    for one, two in zip(made[0].stage_seconds.values(), made[1].stage_seconds.values(), strict=True):
        assert two == pytest.approx(one / 1.6, abs=0.09)  # both are rounded to tenths
    assert made[1].seconds == pytest.approx(sum(made[1].stage_seconds.values()), abs=0.1)


def test_a_short_time_budget_gets_a_size_that_leaves_time_for_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_slowness", lambda settings: 1.0)
    clip = make_metadata((1920, 1080), 100, Fraction(24))
    costs = CostSettings(
        start_s=5.0,
        read_s_per_mpf=0.02,
        flow_s_per_mpf=0.6,
        geometry_s_per_mpf=1.3,
        texture_s_per_mpf=0.2,
        bake_s_per_mpf=0.2,
        detail_s_per_mp=0.2,
        report_s=3.0,
        report_s_per_mpf=0.2,
        max_setup_share=0.6,
    )
    sizes = {}
    for seconds in (None, 3600.0, 60.0, 32.0, 5.0):
        options = TrainOptions(masks=("none",), seconds=seconds)
        size = sizes[seconds] = estimate.choose_size(clip, options, load_planar_config("atlas"), costs)
        found = estimate.estimate_training(clip, replace(options, size=size), load_planar_config("atlas"), costs)
        # Where the budget can be met, some of it is left for steps; where it cannot, that is said before.
        assert seconds is None or (found.setup_seconds > costs.max_setup_share * seconds) == (seconds == 5.0)
        assert seconds is None or bool(found.advise_on_budget(seconds, costs)) == (seconds == 5.0)
    assert list(sizes.values()) == ["480p", "480p", "180p", "120p", "120p"]


@pytest.mark.parametrize(
    ("masks", "frames", "size", "preset", "wanted"),
    [
        (("a.npy",), 12, (240, 427), "atlas", True),
        (("auto",), 12, (240, 427), "atlas", False),
        (("none",), 12, (240, 427), "atlas", False),
        (("a.npy",), 5, (240, 427), "atlas", False),
        (("a.npy",), 12, (60, 80), "atlas", False),
        (("a.npy",), 12, (240, 427), "lna", False),
    ],
)
def test_only_masks_of_a_users_own_are_refined_and_only_where_that_can_work(
    masks: tuple[str, ...], frames: int, size: tuple[int, int], preset: str, wanted: bool
) -> None:
    clip = np.broadcast_to(np.uint8(0), (frames, *size, 3))
    assert (
        inputs._should_refine_masks(load_planar_config(preset), TrainOptions(masks=masks), clip, inputs.DEFAULTS)
        is wanted
    )


def make_black_video() -> Video:
    frames = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    metadata = make_metadata((WIDTH, HEIGHT), COUNT, Fraction(24))
    return Video(frames, metadata.timestamps, metadata, (0, COUNT, 1))


def test_many_masks_are_mapped_from_a_file_with_the_same_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "FILE_BACKED_FROM_BYTES", 100)
    options, config = TrainOptions(masks=("a.npy", "b.npy")), load_planar_config("lna")
    clip, _ = inputs.prepare_clip(Run.create(tmp_path / "run"), make_black_video(), options, config, given=given())
    assert isinstance(clip.masks.masks, np.memmap) and np.array_equal(clip.masks.masks[0], given().masks[0])


def test_shares_of_soft_masks_are_kept_with_the_masks_that_the_refinement_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = 200 * given().masks.astype(np.uint8)

    def refine(frames: np.ndarray, flow: FlowField, masks: LayerMasks, progress: object = None) -> LayerMasks:
        better, less = np.array(masks.masks), np.array(masks.shares)
        better[0, :, :8] = less[0, :, :8] = 0
        less[1] = 0  # its mask stays as it is
        return LayerMasks(masks.names, better, less)

    monkeypatch.setattr(inputs, "refine_masks", refine)
    frames = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    masks = LayerMasks(given().names, given().masks, shares)
    for _ in range(2):  # the second time from the cache
        found = inputs._refine_given_masks(tmp_path, frames, still(), masks, report_nothing, inputs.DEFAULTS)
        assert isinstance(found.shares, np.memmap) and np.array_equal(found.shares[1], shares[1])
        assert not found.shares[0, :, :8].any() and np.array_equal(found.shares[0, :, 8:], shares[0, :, 8:])


def test_masks_that_motion_finds_get_soft_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, masks = make_black_video(), given().masks[:1]
    video.frames[masks[0]] = 200
    video.frames[:, 5:15, 4] = 100  # half of each of these pixels belongs to the object
    found = MovingObjects(LayerMasks(("foreground",), masks))
    monkeypatch.setattr(moving_objects, moving_objects.find_moving_objects.__name__, lambda *words: found)
    monkeypatch.setattr(inputs, inputs.compute_flow.__name__, lambda *words, **named: still())
    clip, _ = inputs.prepare_clip(Run.create(tmp_path / "run"), video, TrainOptions(), load_planar_config("lna"))
    assert clip.masks.names == ("foreground",) and clip.masks.shares is not None
    assert np.abs(clip.masks.shares[0, :, 7:13, 4].astype(int) - 128).max() < 30
    assert (clip.masks.shares[0, :, 7:13, 8:12] == 255).all() and not clip.masks.shares[0, :, :, 25:].any()


def test_flow_is_computed_on_the_device_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def compute(frames: np.ndarray, *words: object, device: str = "cpu") -> FlowField:
        devices.append(device)
        return still()

    monkeypatch.setattr(inputs, inputs.compute_flow.__name__, compute)
    video = make_black_video()
    run = Run.create(tmp_path / "run")
    options = TrainOptions(masks=("none",), flow="raft")
    make_clip = inputs.prepare_clip
    make_clip(run, video, options, load_planar_config("atlas"), device=torch.device("meta"))
    make_clip(run, video, options, load_planar_config("atlas"))
    assert devices == ["meta", "cpu"]


def test_training_hands_its_device_to_the_flow_and_loads_its_config_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def stop(*words: object, **named: object) -> None:
        assert words[-1] == torch.device("meta")
        raise Reached

    clip = make_demo_clip(3, 32, 24)
    write_video(tmp_path / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    monkeypatch.setattr(train_planar, train_planar.choose_device.__name__, lambda name: torch.device("meta"))
    monkeypatch.setattr(train_planar, train_planar.prepare_clip.__name__, stop)
    loaded: list[str] = []

    def load(name: str, overrides: dict[str, object]) -> PlanarConfig:
        loaded.append(name)
        return load_planar_config(name, overrides)

    monkeypatch.setattr(train_planar, load_planar_config.__name__, load)
    with pytest.raises(Reached):
        train_planar.train(tmp_path / "clip.mkv", TrainOptions(tmp_path / "run", flow="raft", device="cuda"))
    assert loaded == ["atlas"]


def test_a_clip_with_a_cut_gets_a_chart_for_each_shot(tmp_path: Path) -> None:
    shots = [np.roll(make_translation_clip(8, 96, 54, velocity=(2, 1), seed=seed).frames, seed, -1) for seed in (0, 1)]
    frames = np.concatenate(shots)
    metadata = make_metadata((96, 54), 16, Fraction(24))
    video = Video(frames, metadata.timestamps, metadata, (0, 16, 1))
    config, options = load_planar_config("atlas"), TrainOptions(masks=("none",), flow="dis")
    clip, _ = inputs.prepare_clip(Run.create(tmp_path / "run"), video, options, config)
    assert clip.cuts == (8,)
    (layer,) = plan_model(config, clip).shape.layers
    assert [(chart.first, chart.last) for chart in layer.charts] == [(0, 7), (8, 15)]


@pytest.mark.slow
def test_the_report_gets_the_frames_and_the_flow_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object, **options: object) -> None:
        raise AssertionError("read or computed again")

    reports: list[Report] = []

    def keep_report(*given: Any) -> Report:
        reports.append(report_training(*given))
        return reports[-1]

    clip = make_demo_clip(8, 64, 36)
    write_video(tmp_path / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    monkeypatch.setattr(planar_run, planar_run.compute_flow.__name__, refuse)
    monkeypatch.setattr(planar_run, planar_run.read_video.__name__, refuse)
    monkeypatch.setattr(report, report_training.__name__, keep_report)
    train_planar.train(tmp_path / "clip.mkv", TrainOptions(tmp_path / "run", overrides={"training.steps": 4}))
    (made,) = reports
    assert made.measurements.trust is not None and len(made.measurements.trust) == 7


@pytest.mark.parametrize("masks", [("auto:0",), ("auto:x",), ("auto:",), ("auto", "none"), ("a.npy", "auto:2")])
def test_masks_that_contradict_each_other_are_refused_before_any_work(masks: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="--masks"):
        TrainOptions(out=Path("run"), masks=masks)
    assert (TrainOptions(out=Path("run"), masks=("auto:2",)).wanted_objects, TrainOptions().wanted_objects) == (2, None)


def test_geometry_of_a_small_training_looks_at_larger_frames(tmp_path: Path) -> None:
    clip = make_demo_clip(3, 320, 180)
    write_video(tmp_path / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    run, config = Run.create(tmp_path / "run"), load_planar_config("atlas")
    options = TrainOptions(size="128x72", masks=("none",))
    source = read_video(tmp_path / "clip.mkv", run.cache, options.size)
    found, _ = inputs.prepare_clip(run, source, options, config)
    assert found.size == (128, 72) and found.flow is not None and found.flow.size == (320, 180)
    first = next(iter(clip.render_frames()))
    assert found.flow_frames is not None and np.abs(found.flow_frames[0] - 1.0 * first).max() < 12
    assert plan_model(config, found).shape.size == (128, 72)


@pytest.mark.parametrize(
    ("size", "source", "preset", "expected"),
    [
        ((427, 240), (854, 480), "atlas", (427, 240)),  # nearly as large as geometry asks for
        ((320, 240), (1280, 960), "atlas", (480, 360)),
        ((320, 240), (320, 240), "atlas", (320, 240)),  # there is no more to see
        ((960, 540), (1920, 1080), "atlas", (480, 270)),
        ((320, 240), (1280, 960), "lna", (320, 240)),  # losses compare flow with frames
    ],
)
def test_flow_has_the_size_that_geometry_or_losses_ask_for(
    size: tuple[int, int], source: tuple[int, int], preset: str, expected: tuple[int, int]
) -> None:
    assert choose_flow_size(size, source, load_planar_config(preset)) == expected
    assert choose_flow_size(size, source, load_planar_config(preset), may_grow=False)[0] <= size[0]
