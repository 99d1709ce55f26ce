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

from neural_fields.report.steadiness import Drift

Level = Literal["good", "care", "bad"]

# An error of 11 levels of 255: soft, but the same picture. Fits whose motion is right reach it even as drafts.
GOOD_DB = 27.0
# An error of 20 levels: things are in the wrong place, or missing.
POOR_DB = 22.0
# Frames this much below the clip's median are another picture: about 1.6 times the usual error.
FALL_DB = 4.0
# Flow that agrees with itself on fewer pixels than this has nothing to hold on to. Clips in one piece keep 0.6 or more,
# also those of fast water.
CUT_TRUST = 0.4
# A place is stretched where a small square becomes twice as long or half as long as elsewhere: letters look wrong.
STRETCHED = 2.0
# Shares of what is seen of a layer. Perspective stretches the rim of a ground plane; much more is a surface that turns.
STRETCHED_CARE, STRETCHED_BAD = 0.10, 0.30
# A fold shows an edit twice or mirrored, so little of it is seen at once.
FOLDED_CARE, FOLDED_BAD = 0.01, 0.05
# Shares of points that stay put (see `steadiness`): low, because the flow itself errs on water and in blur.
STEADY_CARE, STEADY_BAD = 0.70, 0.40
LEAST_POINTS = 50  # fewer say nothing
# Paint on a place that is on screen for less than this share of the clip is gone soon.
SHORT_STAY = 0.15
# Less of a layer than this that is safe to paint on leaves little room.
SAFE_CARE = 0.5
# A layer with this share of the pixels decides for the clip; what is wrong with a smaller one concerns that layer only.
MAIN_SHARE = 0.5

# Of a cell of a canonical image, for the edit-risk picture: red from the second number on, yellow from the first.
RISK_FOLD = (0.01, 0.10)  # share of the times it is seen folded
RISK_STRETCH = (1.5, STRETCHED)
RISK_RESIDUAL = (20.0, 40.0)  # colour error in 8-bit levels: 22 and 16 dB
RISK_FRAMES = 3  # seen in fewer frames is yellow: neither its colour nor its place is checked by others

RANKS: dict[Level, int] = {"bad": 0, "care": 1, "good": 2}
TITLES: dict[Level, str] = {
    "good": "This clip suits the model",
    "care": "This clip suits the model, with care",
    "bad": "This clip does not suit the model",
}


@dataclass(frozen=True)
class LayerFacts:
    """What was measured of one layer. Shares are in [0, 1]; None where there was nothing to measure."""

    name: str
    pixel_share: float  # of all pixels of the frames that were looked at
    psnr: float | None  # dB, mean over the frames in which the layer is seen
    stretched: float | None  # share beyond STRETCHED
    folded: float | None
    seen: float  # share of the canonical image that any frame shows
    frames_a_place: float  # median over the places that are seen: frames of the clip that show it
    pictures: float  # area of what is seen of the canonical image, in frames
    green: float  # shares of what is seen
    yellow: float
    red: float
    drift: Drift | None


@dataclass(frozen=True)
class TrainCommand:
    """How `unwrap train` was asked for a run, to suggest what to change."""

    video: str
    out: str
    frames: range  # of the source
    preset: str
    quality: str
    masks: tuple[str, ...]
    flow: str
    flags: tuple[str, ...] = ()  # size, seed and region, as they stand on the line
    settings: tuple[str, ...] = ()  # where they differ from the preset's: dotted flags

    def line(self) -> str:
        """The command line."""
        chosen = f"{self.frames.start}:{self.frames.stop}"
        chosen += f":{self.frames.step}" if self.frames.step != 1 else ""
        words = ["unwrap", "train", self.video, "--out", self.out, "--config", self.preset, "--quality", self.quality]
        words += ["--frames", chosen, *(word for spec in self.masks for word in ("--masks", spec))]
        return shlex.join([*words, "--flow", self.flow, *self.flags, *self.settings])

    def with_preset(self, preset: str, masks: tuple[str, ...]) -> str:
        """The command for another preset, in a run of its own."""
        return replace(self, preset=preset, masks=masks, settings=(), out=f"{self.out}-{preset}").line()

    def part(self, frames: range, name: str = "part") -> str:
        """The command for a part of the clip, in a run of its own."""
        return replace(self, frames=frames, out=f"{self.out}-{name}").line()


@dataclass(frozen=True)
class ClipFacts:
    """What was measured of a fit."""

    looked_at: tuple[int, ...]  # frames of the source, ascending
    psnr: tuple[float, ...]  # dB of each of those
    trust: tuple[float, ...] | None  # of each pair of neighbouring fitted frames; None where flow was not at hand
    layers: tuple[LayerFacts, ...]
    command: TrainCommand
    presets: tuple[str, ...]  # that this version has


@dataclass(frozen=True)
class Reason:
    """One sentence of a verdict, and what to do about it."""

    level: Level
    text: str
    advice: str = ""
    commands: tuple[str, ...] = ()
    decides: bool = True  # whether it can make the whole clip unsuitable


