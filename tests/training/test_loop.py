"""The training loop with a task that needs no clip: two stages that pull a point towards a target."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neural_fields.config.training_stage import TrainingStage
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress, report_nothing
from neural_fields.runs.checkpoints import load_latest_checkpoint
from neural_fields.runs.run import Run, read_metrics
from neural_fields.training import loop
from neural_fields.training.loop import StepRecord, measure_psnr, run_training, train_steps
from neural_fields.training.task import GradientTask


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3))


class Quadratic(GradientTask):
    """Squared distance of a point to a target with noise that a step draws."""

    retry_advice = "a better start"

    def __init__(self, steps: tuple[int, int] = (6, 4), preview_every: int = 0, seed: int = 0) -> None:
        self.model: Point = Point()
        self.stages = (TrainingStage("near", 0, steps[0]), TrainingStage("far", steps[0], sum(steps)))
        self.stages = tuple(stage for stage in self.stages if stage.first < stage.last)
        self.checkpoint_every, self.preview_every, self.color_weight = 4, preview_every, 2.0
        self.seed = seed
        self.seen: list[tuple[str, int, int]] = []  # stage, step, divisor
        self.shares: list[float] = []  # how much of the training is over, at each step
        self.previews = 0
        self.spoil: Callable[[int, int], float] = lambda step, divisor: 0.0  # added to the loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.model.place], "lr": 0.1}]

    def learning_rate_factor(self, stage: TrainingStage, step: int, progress: float) -> float:
        self.shares.append(progress)
        return 1.0 - 0.5 * stage.progress(step)

    def batch_size(self, stage: TrainingStage) -> int:
        return 8

    def compute_gradients(self, stage: TrainingStage, step: int, batch_divisor: int) -> dict[str, float]:
        self.seen.append((stage.name, step, batch_divisor))
        extra = self.spoil(step, batch_divisor)
        noise = torch.randn(3, generator=torch.Generator().manual_seed((self.seed << 32) + step))
        loss = 2.0 * (self.model.place - 1 - 0.1 * noise).square().mean() + extra
        loss.backward()
        return {"color": float(loss.detach())}

    def save_previews(self, run: Run) -> None:
        self.previews += 1

    def checkpoint_metadata(self) -> dict[str, Any]:
        return {"shape": [3]}


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def run(tmp_path: Any) -> Run:
    return Run.create(tmp_path / "run")


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which a checkpoint is saved."""
    steps: list[int] = []
    save = loop.save_checkpoint

    def count(run: Run, step: int, *rest: Any) -> Any:
        steps.append(step)
        return save(run, step, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", count)
    return steps


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(steps + 1))
    return lambda: next(asked) >= steps


# --- steps and checkpoints ------------------------------------------------------------------------------------------


def test_stages_follow_each_other_in_one_count_of_steps(run: Run) -> None:
    task = Quadratic()
    records = list(train_steps(task, run))
    assert [record.step for record in records] == list(range(1, 11))
    assert [record.stage for record in records] == ["near"] * 6 + ["far"] * 4
    assert task.seen == [(record.stage, record.step - 1, 1) for record in records]
    assert task.shares == [step / 10 for step in range(10)]
    assert records[-1].terms["color"] < 0.5 * records[0].terms["color"]
    assert not task.model.training


@pytest.mark.parametrize(("steps", "expected"), [((6, 4), [4, 8, 10]), ((6, 2), [4, 8]), ((0, 3), [3])])
def test_the_end_is_saved_exactly_once(steps: tuple[int, int], expected: list[int], run: Run, saves: list[int]) -> None:
    list(train_steps(Quadratic(steps), run))
    assert saves == expected
    list(train_steps(Quadratic(steps), run))
    assert saves == expected  # nothing was left to do, and nothing was written


def test_a_checkpoint_says_what_the_task_and_the_loop_need(run: Run) -> None:
    task = Quadratic()
    task.spoil = lambda step, divisor: float("nan") if step == 1 else 0.0
    list(train_steps(task, run))
    checkpoint = load_latest_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.metadata["shape"] == [3] and checkpoint.metadata["threads"] == torch.get_num_threads()
    assert checkpoint.metadata["loop"]["skipped"] == 1 and checkpoint.metadata["loop"]["batch_divisor"] == 1
    assert torch.equal(checkpoint.model["place"], task.model.place)


