"""What a user, a log and a program see of the progress: bars, plain lines, JSON lines."""

from __future__ import annotations

import json
import os
import pty
import sys
import threading
from collections.abc import Callable

import pytest

from neural_fields.cli.commands import NoteHandler
from neural_fields.cli.progress_display import (
    JsonLines,
    PlainLines,
    ProgressBars,
    TimeEstimate,
    describe_progress,
    format_duration,
    show_progress,
)
from neural_fields.core.progress import (
    Progress,
    ProgressReporter,
    overall_share,
    rename_stage,
    report_nothing,
    report_part,
)

WEIGHTS = {"reading": 1.0, "flow": 3.0, "training": 6.0}


def on_a_terminal(show: Callable[[ProgressReporter], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of 100 columns receives on stderr while `show` reports."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    screen, side = pty.openpty()
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(screen, 4096)
            except OSError:  # the other side is closed
                return
            if not chunk:
                return
            received.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(side, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with show_progress(WEIGHTS) as report:
            show(report)
    reader.join(10)
    os.close(screen)
    return b"".join(received).decode()


def test_off_a_terminal_progress_is_a_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(WEIGHTS) as line:
        assert isinstance(line, PlainLines)
        for step in range(1, 1001):
            line(Progress("training", step, 1000, 30.125, 0.01, 75.0, 512.0))
        line(Progress("training", 1000, 1000, note="out of memory"))
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = captured.err.splitlines()
    assert len(shown) == 3 and "\r" not in captured.err and "\x1b" not in captured.err
    job = "(all 40%, 1:15 left)"
    assert shown[0] == f"training   1/1000  10 ms/step  1:15 left  PSNR 30.12 dB  512 MiB  {job}"
    assert shown[1].startswith("training   1000/1000") and shown[2] == "note: out of memory"


def test_for_a_machine_each_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(WEIGHTS, as_json=True) as line:
        assert isinstance(line, JsonLines)
        for step in range(1, 1001):
            line(Progress("training", step, 1000, float("nan"), 0.01, 75.0))
        line(Progress("training", 1000, 1000, note="out of memory"))
    captured = capsys.readouterr()
    assert captured.out == ""
    first, last, note = [json.loads(text) for text in captured.err.splitlines()]
    assert first == {
        "stage": "training",
        "done": 1,
        "total": 1000,
        "overall": pytest.approx(0.4006),
        "overall_seconds_left": 75.0,
        "psnr": None,
        "seconds_per_step": 0.01,
        "seconds_left": 75.0,
        "peak_mib": None,
        "note": None,
        "part": None,
    }
    assert last["done"] == 1000 and last["overall"] == 1.0 and last["note"] is None
    assert note["note"] == "out of memory"


def test_a_terminal_shows_the_whole_job_and_its_stage_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(report: ProgressReporter) -> None:
        assert isinstance(report, ProgressBars)
        report(Progress("reading", 1, 1))
        report(Progress("flow", 2, 4))
        report(Progress("training", 5, 10, 30.125, 0.01, 75.0, 512.0))

    shown = on_a_terminal(show, monkeypatch)
    *_, overall, stage = [line for line in shown.replace("\x1b[?25h", "").splitlines() if line.strip("\x1b[0m \r")][-2:]
    assert "all" in overall and "70%" in overall and "1:15 left" in overall
    assert "training" in stage and "50%" in stage and "5/10" in stage and "PSNR 30.12 dB" in stage and "512" in stage
    assert capsys.readouterr().out == ""


def test_notes_and_warnings_stand_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    def show(report: ProgressReporter) -> None:
        report(Progress("flow", 1, 4))
        report(Progress("flow", 1, 4, note="[bold] a shot begins at frame 12"))
        NoteHandler().emit(logging.LogRecord("editors", logging.WARNING, "", 0, "the disk is nearly full", None, None))
        report(Progress("flow", 2, 4))

    shown = on_a_terminal(show, monkeypatch)
    assert "note: [bold] a shot begins at frame 12\r\n" in shown  # whole lines of their own, nothing of them is markup
    assert "note: the disk is nearly full\r\n" in shown
    assert "2/4" in shown[shown.index("nearly full") :]


def test_the_cursor_of_the_terminal_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C ends the process at once: nothing could show it again."""
    states = []

    def show(report: ProgressReporter) -> None:
        report(Progress("flow", 1, 4))

    shown = on_a_terminal(show, monkeypatch)
    while "\x1b[?25" in shown:
        shown = shown[shown.index("\x1b[?25") + 5 :]
        states.append(shown[0])
    assert states[:2] == ["l", "h"] and "l" not in states[1:]


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with show_progress(WEIGHTS) as report:
        assert isinstance(report, PlainLines)


def test_the_whole_job_goes_on_by_the_weights_of_its_stages() -> None:
    shares = [
        overall_share(WEIGHTS, Progress(stage, done, total))
        for stage, done, total in [("reading", 0, 1), ("reading", 1, 1), ("training", 0, 8), ("training", 4, 8)]
    ]
    assert shares == [0.0, 0.1, 0.4, 0.7]
    assert overall_share(WEIGHTS, Progress("training", 9, 8)) == 1.0
    assert overall_share(WEIGHTS, Progress("denoising", 1, 2)) is None


def test_a_silent_stage_is_shown_again_and_one_that_reports_often_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("neural_fields.cli.progress_display.time.monotonic", lambda: now)
    lines = PlainLines(WEIGHTS)
    for _ in range(240):  # a minute without a word, looked at four times a second
        now += 0.25
        lines.show_again()
    assert capsys.readouterr().err.splitlines() == ["starting   0/1"] * 40
    for step in range(1, 241):  # then two minutes with two reports a second: a line every five seconds
        now += 0.5
        lines(Progress("flow", step, 1000))
    assert 20 < len(capsys.readouterr().err.splitlines()) < 30


def test_a_stage_without_an_estimate_of_its_own_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("neural_fields.cli.progress_display.time.monotonic", lambda: now)
    estimate = TimeEstimate({})
    assert estimate.complete(Progress("rendering", 1, 5)).seconds_left is None
    now = 130.0  # it went on from the first frame: three frames took half a minute
    assert estimate.complete(Progress("rendering", 4, 5)).seconds_left == pytest.approx(10.0)
    assert estimate.complete(Progress("rendering", 4, 5, seconds_left=7.0)).seconds_left == 7.0


def test_a_plan_gives_an_estimate_at_once_and_what_is_measured_corrects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("neural_fields.cli.progress_display.time.monotonic", lambda: now)
    estimate = TimeEstimate({**WEIGHTS, "rendering": 10.0})
    estimate.take_plan({"reading": 10.0, "flow": 30.0, "training": 60.0})
    assert estimate.weights["rendering"] == 100.0  # not in the plan: it keeps its weight beside the others
    estimate.take_plan({"reading": 10.0, "flow": 30.0, "training": 60.0, "rendering": 0.0})
    assert estimate.update(Progress("reading", 0, 10)) == pytest.approx(100.0)
    now = 120.0  # twice as long as planned: what follows takes longer as well, but not twice as long
    left = estimate.update(Progress("reading", 10, 10))
    assert left is not None and 90 < left < 180


def test_the_end_of_a_job_is_estimated_from_the_stages_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("neural_fields.cli.progress_display.time.monotonic", lambda: now)
    estimate = TimeEstimate(WEIGHTS)
    assert estimate.update(Progress("reading", 0, 1)) is None
    now = 102.0  # one unit of work took two seconds, nine are to come
    assert estimate.update(Progress("reading", 1, 1)) == 18.0
    assert estimate.update(Progress("training", 0, 10)) is None  # the flow was cached: it says nothing
    now = 105.0
    assert estimate.update(Progress("training", 5, 10)) == 3.0
    assert estimate.update(Progress("training", 5, 10, seconds_left=7.0)) == 7.0
    assert estimate.update(Progress("denoising", 5, 10)) is None


def test_a_stage_with_parts_is_called_by_its_part(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(WEIGHTS) as line:
        for step in (1, 2, 3, 4):
            line(Progress("training", step, 4, part="background" if step < 3 else "person"))
    assert capsys.readouterr().err.splitlines() == ["background  1/4", "person     3/4", "person     4/4"]


def test_a_stage_can_have_another_name_in_the_job_around_it() -> None:
    seen: list[Progress] = []
    rename_stage(seen.append, "denoising keyframes")(Progress("denoising", 1, 2, psnr=30.0))
    assert seen == [Progress("denoising keyframes", 1, 2, psnr=30.0)]
    report_nothing(seen[0])


def test_parts_of_a_stage_make_one_count() -> None:
    seen: list[Progress] = []
    layers = [report_part(seen.append, "geometry", first, first + 0.5) for first in (0.0, 0.5)]
    for layer in layers:
        for report in (report_part(layer, "search", 0.0, 0.2), report_part(layer, "views", 0.2, 1.0)):
            for done in range(3):
                report(Progress("frames", done, 2))
    counts = [progress.done for progress in seen]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 100
    assert {(progress.stage, progress.total) for progress in seen} == {("geometry", 100)}
    layers[0](Progress("frames", 1, 2, note="a shot begins"))
    assert (seen[-1].note, seen[-1].stage) == ("a shot begins", "geometry")


def test_times_are_said_as_people_say_them() -> None:
    durations = [format_duration(seconds) for seconds in (0.4, 75.0, 3600.0, 86399.6)]
    assert durations == ["0:00", "1:15", "1:00:00", "24:00:00"]
    assert describe_progress(Progress("flow", 1, 5)) == "1/5"