@dataclass(frozen=True)
class Verdict:
    """The answer, with its reasons, the worst first."""

    level: Level
    reasons: tuple[Reason, ...]

    @property
    def title(self) -> str:
        return TITLES[self.level]


def judge(facts: ClipFacts) -> Verdict:
    """The verdict on a clip."""
    reasons = [*_cuts(facts), *_quality(facts), *_falls(facts)]
    for layer in facts.layers:
        reasons += _layer_reasons(facts, layer)
    reasons = _each_advice_once(sorted(reasons, key=lambda reason: RANKS[reason.level]))
    if any(reason.level == "bad" and reason.decides for reason in reasons):
        return Verdict("bad", tuple(reasons))
    return Verdict("good" if all(reason.level == "good" for reason in reasons) else "care", tuple(reasons))


def _each_advice_once(reasons: Sequence[Reason]) -> list[Reason]:
    """The reasons, without advice that one before already gives."""
    given: set[tuple[str, tuple[str, ...]]] = set()
    kept = []
    for reason in reasons:
        advice = (reason.advice, reason.commands)
        kept.append(replace(reason, advice="", commands=()) if advice in given else reason)
        given.add(advice)
    return kept


def mean_psnr(values: Sequence[float]) -> float:
    """Mean of PSNRs; a frame without any error counts as 100 dB, so that one of them does not hide the others."""
    return fmean(min(value, 100.0) for value in values)


def cuts(facts: ClipFacts) -> list[tuple[int, int]]:
    """Pairs of source frames between which the picture changes at once."""
    if not facts.trust:
        return []
    limit = min(CUT_TRUST, median(facts.trust) / 2)
    pairs = pairwise(facts.command.frames)
    return [pair for pair, share in zip(pairs, facts.trust, strict=True) if share < limit]


def _cuts(facts: ClipFacts) -> Iterator[Reason]:
    found = cuts(facts)
    if not found or facts.trust is None:
        return
    frames, many = facts.command.frames, len(found) > 1
    ends = [frames.start, *(after for _, after in found), frames.stop]
    parts = sorted((range(a, b, frames.step) for a, b in pairwise(ends)), key=len, reverse=True)
    places = ", ".join(f"{before} and {after}" for before, after in found[:5]) + (", ..." if len(found) > 5 else "")
    text = (
        f"The picture changes at once between frames {places} (optical flow agrees with itself on "
        f"{min(facts.trust):.0%} of the pixels there, on {median(facts.trust):.0%} usually): "
        f"{'cuts, flashes' if many else 'a cut, a flash'} or frames left out. One picture cannot hold both sides."
    )
    lines = tuple(facts.command.part(part, f"{part.start}") for part in parts[:3] if len(part) > 1)
    yield Reason("bad", text, "Fit each part by itself:", lines)


def _quality(facts: ClipFacts) -> Iterator[Reason]:
    mean, worst = mean_psnr(facts.psnr), min(facts.psnr)
    figures = f"{mean:.1f} dB on average, {worst:.1f} dB in the worst frame"
    if mean >= GOOD_DB:
        yield Reason("good", f"The model shows the video well: {figures}.")
        return
    level: Level = "care" if mean >= POOR_DB else "bad"
    how = "softly" if level == "care" else "wrongly"
    text = f"The model shows the video {how}: {figures} (good is {GOOD_DB:.0f} and more)."
    # Steps sharpen what is in the right place; they do not find what was not found.
    order = ("refine", "masks", "preset", "segments") if level == "care" else ("masks",)
    yield Reason(level, text, *_remedy(facts, order))


