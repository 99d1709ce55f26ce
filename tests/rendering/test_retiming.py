"""Output times are exact, whole frames are the source's, and those between are what a camera would have seen."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from editors.demo import make_clip_metadata
from neural_fields.atlas.chart import Chart
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip, make_translation_clip
from neural_fields.data.synthetic.suite import make_suite_clip
from neural_fields.data.synthetic.surfaces import WaveWarp
from neural_fields.data.video.metadata import SoundTrack, VideoMetadata
from neural_fields.rendering.retiming.interpolation import Retimer
from neural_fields.rendering.retiming.timeline import FrameSchedule, Timing, parse_timing, schedule_frames
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

SIZE = (160, 90)


def metadata_of(count: int, rate: Fraction | int = 24, sound: bool = False) -> VideoMetadata:
    metadata = replace(make_clip_metadata(make_translation_clip(count, 32, 18)), rate=Fraction(rate))
    times = tuple(k / Fraction(rate) for k in range(count))
    metadata = replace(metadata, timestamps=times, end=count / Fraction(rate))
    return replace(metadata, sound=(SoundTrack(1, "aac", 1.0),) if sound else ())


def planned(count: int = 4, speed: str = "1", rate: str = "", freeze: tuple[str, ...] = ()) -> FrameSchedule:
    return schedule_frames(metadata_of(count), range(count), parse_timing(speed, rate, freeze))


def gaps(times: Sequence[Fraction]) -> list[Fraction]:
    return [after - before for before, after in itertools.pairwise(times)]


# --- when ------------------------------------------------------------------------------------------------------------


def test_without_a_change_the_plan_is_the_source() -> None:
    made = planned()
    assert made.positions == (0, 1, 2, 3) and made.timestamps == made.metadata.timestamps == metadata_of(4).timestamps
    assert not Timing().changes_something and parse_timing("0.5").changes_something


def test_half_speed_puts_a_frame_between_two_and_lasts_twice_as_long() -> None:
    made, half = planned(speed="0.5"), Fraction(1, 2)
    assert made.positions == (0, half, 1, 3 * half, 2, 5 * half, 3, 3)
    assert made.timestamps == tuple(Fraction(k, 24) for k in range(8))
    assert made.metadata.rate == 24 and made.metadata.frame_count == 8


@pytest.mark.parametrize("speed", ["1/3", "0.3", "0.7", "1.5", "4", "100"])
def test_at_any_speed_the_length_is_the_sources_over_it_and_steps_are_even(speed: str) -> None:
    made = planned(30, speed=speed)
    length = 30 / (24 * Fraction(speed))
    assert abs(len(made.timestamps) - length * 24) < 1
    assert all(gap == Fraction(1, 24) for gap in gaps(made.timestamps))
    whole = [place for place in made.positions if place.denominator == 1]
    assert set(made.positions) >= {0} and len(whole) >= 1 and made.positions[-1] <= 29
    assert all(b >= a for a, b in zip(made.positions, made.positions[1:], strict=False))


def test_another_rate_keeps_the_length_and_the_sound() -> None:
    metadata = metadata_of(24, sound=True)
    made = schedule_frames(metadata, range(24), parse_timing(rate="60"))
    assert len(made.timestamps) == 60 and made.timestamps[-1] == Fraction(59, 60)
    assert made.positions[5] == 2 and made.positions[1] == Fraction(2, 5)
    assert made.metadata.sound == metadata.sound and not made.notes and made.metadata.rate == 60
    film = schedule_frames(metadata_of(24, 30), range(24), parse_timing(rate="24000/1001"))
    assert film.timestamps[1] == Fraction(1001, 24000)


def test_a_part_of_the_source_keeps_its_place_beside_the_sound() -> None:
    metadata = metadata_of(24, sound=True)
    made = schedule_frames(metadata, range(6, 12), parse_timing(rate="48"))
    assert made.timestamps[0] == Fraction(6, 24) and made.positions[:3] == (0, Fraction(1, 2), 1)
    assert made.metadata.timestamps[:6] == metadata.timestamps[:6]
    assert next(time for time in made.metadata.timestamps if time > made.timestamps[-1]) == Fraction(12, 24)
    assert all(b > a for a, b in zip(made.metadata.timestamps, made.metadata.timestamps[1:], strict=False))


@pytest.mark.parametrize("wanted", [{"speed": "0.5"}, {"freeze": ("2:1",)}])
def test_another_speed_or_a_pause_leaves_the_sound_out_and_says_so(wanted: dict) -> None:
    made = schedule_frames(metadata_of(6, sound=True), range(6), parse_timing(**wanted))
    assert not made.metadata.sound and "sound" in made.notes[0]
    assert not schedule_frames(metadata_of(6), range(6), parse_timing(**wanted)).notes


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_frozen_frame_stands_still_for_as_long_as_asked(number: int) -> None:
    made = planned(freeze=(f"{number}:0.5",))
    assert made.positions.count(Fraction(number)) == 1 + 12 and len(made.positions) == 16
    assert made.timestamps == tuple(Fraction(k, 24) for k in range(16))
    slow = planned(speed="0.4", freeze=(f"{number}:1/2",))
    assert slow.positions.count(Fraction(number)) >= 12
    assert max(gaps(slow.timestamps)) <= Fraction(3, 48) and min(gaps(slow.timestamps)) > 0
    fast = planned(rate="50", freeze=(f"{number}:2",))
    assert fast.positions.count(Fraction(number)) >= 100 and len(fast.positions) == 109  # (4 / 24 + 2) * 50, and up


def test_several_frames_stand_still() -> None:
    made = planned(freeze=("1:0.25", "2:0.5"))
    assert made.positions.count(Fraction(1)) == 7 and made.positions.count(Fraction(2)) == 13


def test_times_rounded_to_ticks_still_give_whole_frames() -> None:
    metadata = replace(metadata_of(24), timestamps=tuple(Fraction(round(1000 * k / 24), 1000) for k in range(24)))
    made = schedule_frames(metadata, range(24), parse_timing(rate="48"))
    assert made.positions[::2] == tuple(range(24))


def test_an_uneven_source_keeps_its_rhythm() -> None:
    times = tuple(map(Fraction, (0, 1, 3, 4)))
    made = schedule_frames(
        replace(metadata_of(4), timestamps=times, end=Fraction(5), rate=Fraction(1), variable_rate=True),
        range(4),
        parse_timing("0.5"),
    )
    assert made.timestamps == (0, 1, 2, 4, 6, 7, 8, 9)
    assert made.positions[1::2] == (Fraction(1, 2), Fraction(3, 2), Fraction(5, 2), 3)


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        ({"speed": "0"}, "--speed '0'"),
        ({"speed": "-1"}, "--speed"),
        ({"speed": "101"}, "--speed"),
        ({"speed": "nan"}, "--speed"),
        ({"speed": "1/0"}, "--speed"),
        ({"speed": "1e999999999"}, "--speed"),
        ({"speed": "fast"}, "--speed"),
        ({"rate": "0"}, "--rate"),
        ({"rate": "1001"}, "--rate"),
        ({"rate": "-24"}, "--rate"),
        ({"rate": "1/0"}, "--rate"),
        ({"freeze": ("2",)}, "--freeze '2'"),
        ({"freeze": ("2:",)}, "--freeze"),
        ({"freeze": ("x:2",)}, "--freeze"),
        ({"freeze": ("2:0",)}, "--freeze"),
        ({"freeze": ("2:99999",)}, "--freeze"),
        ({"freeze": ("-2:1",)}, "--freeze"),
        ({"freeze": ("9:2",)}, "frame 9 is not part"),
        ({"freeze": ("2:1", "2:2")}, "frame 2 is frozen twice"),
        ({"speed": "0.00001"}, "that makes 400000 frames"),
        ({"rate": "1000", "freeze": ("1:200",)}, "frames"),
    ],
)
def test_a_user_is_told_what_is_wrong_with_a_time(wanted: dict, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        planned(**wanted)
    assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix


# --- what it looks like ----------------------------------------------------------------------------------------------


def every_second(clip: SyntheticClip) -> SyntheticClip:
    """The clip of the even frames, in which everything happens twice as fast."""
    surfaces = []
    for surface in clip.surfaces:
        warp = surface.warp
        assert warp is None or isinstance(warp, WaveWarp)
        faster = None if warp is None else replace(warp, period=warp.period / 2)
        surfaces.append(replace(surface, transforms=surface.transforms[::2], warp=faster))
    lighting = replace(clip.lighting, period=clip.lighting.period / 2)
    return replace(clip, count=(clip.count + 1) // 2, surfaces=tuple(surfaces), lighting=lighting)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean()))


def detail(image: np.ndarray) -> float:
    return float(np.abs(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F)).mean())


def halves(count: int) -> FrameSchedule:
    """Every frame of so many, and one between each two."""
    return schedule_frames(metadata_of(count), range(count), parse_timing("0.5"))


@pytest.fixture(scope="module")
def truth(true_run: TrueRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SyntheticClip, Maps]]:
    """Clips at twice the rate, and the exact maps of their even frames."""
    maker: ModuleType = sys.modules[type(true_run).__module__]
    clips = {"demo": make_demo_clip(9, *SIZE), "wave": make_suite_clip("wave", 9, SIZE)}
    found = {}
    for name, clip in clips.items():
        run = maker.make(tmp_path_factory.mktemp(name), every_second(clip)).run
        found[name] = (clip, Maps.open(run.maps))
    return found


@pytest.mark.parametrize("name", ["demo", "wave"])
def test_frames_between_frames_are_those_of_the_clip_at_twice_the_rate(truth: dict, name: str) -> None:
    clip, maps = truth[name]
    given = [frame.copy() for frame in clip.frames[::2]]
    made = list(Retimer(maps).interpolate_frames(iter(given), halves(5)))
    assert len(made) == 10 and all(made[2 * k] is frame for k, frame in enumerate(given))
    for k in range(1, 9, 2):
        between = decibels(made[k], clip.frames[k])
        blend = decibels((clip.frames[k - 1].astype(float) + clip.frames[k + 1]) / 2, clip.frames[k])
        repeat = decibels(clip.frames[k - 1], clip.frames[k])
        assert between > 36 and between > blend + 7 and between > repeat + 9
        assert 0.93 < detail(made[k]) / detail(clip.frames[k]) < 1.05  # as sharp, and no second outline


def test_a_moment_near_a_frame_is_nearly_that_frame(truth: dict) -> None:
    clip, maps = truth["demo"]
    near = tuple(Fraction(k) for k in (101, 199))
    moments = FrameSchedule((Fraction(0), Fraction(1)), tuple(k / 100 for k in near), metadata_of(2))
    for made, k in zip(Retimer(maps).interpolate_frames(iter(clip.frames[::2]), moments), (1, 2), strict=True):
        assert decibels(made, clip.frames[2 * k]) > 38


def test_a_larger_source_is_as_exact(truth: dict) -> None:
    """Maps are kept at the size of the fit."""
    _, maps = truth["demo"]
    large = make_demo_clip(9, 320, 180)
    made = list(Retimer(maps).interpolate_frames(iter(large.frames[::2]), halves(5)))
    assert decibels(made[3], large.frames[3]) > 34


def test_layers_that_the_frames_do_not_show_are_not_shown_between_them(truth: dict) -> None:
    clip, maps = truth["demo"]
    alone = replace(clip, surfaces=clip.surfaces[1:])

    def only_background(t: int, size: tuple[int, int]) -> np.ndarray:
        return np.stack([np.zeros(size[::-1], np.float32), np.ones(size[::-1], np.float32)])

    frames = alone.frames[::2]
    told, untold = (
        list(Retimer(maps, given).interpolate_frames(iter(frames), halves(5)))[5] for given in (only_background, None)
    )
    assert decibels(told, alone.frames[5]) > max(36, decibels(untold, alone.frames[5]))


def test_nothing_is_blended_across_a_cut(truth: dict) -> None:
    clip, maps = truth["demo"]
    parts = tuple((Chart(n, 0, 1, b), Chart(n, 2, 4, b)) for n, b in zip(maps.layers, maps.boxes, strict=True))
    cut = replace(maps, charts=parts)
    moments = FrameSchedule((Fraction(0), Fraction(1)), (Fraction(5, 4), Fraction(7, 4)), metadata_of(2))
    frames = list(clip.frames[::2])
    noise = np.random.default_rng(0).integers(0, 255, frames[0].shape, np.uint8)
    early, late = Retimer(cut).interpolate_frames(iter(frames), moments)
    assert np.array_equal(next(Retimer(cut).interpolate_frames(iter([*frames[:2], noise]), moments)), early)
    other = list(Retimer(cut).interpolate_frames(iter([frames[0], noise, *frames[2:]]), moments))[1]
    assert np.array_equal(other, late)
    for made, k in ((early, 2), (late, 4)):  # it moves on as before, and comes as afterwards
        assert decibels(made, clip.frames[3]) > decibels(clip.frames[k], clip.frames[3]) + 1


def test_frames_are_asked_for_when_they_are_needed(truth: dict) -> None:
    clip, maps = truth["demo"]
    asked: list[int] = []

    def source() -> Any:
        for k, frame in enumerate(clip.frames[::2]):
            asked.append(k)
            yield frame

    made = Retimer(maps).interpolate_frames(source(), halves(5))
    next(made)
    assert asked == [0]
    next(made)
    assert asked == [0, 1]
    assert len(list(made)) == 8 and asked == [0, 1, 2, 3, 4]