def test_a_stop_request_is_honored_before_the_next_step_and_saved(run: Run, saves: list[int]) -> None:
    task = Quadratic()
    assert run_training(task, run, report_nothing, stop_after(3)) == 3
    assert len(task.seen) == 3 and saves == [3]
    assert run_training(Quadratic(), run, report_nothing, stop_after(0)) == 3
    assert saves == [3]


def test_stopping_after_every_step_ends_with_the_same_numbers(tmp_path: Any) -> None:
    whole, broken = Quadratic(), Quadratic()
    list(train_steps(whole, Run.create(tmp_path / "whole")))
    for step in range(1, 11):
        broken = Quadratic()
        assert run_training(broken, Run.create(tmp_path / "broken"), report_nothing, stop_after(1)) == step
    assert torch.equal(whole.model.place, broken.model.place)
    first, second = (load_latest_checkpoint(Run(tmp_path / name)) for name in ("whole", "broken"))
    assert first is not None and second is not None and first.state.keys() == second.state.keys()
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())


# --- memory and numbers that are not finite -------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_says_so_and_keeps_it(run: Run) -> None:
    def spoil(step: int, divisor: int) -> float:
        if divisor < (4 if step >= 2 else 1):
            raise torch.OutOfMemoryError("no room")
        return 0.0

    task = Quadratic()
    task.spoil = spoil
    records = list(train_steps(task, run, stop=stop_after(5)))
    assert [divisor for _, _, divisor in task.seen] == [1, 1, 1, 2, 4, 4, 4]
    halved = tuple(f"out of memory: the batch is now 1/{divisor} of its size" for divisor in (2, 4))
    assert [record.notes for record in records] == [(), (), halved, (), ()]
    again = Quadratic()
    list(train_steps(again, run))
    assert {divisor for _, _, divisor in again.seen} == {4}


def test_memory_that_does_not_do_for_one_element_ends_the_training(run: Run) -> None:
    def spoil(step: int, divisor: int) -> float:
        raise torch.OutOfMemoryError("no room at all")

    task = Quadratic()
    task.spoil = spoil
    with pytest.raises(UserError, match="not enough memory") as error:
        list(train_steps(task, run))
    assert error.value.code == ExitCode.NO_ROOM and error.value.why == "no room at all"
    assert [divisor for _, _, divisor in task.seen] == [1, 2, 4, 8]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(bad: float, run: Run) -> None:
    task = Quadratic()
    task.spoil = lambda step, divisor: bad if step in (2, 5) else 0.0
    places = []
    records = []
    for record in train_steps(task, run):
        places.append(task.model.place.detach().clone())
        records.append(record)
    assert [record.skipped for record in records] == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    moved = [not torch.equal(now, before) for before, now in pairwise(places)]
    assert moved == [True, False, True, True, False, True, True, True, True]


def test_a_gradient_that_is_not_finite_skips_the_step_too(run: Run) -> None:
    task = Quadratic()
    compute = task.compute_gradients

    def spoiled(stage: TrainingStage, step: int, batch_divisor: int) -> dict[str, float]:
        terms = compute(stage, step, batch_divisor)
        assert task.model.place.grad is not None
        task.model.place.grad[1] = float("inf")
        return terms

    task.compute_gradients = spoiled  # type: ignore[method-assign]
    records = list(train_steps(task, run))
    assert records[-1].skipped == 10 and torch.equal(task.model.place, torch.zeros(3))


def test_too_many_such_steps_in_a_row_end_with_exit_8_and_what_the_task_advises(run: Run) -> None:
    task = Quadratic((200, 0))
    task.spoil = lambda step, divisor: float("nan") if step % 60 < 49 or step >= 120 else 0.0
    with pytest.raises(UserError, match="50 steps in a row") as error:
        list(train_steps(task, run))
    assert error.value.code == ExitCode.NOT_CONVERGED and error.value.fix == "a better start"
    assert task.seen[-1][1] == 169  # 49 in a row are borne
    checkpoint = load_latest_checkpoint(run)
    assert checkpoint is not None and checkpoint.step == 168


def test_a_step_that_draws_nothing_of_use_moves_nothing(run: Run) -> None:
    task = Quadratic()
    task.compute_gradients = lambda stage, step, batch_divisor: {}  # type: ignore[method-assign]
    records = list(train_steps(task, run))
    assert len(records) == 10 and records[-1].skipped == 0 and torch.equal(task.model.place, torch.zeros(3))