def _remedy(facts: ClipFacts, order: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Advice and command: the first of `order` that was not done yet, else a shorter part of the clip.

    Where there is a cut nothing of this helps, and its own advice comes first.
    """
    if cuts(facts):
        return "", ()
    command, tries = facts.command, {}
    if command.quality != "final":
        better: str = "normal" if command.quality == "draft" else "final"
        tries["refine"] = (
            f"Refine it further; the run goes on from here (--quality {better}):",
            replace(command, quality=better).line(),
        )
    if command.masks in ((), ("auto",), ("none",)) and command.preset in ("atlas", "lna", "codef", "hashing_nvd"):
        tries["masks"] = (
            "Give each thing that moves on its own a mask (a folder of pictures; front first):",
            replace(command, masks=("object=MASKS",), out=f"{command.out}-masks").line(),
        )
    if command.preset not in ("atlas", "roi"):
        tries["preset"] = ("Try the default preset:", command.with_preset("atlas", command.masks))
    if "narcan" in facts.presets and command.preset == "atlas":
        tries["segments"] = (
            "Try several overlapping pictures instead of one:",
            command.with_preset("narcan", ("none",)),
        )
    for name in order:
        if name in tries:
            return tries[name][0], (tries[name][1],)
    return "Fit a shorter part, in which less changes:", (command.part(_middle(command.frames)),)


def _falls(facts: ClipFacts) -> Iterator[Reason]:
    """The longest stretch of frames that fit much worse than the rest."""
    usual = median(facts.psnr)
    runs: list[list[tuple[int, float]]] = []
    before = False
    for frame, value in zip(facts.looked_at, facts.psnr, strict=True):
        low = value < usual - FALL_DB
        if low:
            runs = [*runs[:-1], [*runs[-1], (frame, value)]] if before else [*runs, [(frame, value)]]
        before = low
    if not runs:
        return
    longest = max(runs, key=len)
    first, last = longest[0][0], longest[-1][0]
    where = f"Frame {first} fits" if first == last else f"Frames {first} to {last} fit"
    frames = facts.command.frames
    sides = (range(frames.start, first, frames.step), range(last + frames.step, frames.stop, frames.step))
    rest = max(sides, key=len)
    found = mean_psnr([value for _, value in longest])
    text = f"{where} worse than the rest: {found:.1f} dB, against {usual:.1f} dB usually."
    commands = (facts.command.part(rest),) if len(rest) > 1 else ()
    yield Reason(
        "care",
        text,
        "Edits look worst there. Without these frames:" if commands else "Edits look worst there.",
        commands,
    )


def _layer_reasons(facts: ClipFacts, layer: LayerFacts) -> Iterator[Reason]:
    if layer.pixel_share == 0:
        advice = "Its mask may be empty, or lie behind another layer's. Look at what became of the masks:"
        line = shlex.join(["unwrap", "render", facts.command.out, "--what", "layers"])
        yield Reason("care", f"The layer '{layer.name}' is never seen.", advice, (line,))
        return
    yield from _shown(facts, layer)
    yield from _bent(facts, layer)
    yield from _steady(facts, layer)
    if layer.seen > 0:
        yield from _room(facts, layer)


def _shown(facts: ClipFacts, layer: LayerFacts) -> Iterator[Reason]:
    if len(facts.layers) == 1 or layer.psnr is None or layer.psnr >= POOR_DB:  # of one layer all is said already
        return
    text = f"'{layer.name}' is shown wrongly where it is seen: {layer.psnr:.1f} dB. It may turn, or change its shape."
    yield Reason("bad", text, *_remedy(facts, ("masks", "refine", "preset")), decides=_decides(layer))


def _bent(facts: ClipFacts, layer: LayerFacts) -> Iterator[Reason]:
    frames = facts.command.frames
    middle = frames[len(frames) // 2]
    line = shlex.join(
        ["unwrap", "edit", facts.command.out, "PAINTED_FRAME.png", "--frame", str(middle), "--layer", layer.name]
    )
    advice = "Paint where its edit-risk picture is green, or paint on a frame instead of on the picture:"
    if layer.folded is not None and layer.folded >= FOLDED_CARE:
        text = (
            f"'{layer.name}' folds over in {layer.folded:.1%} of what is seen of it: an edit shows twice or mirrored."
        )
        level: Level = "bad" if layer.folded >= FOLDED_BAD else "care"
        yield Reason(level, text, advice, (line,), _decides(layer))
    if layer.stretched is not None and layer.stretched >= STRETCHED_CARE:
        text = (
            f"'{layer.name}' is stretched or squeezed more than {STRETCHED:g}-fold in {layer.stretched:.1%} of what is "
            "seen of it: letters and circles lose their shape."
        )
        level = "bad" if layer.stretched >= STRETCHED_BAD else "care"
        yield Reason(level, text, advice, (line,), _decides(layer))


def _steady(facts: ClipFacts, layer: LayerFacts) -> Iterator[Reason]:
    drift = layer.drift
    if drift is None or drift.far is None or drift.steady is None or drift.points < LEAST_POINTS:
        return
    figures = (
        f"{drift.steady:.0%} of the points followed for {drift.span} frame{'s' * (drift.span > 1)} are where the "
        f"optical flow has them (median {drift.far:.1f} pixels apart)"
    )
    if drift.steady >= STEADY_CARE:
        yield Reason("good", f"Points of '{layer.name}' stay put: {figures}.")
        return
    level: Level = "care" if drift.steady >= STEADY_BAD else "bad"
    yield Reason(
        level,
        f"Points of '{layer.name}' wander: {figures}. Edits may slide.",
        *_remedy(facts, ("masks", "refine", "preset")),
        decides=_decides(layer),
    )


def _room(facts: ClipFacts, layer: LayerFacts) -> Iterator[Reason]:
    """How much of a layer can be painted on, and how long it stays."""
    count = len(facts.command.frames)
    if layer.frames_a_place < SHORT_STAY * count:
        text = f"A place of '{layer.name}' is on screen for {layer.frames_a_place:.0f} of {count} frames (median)."
        yield Reason("care", text, "Choose the place of an edit from its coverage picture: bright stays long.")
    safe = f"Safe to paint on: {layer.green:.0%} of '{layer.name}'"
    if layer.green >= SAFE_CARE:
        yield Reason("good", f"{safe} (green in its edit-risk picture).")
    else:
        yield Reason("care", f"{safe} only.", "Green in its edit-risk picture is where an edit will look right.")


def _middle(frames: range) -> range:
    """The middle half of some frames."""
    count = len(frames)
    return frames[count // 4 : max(count // 4 + 1, count - count // 4)]


def _decides(layer: LayerFacts) -> bool:
    return layer.pixel_share >= MAIN_SHARE
