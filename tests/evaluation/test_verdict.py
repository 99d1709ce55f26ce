"""The verdict on a clip, against made-up measurements."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest

from editors.cli.main import parse_command
from neural_fields.cli.commands import TrainCommand, parse_overrides
from neural_fields.config.presets import planar_presets
from neural_fields.evaluation.report.drift import Drift
from neural_fields.evaluation.report.layer_faults import FrameBox, Jump, LayerFaults, MissingPart, UnheldObject
from neural_fields.evaluation.report.verdict import ClipMeasurements, LayerMeasurements, TrainCommandLine, judge_clip
from neural_fields.planar.config import load_planar_config

STEADY = Drift(0.1, 8, 0.5, 0.95, 900)
BACKGROUND = LayerMeasurements("background", 0.9, 30.0, 0.01, 0.0, 0.8, 20.0, 1.5, 0.9, 0.1, 0.0, STEADY)
PLACE = FrameBox(6, (0.25, 0.25, 0.5, 0.5))
FRONT = replace(BACKGROUND, name="it's a <swan>", pixel_share=0.1)
COMMAND = TrainCommandLine(
    "my clip.mp4", "runs/my clip", range(10, 50), "atlas", "normal", ("auto",), "auto", ("--size", "64x36")
)
GOOD = ClipMeasurements(
    tuple(range(10, 50)), (30.0,) * 40, (0.95,) * 39, (FRONT, BACKGROUND), COMMAND, tuple(planar_presets())
)


def with_background(**changes: Any) -> ClipMeasurements:
    return replace(GOOD, layers=(FRONT, replace(BACKGROUND, **changes)))


def with_front(**changes: Any) -> ClipMeasurements:
    return replace(GOOD, layers=(replace(FRONT, **changes), BACKGROUND))


CASES = {
    "good": (GOOD, "good", "matches the video well"),
    "soft": (replace(GOOD, psnr=(25.0,) * 40), "care", "is soft"),
    "wrong": (replace(GOOD, psnr=(18.0,) * 40), "bad", "does not match"),
    "cut": (
        replace(GOOD, trust=(*(0.95,) * 20, 0.03, *(0.95,) * 18), psnr=(*(30.0,) * 21, *(20.0,) * 19)),
        "bad", "between frames 30 and 31",
    ),
    "a cut that is handled": (
        replace(GOOD, trust=(*(0.95,) * 20, 0.03, *(0.95,) * 18), chart_starts=frozenset({10, 31})),
        "good", "2 shots found (cut between frames 30 and 31)",
    ),
    "jumps": (with_front(name="swan", faults=LayerFaults((Jump(5, 0.2, 0.0, PLACE),))), "care", "jumps: it loses 20%"),
    "no layer": (replace(GOOD, unheld=(UnheldObject(0.02, 0.9, PLACE),)), "care", "Something that moves has no layer"),
    "water": (replace(GOOD, trust=(0.6,) * 39), "good", "well"),
    "falls": (replace(GOOD, psnr=(*(30.0,) * 30, *(24.0,) * 6, *(30.0,) * 4)), "care", "Frames 40 to 45 are"),
    "folds": (with_background(folded=0.02), "care", "folds over in 2.0%"),
    "folded": (with_background(folded=0.2), "bad", "folds over in 20.0%"),
    "a small layer folded": (with_front(folded=0.2), "care", "folds over"),
    "stretched": (with_background(stretched=0.4), "bad", "stretched or squeezed"),
    "wanders": (with_front(drift=replace(STEADY, steady=0.6)), "care", "Edits may slide"),
    "few points": (with_front(drift=replace(STEADY, steady=0.0, points=3)), "good", "well"),
    "never seen": (with_front(pixel_share=0.0, psnr=None, seen=0.0, drift=None), "care", "never visible"),
    "passes by": (with_background(frames_per_place=2.0), "care", "on screen for 2 of 40 frames"),
    "no room": (with_background(green=0.2), "care", "20% of 'background' only"),
    "front shown wrongly": (with_front(psnr=17.0), "care", "reconstructed poorly"),
    "no flow": (replace(GOOD, trust=None, layers=(replace(BACKGROUND, drift=None),)), "good", "well"),
    "exact": (replace(GOOD, psnr=(math.inf,) * 40), "good", "well"),
    "one frame": (
        replace(GOOD, surveyed_frames=(10,), psnr=(33.0,), trust=None, command=replace(COMMAND, frames=range(10, 11)),
                layers=(replace(BACKGROUND, drift=None, frames_per_place=1.0),)),
        "good", "well",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_verdict_says_what_was_found_the_worst_first(case: str) -> None:
    measured, level, words = CASES[case]
    verdict = judge_clip(measured)
    assert verdict.level == level
    assert any(words in reason.text for reason in verdict.reasons)
    ranks = [("bad", "care", "good").index(reason.level) for reason in verdict.reasons]
    assert ranks == sorted(ranks)
    if level != "good":
        assert any(reason.advice for reason in verdict.reasons if reason.level != "good")


def with_frame(psnr: float) -> ClipMeasurements:
    return replace(GOOD, psnr=(psnr, *(30.0,) * 39))


def with_trust(usual: float, once: float, psnr_after: float = 20.0) -> ClipMeasurements:
    """A change of the picture after which the reconstruction is worse."""
    psnr = (*(40.0,) * 21, *(psnr_after,) * 19)
    return replace(GOOD, trust=(*(usual,) * 20, once, *(usual,) * 18), psnr=psnr)


def with_steady(share: float, points: int = 900) -> ClipMeasurements:
    return with_background(drift=replace(STEADY, steady=share, points=points))


@pytest.mark.parametrize(
    ("measured", "level"),
    [
        (replace(GOOD, psnr=(27.0,) * 40), "good"), (replace(GOOD, psnr=(26.9,) * 40), "care"),
        (replace(GOOD, psnr=(22.0,) * 40), "care"), (replace(GOOD, psnr=(21.9,) * 40), "bad"),
        (with_background(psnr=22.0), "good"), (with_background(psnr=21.9), "bad"),
        (with_frame(26.0), "good"), (with_frame(25.9), "care"),
        (with_trust(0.95, 0.4), "care"), (with_trust(0.95, 0.39), "bad"),
        (with_trust(0.6, 0.31), "care"), (with_trust(0.6, 0.29), "bad"),
        (with_trust(0.95, 0.03, 37.0), "good"), (with_trust(0.95, 0.03, 22.0), "care"),
        (with_trust(0.95, 0.03, 21.9), "bad"),
        (with_front(faults=LayerFaults(jumps=(Jump(5, 0.049, 0.0, PLACE),))), "good"),
        (with_front(faults=LayerFaults(jumps=(Jump(5, 0.0, 0.05, PLACE),))), "care"),
        (with_front(faults=LayerFaults(growth=0.149)), "good"), (with_front(faults=LayerFaults(growth=-0.15)), "care"),
        (with_front(faults=LayerFaults(missing=MissingPart(0.079, False, PLACE))), "good"),
        (with_front(faults=LayerFaults(missing=MissingPart(0.08, False, PLACE))), "care"),
        (with_front(faults=LayerFaults(empty_frames=(7,))), "good"),
        (with_front(faults=LayerFaults(empty_frames=(7, 8))), "care"),
        (with_background(folded=0.0099), "good"), (with_background(folded=0.01), "care"),
        (with_background(folded=0.0499), "care"), (with_background(folded=0.05), "bad"),
        (with_background(stretched=0.099), "good"), (with_background(stretched=0.1), "care"),
        (with_background(stretched=0.299), "care"), (with_background(stretched=0.3), "bad"),
        (with_steady(0.7), "good"), (with_steady(0.69), "care"), (with_steady(0.4), "care"), (with_steady(0.39), "bad"),
        (with_steady(0.0, points=49), "good"), (with_steady(0.0, points=50), "bad"),
        (with_background(frames_per_place=6.0), "good"), (with_background(frames_per_place=5.9), "care"),
        (with_background(green=0.5), "good"), (with_background(green=0.49), "care"),
        (with_background(folded=0.2, pixel_share=0.49), "care"), (with_background(folded=0.2, pixel_share=0.5), "bad"),
    ],
)  # fmt: skip
def test_a_verdict_changes_at_its_limits(measured: ClipMeasurements, level: str) -> None:
    assert judge_clip(measured).level == level


@pytest.mark.parametrize("preset", planar_presets())
def test_every_command_that_is_advised_is_one_that_the_program_takes(preset: str) -> None:
    settings = ("--training.steps", "50") if preset == "atlas" else ()
    lines = set()
    for quality, masks in (("draft", ("swan=my masks",)), ("final", ("auto",)), ("final", ("swan=my masks",))):
        command = replace(COMMAND, preset=preset, quality=quality, masks=masks, settings=settings)
        for name in CASES if preset == "atlas" else ("soft", "wrong", "folds", "front shown wrongly"):
            measured = CASES[name][0]
            verdict = judge_clip(replace(measured, command=replace(command, frames=measured.command.frames)))
            lines |= {line for reason in verdict.reasons for line in reason.commands}
    assert len(lines) > 2
    for line in lines:
        words = shlex.split(line)
        asked, extra = parse_command(words[1:])
        assert words[0] == "unwrap" and "my clip" in line
        if isinstance(asked, TrainCommand):
            load_planar_config(asked.options.config, parse_overrides(extra))
            assert (
                asked.options.size == "64x36"
                and asked.options.frames
                and not (asked.options.config != "atlas" and extra)
            )


def test_a_clip_with_a_cut_is_to_be_trained_in_parts_and_not_harder() -> None:
    verdict = judge_clip(replace(CASES["cut"][0], psnr=(18.0,) * 40))
    lines = [line for reason in verdict.reasons for line in reason.commands]
    assert [re.findall(r"--frames (\S+)", line)[0] for line in lines] == ["10:31", "31:50"]


def test_advice_is_given_once() -> None:
    verdict = judge_clip(replace(with_front(folded=0.2, stretched=0.5), psnr=(18.0,) * 40))
    given = [(reason.advice, reason.commands) for reason in verdict.reasons if reason.advice]
    assert len(given) == len(set(given)) > 1