# --- time -----------------------------------------------------------------------------------------------------------


def timed(task: Quadratic, monkeypatch: pytest.MonkeyPatch, seconds_per_step: float = 1.0) -> None:
    """Lets every step of a task take some seconds of a clock that stands still otherwise."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)

    def spoil(step: int, divisor: int) -> float:
        clock.now += seconds_per_step
        return 0.0

    task.spoil = spoil


def test_a_limit_in_seconds_ends_the_training_where_it_can_be_continued(
    run: Run, monkeypatch: pytest.MonkeyPatch, saves: list[int]
) -> None:
    task = Quadratic((0, 10))
    timed(task, monkeypatch)
    assert run_training(task, run, report_nothing, lambda: False, seconds=5.0) == 5
    assert saves == [4, 5]
    assert task.shares == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])  # the rates follow the time, which ends first
    again = Quadratic((0, 10))
    timed(again, monkeypatch)
    for seconds in (0.0, -1.0):  # the time was used up before
        assert run_training(again, run, report_nothing, lambda: False, seconds=seconds) == 5
    assert run_training(again, run, report_nothing, lambda: False, seconds=100.0) == 10
    assert again.shares == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_a_limit_in_seconds_ends_each_stage_after_its_share_of_the_steps(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Quadratic((6, 4))
    timed(task, monkeypatch)
    records = list(train_steps(task, run, seconds=5.0))
    # 3 of 5 seconds for 6 of 10 steps, the rest for the other stage, which begins at its own first step.
    assert [(record.stage, record.step) for record in records] == [
        ("near", 1), ("near", 2), ("near", 3), ("far", 7), ("far", 8),
    ]  # fmt: skip


def test_the_time_that_is_left_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Progress] = []
    task = Quadratic()
    timed(task, monkeypatch, 2.0)
    run_training(task, run, told.append, lambda: False)
    assert [progress.seconds_left for progress in told] == pytest.approx([2.0 * left for left in range(9, -1, -1)])
    told.clear()
    other = Run.create(run.path.parent / "other")
    limited = Quadratic((0, 10))
    timed(limited, monkeypatch, 2.0)
    run_training(limited, other, told.append, lambda: False, seconds=7.0)
    assert [progress.seconds_left for progress in told] == pytest.approx([5.0, 3.0, 1.0, 0.0])


# --- reports --------------------------------------------------------------------------------------------------------


def test_every_step_is_reported_and_every_twentieth_is_a_line_of_metrics(run: Run) -> None:
    told: list[Progress] = []
    task = Quadratic((30, 15), preview_every=10)
    assert run_training(task, run, told.append, lambda: False) == 45
    assert {(progress.stage, progress.total) for progress in told} == {("training", 45)}
    assert [(progress.part, progress.done) for progress in told] == [
        ("near" if step <= 30 else "far", step) for step in range(1, 46)
    ]
    lines = read_metrics(run)
    assert [(line["step"], line["stage"]) for line in lines] == [(20, "near"), (40, "far")]
    keys = {"step", "stage", "psnr", "terms", "seconds_a_step", "seconds", "skipped", "peak_mib"}
    assert all(line.keys() == keys and json.dumps(line) for line in lines)
    assert lines[1]["psnr"] == told[39].psnr and lines[1]["skipped"] == 0
    assert task.previews == 4


def test_notes_are_reported_with_their_step(run: Run) -> None:
    def spoil(step: int, divisor: int) -> float:
        if step == 1 and divisor == 1:
            raise torch.OutOfMemoryError("no room")
        return 0.0

    told: list[Progress] = []
    task = Quadratic()
    task.spoil = spoil
    run_training(task, run, told.append, lambda: False)
    assert [progress.done for progress in told if "1/2 of its size" in progress.note] == [2]


def test_the_psnr_is_that_of_the_color_term_without_its_weight() -> None:
    records = [StepRecord(step, "near", {"color": 2.0 * error}, 0.1) for step, error in enumerate((0.02, 0.0))]
    assert measure_psnr(records, 2.0) == pytest.approx(20.0)
    assert measure_psnr([*records, StepRecord(3, "near", {"other": 1.0}, 0.1)], 2.0) == pytest.approx(20.0)
    assert measure_psnr(records, 0.0) is None and measure_psnr([], 1.0) is None
    assert measure_psnr([*records, StepRecord(3, "near", {"color": np.nan}, 0.1)], 2.0) is None
