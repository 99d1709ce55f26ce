"""How well a clip fits the model: rules with named limits turn measured numbers into sentences and commands to try.

A planar layer is one picture bent onto every frame. A clip suits it where the picture shows what the frames show
(PSNR), bends gently (stretch, fold-over), and keeps its points on the surfaces that they show (tracking). And
the layer must be the object: `layer_faults` measures whether it jumps, grows, misses a part, or is not there at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from neural_fields.evaluation.report.drift import Drift
from neural_fields.evaluation.report.layer_faults import NO_FAULTS, FrameBox, LayerFaults, UnheldObject

Level = Literal["good", "care", "bad"]


@dataclass(frozen=True)
class VerdictSettings:
    """Limits of the verdict on a clip, and of the edit risk of a place in a canonical picture.

    Where a field has two numbers, care begins at the first and trouble at the second.
    """

    # A reconstruction with at least this mean PSNR is good; good clips reach it even as drafts.
    good_psnr_db: float = 27.0
    poor_psnr_db: float = 22.0  # with less, about 20 levels of 255, things are missing or in the wrong place
    # A frame this far below the median shows another picture: about 1.6 times the usual error.
    psnr_drop_db: float = 4.0
    # Where a smaller share of the pixels has consistent flow, nothing holds the maps. Clips without a cut have 0.6 or
    # more, even with fast water.
    min_flow_trust: float = 0.4
    # Shares of the visible part of a layer that are stretched, by the second of `stretch_risks`. Perspective alone
    # stretches the rim of a ground plane; larger shares mean a surface that turns.
    stretched_shares: tuple[float, float] = (0.10, 0.30)
    # Shares of the visible part of a layer that fold over and show an edit twice.
    folded_shares: tuple[float, float] = (0.01, 0.05)
    # Shares of points that agree with optical flow (see `steadiness`). The limits are low because flow itself errs on
    # water and in blur.
    steady_shares: tuple[float, float] = (0.70, 0.40)
    min_points: int = 50  # least points from which steadiness is judged
    min_stay_share: float = 0.15  # paint on a place that is on screen for a smaller share of the clip soon disappears
    min_safe_share: float = 0.5  # a layer needs at least this share of area that is safe to paint on
    min_main_share: float = 0.5  # a layer with at least this share of the pixels decides about the whole clip
    # The layers themselves. Care begins well above what good masks of real clips show (in brackets), trouble where
    # about half of the layer is wrong: an edit of it is then an edit of something else.
    # Share of a layer that changes its layer from one frame to the next (0.03: blurred legs of a runner).
    jump_shares: tuple[float, float] = (0.05, 0.40)
    # What a layer gains or loses over the clip, by points that stay visible (0.10: a duck that turns in ripples).
    growth_shares: tuple[float, float] = (0.15, 0.50)
    # Least of the shares that enter and leave the layer within eight frames (0.01).
    astray_shares: tuple[float, float] = (0.10, 0.30)
    # Area of a part that belongs to the layer but not in it, as a share of the layer (0.02: hair of a turning head).
    missing_shares: tuple[float, float] = (0.08, 0.40)
    # Share of the frames in which a layer is suddenly gone (0); one frame of fifty may be a mistake of the measurement.
    empty_shares: tuple[float, float] = (0.03, 0.40)
    min_layer_area: float = 0.0005  # least share of a frame that a layer fills: an edge of 8 pixels at 240p
    # Edit risk of a cell of a canonical picture: yellow from the first number on, red from the second. Here the share
    # of the frames in which the cell folds over.
    fold_risks: tuple[float, float] = (0.01, 0.10)
    # Edit risk by the ratio to the usual scale. Beyond the second a place counts as stretched: a square becomes twice
    # as long or half as long, and letters look wrong.
    stretch_risks: tuple[float, float] = (1.5, 2.0)
    residual_risks: tuple[float, float] = (20.0, 40.0)  # edit risk by the color error in 8-bit levels: 22 and 16 dB
    min_risk_frames: int = 3  # a cell that fewer frames show is yellow: no other frames confirm its color and place


DEFAULTS = VerdictSettings()

RANKS: dict[Level, int] = {"bad": 0, "care": 1, "good": 2}
TITLES: dict[Level, str] = {
    "good": "Good fit",
    "care": "Usable with care",
    "bad": "Poor fit",
}


@dataclass(frozen=True)
class LayerMeasurements:
    """Holds the measurements of a layer. Shares are in [0, 1]; None where nothing could be measured."""

    name: str
    pixel_share: float  # share of all pixels of the sampled frames
    psnr: float | None  # dB, mean over the frames that show the layer
    stretched: float | None  # share of the visible part that is stretched (see `VerdictSettings`)
    folded: float | None  # share of the visible part that folds over
    seen: float  # share of the canonical picture that any frame shows
    frames_per_place: float  # number of frames that show a place; median over the visible places
    area_in_frames: float  # area of the visible part of the canonical picture, in areas of a frame
    green: float  # share of the visible part with low edit risk
    yellow: float  # share with medium edit risk
    red: float  # share with high edit risk
    drift: Drift | None
    faults: LayerFaults = NO_FAULTS  # of layers in front of the background


@dataclass(frozen=True)
class TrainCommandLine:
    """The `unwrap train` command of a run, to suggest what to change."""

    video: str
    out: str
    frames: range  # frame numbers in the source
    preset: str
    quality: str
    masks: tuple[str, ...]
    flow: str
    flags: tuple[str, ...] = ()  # words of the command line for size, seed and region
    settings: tuple[str, ...] = ()  # dotted flags of the settings that differ from the preset's
    source_size: tuple[int, int] = (1, 1)  # (width, height) of the source, in which boxes are given

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

    def for_mask(self, name: str, place: FrameBox) -> str:
        """Returns the command that points at an object with a box; without margins, as people draw boxes."""
        width, height = self.source_size
        left, top, wide, high = place.box
        box = (left * width, top * height, max(1, wide * width), max(1, high * height))
        frame = str(self.frames[place.t])
        words = ["unwrap", "mask", self.video, "--object", name, "--frame", frame]
        return shlex.join([*words, "--box", ",".join(f"{value:.0f}" for value in box)])


@dataclass(frozen=True)
class ClipMeasurements:
    """Holds the measurements of a trained run."""

    surveyed_frames: tuple[int, ...]  # frames of the source, ascending
    psnr: tuple[float, ...]  # dB, one for each of these frames
    trust: tuple[float, ...] | None  # share of pixels with consistent flow, per pair of frames; None without flow
    layers: tuple[LayerMeasurements, ...]
    command: TrainCommandLine
    presets: tuple[str, ...]  # names of all presets
    unheld: tuple[UnheldObject, ...] = ()  # what no layer holds
    chart_starts: frozenset[int] = frozenset()  # frames of the source with which a part of a canonical picture begins


@dataclass(frozen=True)
class Reason:
    """Holds a sentence of a verdict, with advice."""

    level: Level
    text: str
    advice: str = ""
    commands: tuple[str, ...] = ()  # command lines to try
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
    """Judges how well a clip fits the model.

    Args:
        clip: the measurements of a trained run.
        settings: the limits.

    Returns:
        The verdict. It is bad if a reason that decides is bad, and good only if all reasons are good.
    """
    reasons = [
        *_judge_cuts(clip, settings),
        *_judge_quality(clip, settings),
        *_judge_drops(clip, settings),
        *_judge_unheld_objects(clip),
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
    """Finds the pairs of neighboring frames, by number in the source, between which the picture changes abruptly."""
    if not clip.trust:
        return []
    limit = min(settings.min_flow_trust, median(clip.trust) / 2)
    pairs = pairwise(clip.command.frames)
    return [pair for pair, share in zip(pairs, clip.trust, strict=True) if share < limit]


def find_lost_shots(clip: ClipMeasurements, settings: VerdictSettings = DEFAULTS) -> list[range]:
    """Finds the parts of the clip between abrupt changes of the picture that are not reconstructed.

    Args:
        clip: the measurements of a trained run.
        settings: the limits.

    Returns:
        Frames of the source; empty where the model shows all parts, each with a part of its pictures.
    """
    frames = clip.command.frames
    ends = [frames.start, *(after for _, after in find_picture_changes(clip, settings)), frames.stop]
    lost = []
    for first, stop in pairwise(ends):
        values = [value for t, value in zip(clip.surveyed_frames, clip.psnr, strict=True) if first <= t < stop]
        if values and mean_psnr(values) < settings.poor_psnr_db:
            lost.append(range(first, stop, frames.step))
    return lost


def _judge_cuts(measurements: ClipMeasurements, settings: VerdictSettings) -> Iterator[Reason]:
    """Judges cuts, flashes and missing frames."""
    found = find_picture_changes(measurements, settings)
    if not found or measurements.trust is None:
        return
    frames, many = measurements.command.frames, len(found) > 1
    places = ", ".join(f"{before} and {after}" for before, after in found[:5]) + (", ..." if len(found) > 5 else "")
    if not find_lost_shots(measurements, settings):
        if all(after in measurements.chart_starts for _, after in found):
            cuts = "cuts" if many else "cut"
            text = (
                f"{len(found) + 1} shots found ({cuts} between frames {places}); each has its own part of the picture."
            )
        else:
            text = f"The picture changes abruptly between frames {places}, and is reconstructed on both sides."
        yield Reason("good", text)
        return
    ends = [frames.start, *(after for _, after in found), frames.stop]
    parts = sorted((range(a, b, frames.step) for a, b in pairwise(ends)), key=len, reverse=True)
    text = (
        f"Hard cut{'s' * many} (or a flash, or missing frames) between frames {places}: forward and backward flow "
        f"agree on {min(measurements.trust):.0%} of the pixels there, elsewhere on {median(measurements.trust):.0%}. "
        f"One picture cannot show both sides."
    )
    lines = tuple(measurements.command.for_part(part, f"{part.start}") for part in parts[:3] if len(part) > 1)
    yield Reason("bad", text, "Train on each part by itself:", lines)


def _judge_quality(measurements: ClipMeasurements, settings: VerdictSettings) -> Iterator[Reason]:
    """Judges the PSNR of the whole clip."""
    mean, worst = mean_psnr(measurements.psnr), min(measurements.psnr)
    figures = f"{mean:.1f} dB on average, {worst:.1f} dB in the worst frame"
    if mean >= settings.good_psnr_db:
        yield Reason("good", f"The reconstruction matches the video well: {figures}.")
        return
    level: Level = "care" if mean >= settings.poor_psnr_db else "bad"
    how = "is soft" if level == "care" else "does not match the video"
    text = f"The reconstruction {how}: {figures} (good: at least {settings.good_psnr_db:.0f} dB)."
    # More steps sharpen what is in the right place. They do not find objects that were missed.
    order = ("refine", "masks", "preset", "segments") if level == "care" else ("masks",)
    yield Reason(level, text, *_suggest_remedy(measurements, order, settings))


def _suggest_remedy(
    measurements: ClipMeasurements, order: Sequence[str], settings: VerdictSettings
) -> tuple[str, tuple[str, ...]]:
    """Returns advice and command: the first of `order` that was not tried yet, or else a shorter part of the clip.

    A cut makes all of them useless, so its own advice takes precedence and nothing is returned.
    """
    if find_lost_shots(measurements, settings) and find_picture_changes(measurements, settings):
        return "", ()
    command, tries = measurements.command, {}
    if command.quality != "final":
        better: str = "normal" if command.quality == "draft" else "final"
        tries["refine"] = (
            f"Train longer; the run continues from its last step (--quality {better}):",
            replace(command, quality=better).format_line(),
        )
    own_masks = {mask.partition(":")[0] for mask in command.masks} - {"auto", "none"}
    if not own_masks and command.preset in ("atlas", "lna", "codef", "hashing_nvd"):
        tries["masks"] = (
            "Give each object that moves on its own a mask (a folder of pictures, front layers first):",
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
    return "Train on a shorter part with less change:", (command.for_part(middle),)


def _judge_drops(measurements: ClipMeasurements, settings: VerdictSettings) -> Iterator[Reason]:
    """Judges the longest interval of frames that are reconstructed much worse than the rest."""
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
    where = f"Frame {first} is" if first == last else f"Frames {first} to {last} are"
    frames = measurements.command.frames
    sides = (range(frames.start, first, frames.step), range(last + frames.step, frames.stop, frames.step))
    rest = max(sides, key=len)
    found = mean_psnr([value for _, value in longest])
    text = f"{where} reconstructed worse than the rest: {found:.1f} dB (median {usual:.1f} dB)."
    commands = (measurements.command.for_part(rest),) if len(rest) > 1 else ()
    yield Reason(
        "care",
        text,
        "Edits look worst there. To leave these frames out:" if commands else "Edits look worst there.",
        commands,
    )


def _judge_layer(
    measurements: ClipMeasurements, layer: LayerMeasurements, settings: VerdictSettings
) -> Iterator[Reason]:
    """Judges one layer: visibility, quality, distortion, steadiness, and room for edits."""
    if layer.pixel_share == 0:
        advice = "Its mask may be empty, or be covered by the mask of another layer. Look at the layers:"
        line = shlex.join(["unwrap", "render", measurements.command.out, "--what", "layers"])
        yield Reason("care", f"Layer '{layer.name}' is never visible.", advice, (line,))
        return
    decides = layer.pixel_share >= settings.min_main_share
    yield from _judge_layer_faults(measurements, layer, decides, settings)

    # With a single layer the quality of the clip is that of the layer.
    if len(measurements.layers) > 1 and layer.psnr is not None and layer.psnr < settings.poor_psnr_db:
        text = f"Layer '{layer.name}' is reconstructed poorly ({layer.psnr:.1f} dB). It may rotate or deform."
        remedy = _suggest_remedy(measurements, ("masks", "refine", "preset"), settings)
        yield Reason("bad", text, *remedy, decides=decides)

    yield from _judge_distortion(measurements, layer, decides, settings)
    yield from _judge_steadiness(measurements, layer, decides, settings)
    if layer.seen <= 0:
        return

    # How much of the layer can be painted on, and how long it stays.
    count = len(measurements.command.frames)
    if layer.frames_per_place < settings.min_stay_share * count:
        text = f"A place on '{layer.name}' is on screen for {layer.frames_per_place:.0f} of {count} frames (median)."
        yield Reason("care", text, "Edit where its coverage picture is bright: these places stay on screen longest.")
    safe = f"Safe to paint on: {layer.green:.0%} of '{layer.name}'"
    if layer.green >= settings.min_safe_share:
        yield Reason("good", f"{safe} (green in its edit-risk picture).")
    else:
        yield Reason("care", f"{safe} only.", "An edit will look right where its edit-risk picture is green.")


def _judge_layer_faults(
    measurements: ClipMeasurements, layer: LayerMeasurements, decides: bool, settings: VerdictSettings
) -> Iterator[Reason]:
    """Judges whether a layer is one object, and all of it, in all frames."""
    faults, command, name = layer.faults, measurements.command, layer.name
    frames, missing = command.frames, layer.faults.missing
    found: list[tuple[float, tuple[float, float], str, FrameBox | None]] = []  # share, limits, sentence, where to point
    jumps = faults.list_jumps(settings.jump_shares[0])
    if jumps:
        worst, share = jumps[0], jumps[0].share
        others = ", ".join(str(frames[jump.t + 1]) for jump in sorted(jumps[1:6], key=lambda jump: jump.t))
        text = (
            f"The mask of '{name}' jumps: it {'loses' if worst.lost >= worst.gained else 'gains'} {share:.0%} of its "
            f"area between frames {frames[worst.t]} and {frames[worst.t + 1]}, although the same things are visible in "
            f"both.{f' It also jumps at {others}.' if others else ''}"
        )
        found.append((share, settings.jump_shares, text, worst.after))
    share = abs(faults.growth)
    grows = "grows over the clip: it gains" if faults.growth > 0 else "shrinks over the clip: it loses"
    text = f"The mask of '{name}' {grows} {share:.0%} of its area, although the same things stay visible."
    found.append((share, settings.growth_shares, text, faults.largest))
    text = (
        f"The mask of '{name}' does not follow one object: within 8 frames {faults.astray:.0%} of its visible points "
        f"leave it, and as many enter it."
    )
    if not jumps:  # which explain it
        found.append((faults.astray, settings.astray_shares, text, faults.largest))
    if missing is not None and missing.enclosed:
        text = f"'{name}' has a hole: {missing.share:.0%} of its area moves with it, but the background has it."
        found.append((missing.share, settings.missing_shares, text, missing.whole))
    elif missing is not None:
        text = (
            f"'{name}' is cut off: a part beside it, {missing.share:.0%} of its area, moves with it, and no edge of "
            f"color separates them; the background has it."
        )
        found.append((missing.share, settings.missing_shares, text, missing.whole))
    empty = faults.empty_frames
    if empty:
        text = (
            f"'{name}' is empty in {len(empty)} of {len(frames)} frames (the first is {frames[empty[0]]}), although "
            f"the object did not leave the frame."
        )
        found.append((len(empty) / len(frames), settings.empty_shares, text, FrameBox(empty[0], faults.last_box)))
    advice = "Point at the whole object there, and train again with the new masks:"
    for share, (care, bad), text, place in found:
        if share >= care:
            lines = (command.for_mask(name, place),) if place is not None else ()
            yield Reason("bad" if share >= bad else "care", text, advice if lines else "", lines, decides)
    if faults.area < settings.min_layer_area:
        yield Reason(
            "care", f"'{name}' fills only {faults.area:.2%} of a frame.", "Is it the object? Look at the layers."
        )


def _judge_unheld_objects(measurements: ClipMeasurements) -> Iterator[Reason]:
    """Judges whether something moves in the clip that has no layer."""
    for thing in measurements.unheld:
        frame = measurements.command.frames[thing.place.t]
        left, top, wide, high = thing.place.box
        size = measurements.command.source_size
        box = ",".join(f"{value:.0f}" for value in (left * size[0], top * size[1], wide * size[0], high * size[1]))
        where = f"in {thing.frames:.0%} of the frames (frame {frame}, box {box})"
        if thing.beside is None:
            text = f"Something that moves has no layer: the background does not match it {where}."
            advice = "Give it a layer; point at it:"
        else:
            text = (
                f"Beside '{thing.beside}' the background does not match the video {where}: a part that the mask "
                f"misses, a shadow, or a reflection."
            )
            advice = "If it is a part of the object, point at the whole object:"
        yield Reason("care", text, advice, (measurements.command.for_mask(thing.beside or "object", thing.place),))


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
    advice = "Paint where its edit-risk picture is green, or paint on a frame instead of on the canonical picture:"
    if layer.folded is not None and layer.folded >= care:
        text = (
            f"'{layer.name}' folds over in {layer.folded:.1%} of its visible part: an edit appears twice or mirrored."
        )
        level: Level = "bad" if layer.folded >= bad else "care"
        yield Reason(level, text, advice, (line,), decides)
    care, bad = settings.stretched_shares
    if layer.stretched is not None and layer.stretched >= care:
        text = (
            f"'{layer.name}' is stretched or squeezed more than {settings.stretch_risks[1]:g}-fold in "
            f"{layer.stretched:.1%} of its visible part: letters and circles lose their shape."
        )
        level = "bad" if layer.stretched >= bad else "care"
        yield Reason(level, text, advice, (line,), decides)


def _judge_steadiness(
    measurements: ClipMeasurements, layer: LayerMeasurements, decides: bool, settings: VerdictSettings
) -> Iterator[Reason]:
    """Judges whether the points of a layer stay on its surface."""
    drift = layer.drift
    if drift is None or drift.far is None or drift.steady is None or drift.points < settings.min_points:
        return
    figures = (
        f"{drift.steady:.0%} of points agree with optical flow after {drift.span} "
        f"frame{'s' * (drift.span > 1)} (median error {drift.far:.1f} px)"
    )
    care, bad = settings.steady_shares
    if drift.steady >= care:
        yield Reason("good", f"Tracking of '{layer.name}': {figures}.")
        return
    level: Level = "care" if drift.steady >= bad else "bad"
    text = f"Tracking of '{layer.name}': only {figures}. Edits may slide."
    yield Reason(level, text, *_suggest_remedy(measurements, ("masks", "refine", "preset"), settings), decides=decides)
