"""Does a clip suit the model? Rules with named limits turn measured numbers into sentences and commands to try.

A planar layer is one picture bent onto every frame. A clip suits it where the picture shows what the frames show
(PSNR), bends gently (stretch, fold-over), and keeps its points on the things they were painted on (points stay put).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from neural_fields.evaluation.report.drift import Drift

Level = Literal["good", "care", "bad"]


@dataclass(frozen=True)
class VerdictSettings:
    """Limits of the verdict on a clip, and of the edit risk of a place in a canonical image.

    Where a field has two numbers, care begins at the first and trouble at the second.
    """

    good_psnr_db: float = 27.0  # 11 levels of 255: soft, but the same picture; sound runs reach it even as drafts
    poor_psnr_db: float = 22.0  # 20 levels: things are in the wrong place, or missing
    psnr_drop_db: float = 4.0  # below the clip's median: another picture, about 1.6 times the usual error
    # Flow that agrees with itself on a smaller share of the pixels has nothing to hold on to. Clips in one piece keep
    # 0.6 or more, also those of fast water.
    min_flow_trust: float = 0.4
    # A place is stretched where a small square becomes twice as long or half as long as elsewhere: letters look wrong.
    min_stretch: float = 2.0
    # Shares of the visible part of a layer. Perspective stretches the rim of a ground plane; much more is a surface
    # that turns.
    stretched_shares: tuple[float, float] = (0.10, 0.30)
    folded_shares: tuple[float, float] = (0.01, 0.05)  # a fold shows an edit twice or mirrored, so little is seen
    # Shares of points that stay put (see `steadiness`): low, because the flow itself errs on water and in blur.
    steady_shares: tuple[float, float] = (0.70, 0.40)
    min_points: int = 50  # fewer say nothing
    min_stay_share: float = 0.15  # of the clip; paint on a place that is on screen for less is gone soon
    min_safe_share: float = 0.5  # of a layer; less that is safe to paint on leaves little room
    min_main_share: float = 0.5  # of the pixels: such a layer decides for the clip, a smaller one for itself only
    # Of a cell of a canonical image, for the edit-risk picture: yellow from the first number on, red from the second.
    fold_risks: tuple[float, float] = (0.01, 0.10)  # share of the times it is seen folded
    stretch_risks: tuple[float, float] = (1.5, 2.0)
    residual_risks: tuple[float, float] = (20.0, 40.0)  # color error in 8-bit levels: 22 and 16 dB
    min_risk_frames: int = 3  # seen in fewer is yellow: neither its color nor its place is checked by others


DEFAULTS = VerdictSettings()

RANKS: dict[Level, int] = {"bad": 0, "care": 1, "good": 2}
TITLES: dict[Level, str] = {
    "good": "This clip suits the model",
    "care": "This clip suits the model, with care",
    "bad": "This clip does not suit the model",
}


@dataclass(frozen=True)
class LayerMeasurements:
    """Holds the measurements of a layer. Shares are in [0, 1]; None where nothing could be measured."""

    name: str
    pixel_share: float  # of all pixels of the frames that were looked at
    psnr: float | None  # dB, mean over the frames in which the layer is seen
    stretched: float | None  # share beyond the settings' `min_stretch`
    folded: float | None
    seen: float  # share of the canonical image that any frame shows
    frames_per_place: float  # median over the places that are seen: frames of the clip that show it
    area_in_frames: float  # area of what is seen of the canonical image, in frames
    green: float  # shares of what is seen
    yellow: float
    red: float
    drift: Drift | None


@dataclass(frozen=True)
class TrainCommandLine:
    """The `unwrap train` command of a run, to suggest what to change."""

    video: str
    out: str
    frames: range  # of the source
    preset: str
    quality: str
    masks: tuple[str, ...]
    flow: str
    flags: tuple[str, ...] = ()  # size, seed and region, as they stand on the line
    settings: tuple[str, ...] = ()  # where they differ from the preset's: dotted flags

    def format_line(self) -> str:
        """Returns the command line."""
        chosen = f"{self.frames.start}:{self.frames.stop}"
        chosen += f":{self.frames.step}" if self.frames.step != 1 else ""
        words = ["unwrap", "train", self.video, "--out", self.out, "--config", self.preset, "--quality", self.quality]
        words += ["--frames", chosen, *(word for spec in self.masks for word in ("--masks", spec))]
        return shlex.join([*words, "--flow", self.flow, *self.flags, *self.settings])

    def for_preset(self, preset: str, masks: tuple[str, ...]) -> str:
        """Returns the command for another preset, in a new run."""
        return replace(self, preset=preset, masks=masks, settings=(), out=f"{self.out}-{preset}").format_line()

    def for_part(self, frames: range, name: str = "part") -> str:
        """Returns the command for a part of the clip, in a new run."""
        return replace(self, frames=frames, out=f"{self.out}-{name}").format_line()


@dataclass(frozen=True)
class ClipMeasurements:
    """Holds the measurements of a trained run."""

    surveyed_frames: tuple[int, ...]  # frames of the source, ascending
    psnr: tuple[float, ...]  # dB of each of those
    trust: tuple[float, ...] | None  # of each pair of neighboring frames of the run; None where flow was not at hand
    layers: tuple[LayerMeasurements, ...]
    command: TrainCommandLine
    presets: tuple[str, ...]  # that this version has


@dataclass(frozen=True)
class Reason:
    """Holds a sentence of a verdict, with advice."""

    level: Level
    text: str
    advice: str = ""
    commands: tuple[str, ...] = ()
    decides: bool = True  # whether it can make the whole clip unsuitable


@dataclass(frozen=True)
class Verdict:
    """Holds the verdict with its reasons, the worst first."""

    level: Level
    reasons: tuple[Reason, ...]

    @property
    def title(self) -> str:
        """The answer in a few words."""
        return TITLES[self.level]


def judge_clip(clip: ClipMeasurements, settings: VerdictSettings = DEFAULTS) -> Verdict:
    """Judges whether a clip suits the model."""
    reasons = [
        *_judge_cuts(clip, settings),
        *_judge_quality(clip, settings),
        *_judge_drops(clip, settings),
    ]
    for layer in clip.layers:
        reasons += _judge_layer(clip, layer, settings)
    reasons.sort(key=lambda reason: RANKS[reason.level])

    # Advice that a reason before already gives is not repeated.
    given: set[tuple[str, tuple[str, ...]]] = set()
    for place, reason in enumerate(reasons):
        advice = (reason.advice, reason.commands)
        if advice in given:
            reasons[place] = replace(reason, advice="", commands=())
        given.add(advice)

    if any(reason.level == "bad" and reason.decides for reason in reasons):
        return Verdict("bad", tuple(reasons))
    return Verdict("good" if all(reason.level == "good" for reason in reasons) else "care", tuple(reasons))


def mean_psnr(values: Sequence[float]) -> float:
    """Computes the mean of PSNRs; a frame without any error counts as 100 dB, so that it does not hide the others."""
    return fmean(min(value, 100.0) for value in values)


def find_picture_changes(clip: ClipMeasurements, settings: VerdictSettings = DEFAULTS) -> list[tuple[int, int]]:
    """Finds the pairs of source frames between which the picture changes at once."""
    if not clip.trust:
        return []
    limit = min(settings.min_flow_trust, median(clip.trust) / 2)
    pairs = pairwise(clip.command.frames)
    return [pair for pair, share in zip(pairs, clip.trust, strict=True) if share < limit]


def _judge_cuts(measurements: ClipMeasurements, settings: VerdictSettings) -> Iterator[Reason]:
    """Judges the places where the picture changes at once."""
    found = find_picture_changes(measurements, settings)
    if not found or measurements.trust is None:
        return
    frames, many = measurements.command.frames, len(found) > 1
    ends = [frames.start, *(after for _, after in found), frames.stop]
    parts = sorted((range(a, b, frames.step) for a, b in pairwise(ends)), key=len, reverse=True)
    places = ", ".join(f"{before} and {after}" for before, after in found[:5]) + (", ..." if len(found) > 5 else "")
    text = (
        f"The picture changes at once between frames {places} (optical flow agrees with itself on "
        f"{min(measurements.trust):.0%} of the pixels there, on {median(measurements.trust):.0%} usually): "
        f"{'cuts, flashes' if many else 'a cut, a flash'} or frames left out. One picture cannot hold both sides."
    )
    lines = tuple(measurements.command.for_part(part, f"{part.start}") for part in parts[:3] if len(part) > 1)
    yield Reason("bad", text, "Train on each part by itself:", lines)


def _judge_quality(measurements: ClipMeasurements, settings: VerdictSettings) -> Iterator[Reason]:
    """Judges the PSNR of the whole clip."""
    mean, worst = mean_psnr(measurements.psnr), min(measurements.psnr)
    figures = f"{mean:.1f} dB on average, {worst:.1f} dB in the worst frame"
    if mean >= settings.good_psnr_db:
        yield Reason("good", f"The model shows the video well: {figures}.")
        return
    level: Level = "care" if mean >= settings.poor_psnr_db else "bad"
    how = "softly" if level == "care" else "wrongly"
    text = f"The model shows the video {how}: {figures} (good is {settings.good_psnr_db:.0f} and more)."
    # Steps sharpen what is in the right place; they do not find what was not found.
    order = ("refine", "masks", "preset", "segments") if level == "care" else ("masks",)
    yield Reason(level, text, *_suggest_remedy(measurements, order, settings))


def _suggest_remedy(
    measurements: ClipMeasurements, order: Sequence[str], settings: VerdictSettings
) -> tuple[str, tuple[str, ...]]:
    """Returns advice and command: the first of `order` that was not done yet, else a shorter part of the clip.

    Where there is a cut nothing of this helps, and its own advice comes first.
    """
    if find_picture_changes(measurements, settings):
        return "", ()
    command, tries = measurements.command, {}
    if command.quality != "final":
        better: str = "normal" if command.quality == "draft" else "final"
        tries["refine"] = (
            f"Refine it further; the run goes on from here (--quality {better}):",
            replace(command, quality=better).format_line(),
        )
    if command.masks in ((), ("auto",), ("none",)) and command.preset in ("atlas", "lna", "codef", "hashing_nvd"):
        tries["masks"] = (
            "Give each thing that moves on its own a mask (a folder of pictures; front first):",
            replace(command, masks=("object=MASKS",), out=f"{command.out}-masks").format_line(),
        )
    if command.preset not in ("atlas", "roi"):
        tries["preset"] = ("Try the default preset:", command.for_preset("atlas", command.masks))
    if "narcan" in measurements.presets and command.preset == "atlas":
        tries["segments"] = (
            "Try several overlapping pictures instead of one:",
            command.for_preset("narcan", ("none",)),
        )
    for name in order:
        if name in tries:
            return tries[name][0], (tries[name][1],)
    frames, quarter = command.frames, len(command.frames) // 4
    middle = frames[quarter : max(quarter + 1, len(frames) - quarter)]
    return "Train on a shorter part, in which less changes:", (command.for_part(middle),)


def _judge_drops(measurements: ClipMeasurements, settings: VerdictSettings) -> Iterator[Reason]:
    """Judges the longest interval of frames that the model shows much worse than the rest."""
    usual = median(measurements.psnr)
    intervals: list[list[tuple[int, float]]] = []
    was_low = False
    for frame, value in zip(measurements.surveyed_frames, measurements.psnr, strict=True):
        is_low = value < usual - settings.psnr_drop_db
        if is_low and was_low:
            intervals[-1].append((frame, value))
        elif is_low:
            intervals.append([(frame, value)])
        was_low = is_low
    if not intervals:
        return
    longest = max(intervals, key=len)
    first, last = longest[0][0], longest[-1][0]
    where = f"Frame {first} fits" if first == last else f"Frames {first} to {last} fit"
    frames = measurements.command.frames
    sides = (range(frames.start, first, frames.step), range(last + frames.step, frames.stop, frames.step))
    rest = max(sides, key=len)
    found = mean_psnr([value for _, value in longest])
    text = f"{where} worse than the rest: {found:.1f} dB, against {usual:.1f} dB usually."
    commands = (measurements.command.for_part(rest),) if len(rest) > 1 else ()
    yield Reason(
        "care",
        text,
        "Edits look worst there. Without these frames:" if commands else "Edits look worst there.",
        commands,
    )


def _judge_layer(
    measurements: ClipMeasurements, layer: LayerMeasurements, settings: VerdictSettings
) -> Iterator[Reason]:
    """Judges one layer: visibility, quality, distortion, steadiness, and room for edits."""
    if layer.pixel_share == 0:
        advice = "Its mask may be empty, or lie behind another layer's. Look at what became of the masks:"
        line = shlex.join(["unwrap", "render", measurements.command.out, "--what", "layers"])
        yield Reason("care", f"The layer '{layer.name}' is never seen.", advice, (line,))
        return
    decides = layer.pixel_share >= settings.min_main_share

    # Of a clip with one layer everything about the quality is said already.
    if len(measurements.layers) > 1 and layer.psnr is not None and layer.psnr < settings.poor_psnr_db:
        text = (
            f"'{layer.name}' is shown wrongly where it is seen: {layer.psnr:.1f} dB. It may turn, or change its shape."
        )
        remedy = _suggest_remedy(measurements, ("masks", "refine", "preset"), settings)
        yield Reason("bad", text, *remedy, decides=decides)

    yield from _judge_distortion(measurements, layer, decides, settings)
    yield from _judge_steadiness(measurements, layer, decides, settings)
    if layer.seen <= 0:
        return

    # How much of the layer can be painted on, and how long it stays.
    count = len(measurements.command.frames)
    if layer.frames_per_place < settings.min_stay_share * count:
        text = f"A place of '{layer.name}' is on screen for {layer.frames_per_place:.0f} of {count} frames (median)."
        yield Reason("care", text, "Choose the place of an edit from its coverage picture: bright stays long.")
    safe = f"Safe to paint on: {layer.green:.0%} of '{layer.name}'"
    if layer.green >= settings.min_safe_share:
        yield Reason("good", f"{safe} (green in its edit-risk picture).")
    else:
        yield Reason("care", f"{safe} only.", "Green in its edit-risk picture is where an edit will look right.")


def _judge_distortion(
    measurements: ClipMeasurements, layer: LayerMeasurements, decides: bool, settings: VerdictSettings
) -> Iterator[Reason]:
    """Judges how much of a layer folds over or is stretched."""
    care, bad = settings.folded_shares
    frames = measurements.command.frames
    middle = frames[len(frames) // 2]
    line = shlex.join(
        ["unwrap", "edit", measurements.command.out, "PAINTED_FRAME.png", "--frame", str(middle), "--layer", layer.name]
    )
    advice = "Paint where its edit-risk picture is green, or paint on a frame instead of on the picture:"
    if layer.folded is not None and layer.folded >= care:
        text = (
            f"'{layer.name}' folds over in {layer.folded:.1%} of what is seen of it: an edit shows twice or mirrored."
        )
        level: Level = "bad" if layer.folded >= bad else "care"
        yield Reason(level, text, advice, (line,), decides)
    care, bad = settings.stretched_shares
    if layer.stretched is not None and layer.stretched >= care:
        text = (
            f"'{layer.name}' is stretched or squeezed more than {settings.min_stretch:g}-fold in "
            f"{layer.stretched:.1%} of what is seen of it: letters and circles lose their shape."
        )
        level = "bad" if layer.stretched >= bad else "care"
        yield Reason(level, text, advice, (line,), decides)


def _judge_steadiness(
    measurements: ClipMeasurements, layer: LayerMeasurements, decides: bool, settings: VerdictSettings
) -> Iterator[Reason]:
    """Judges whether the points of a layer stay put."""
    drift = layer.drift
    if drift is None or drift.far is None or drift.steady is None or drift.points < settings.min_points:
        return
    figures = (
        f"{drift.steady:.0%} of the points followed for {drift.span} frame{'s' * (drift.span > 1)} are where the "
        f"optical flow has them (median {drift.far:.1f} pixels apart)"
    )
    care, bad = settings.steady_shares
    if drift.steady >= care:
        yield Reason("good", f"Points of '{layer.name}' stay put: {figures}.")
        return
    level: Level = "care" if drift.steady >= bad else "bad"
    text = f"Points of '{layer.name}' wander: {figures}. Edits may slide."
    yield Reason(level, text, *_suggest_remedy(measurements, ("masks", "refine", "preset"), settings), decides=decides)
