"""Builds the data of a report from a run: reads, measures, and turns the figures into plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import UInt8

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.config.presets import planar_presets
from neural_fields.core.errors import UserError
from neural_fields.core.progress import ProgressReporter, report_nothing, report_part
from neural_fields.data.flow.compute import FlowField
from neural_fields.evaluation.report.drift import measure_drift, measure_flow_trust
from neural_fields.evaluation.report.heat_maps import classify_risk
from neural_fields.evaluation.report.layer_faults import DEFAULTS as FAULTS
from neural_fields.evaluation.report.layer_faults import (
    LayerFaults,
    SmallClip,
    UnheldObject,
    find_unheld_objects,
    measure_layer_faults,
)
from neural_fields.evaluation.report.layer_sheet import LayerSheet, draw_layer_sheet
from neural_fields.evaluation.report.survey import LayerHeatMaps, Survey, SurveyedFrame
from neural_fields.evaluation.report.verdict import (
    DEFAULTS,
    ClipMeasurements,
    LayerMeasurements,
    TrainCommandLine,
    Verdict,
    VerdictSettings,
    find_picture_changes,
    judge_clip,
    mean_psnr,
)
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.appearance.window_opacity import WindowOpacityConfig
from neural_fields.planar.config import load_planar_config, planar_config_to_mapping
from neural_fields.planar.record import PlanarRecord
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class TrainingCost:
    """Holds steps, time and memory of a training."""

    steps: int
    train_seconds: float | None
    peak_mib: float | None


@dataclass(frozen=True)
class LayerView:
    """Holds a layer of the page."""

    measurements: LayerMeasurements
    image: CanonicalImage
    maps: LayerHeatMaps
    stretch: float | None  # median over the visible places of the canonical picture
    residual: float | None  # median over these places, in 8-bit levels


@dataclass(frozen=True)
class Report:
    """Holds the content of the page."""

    run: Run
    record: PlanarRecord
    cost: TrainingCost
    measurements: ClipMeasurements
    heat_frames: int  # number of frames in which stretch, fold-over and residual were measured
    verdict: Verdict
    layers: tuple[LayerView, ...]
    worst: tuple[SurveyedFrame, ...]
    thumbnails: tuple[tuple[int, UInt8[np.ndarray, "height width 3"]], ...]
    sheet: LayerSheet
    settings: VerdictSettings = DEFAULTS  # limits of the verdict

    def source_frame(self, t: int) -> int:
        """Returns the number in the source of a frame of the run."""
        return self.record.frames[t]

    @property
    def verdict_sentence(self) -> str:
        """The verdict in a line, with its first reason unless it is good."""
        first = self.verdict.reasons[0]
        return f"{self.verdict.title}." if self.verdict.level == "good" else f"{self.verdict.title}. {first.text}"

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers of the page as plain values."""
        layers = {}
        for view in self.layers:
            measurements = view.measurements
            layers[measurements.name] = {
                "psnr": _round_finite(measurements.psnr),
                "pixel_share": _round_finite(measurements.pixel_share),
                "coverage": {
                    "seen": _round_finite(measurements.seen),
                    "frames_a_place": _round_finite(measurements.frames_per_place),
                    "pictures": _round_finite(measurements.area_in_frames),
                },
                "stretch": {
                    "median": _round_finite(view.stretch),
                    f"beyond_{self.settings.stretch_risks[1]:.0f}": _round_finite(measurements.stretched),
                },
                "fold": {"share": _round_finite(measurements.folded)},
                "residual": {"median": _round_finite(view.residual)},
                "risk": {name: _round_finite(getattr(measurements, name)) for name in ("green", "yellow", "red")},
                "points": None if measurements.drift is None else asdict(measurements.drift),
                "mask": {
                    "largest_jump": _round_finite(max((jump.share for jump in measurements.faults.jumps), default=0.0)),
                    "growth": _round_finite(measurements.faults.growth),
                    "missing": _round_finite(measurements.faults.missing.share if measurements.faults.missing else 0.0),
                    "empty_frames": [self.source_frame(t) for t in measurements.faults.empty_frames],
                },
            }
        return {
            "path": str(self.run.report),
            "layers_picture": str(self.run.layers_picture),
            "verdict": self.verdict.level,
            "title": self.verdict.title,
            "reasons": [
                {
                    "level": reason.level,
                    "text": reason.text,
                    "advice": reason.advice,
                    "commands": list(reason.commands),
                }
                for reason in self.verdict.reasons
            ],
            "frames_looked_at": len(self.measurements.surveyed_frames),
            "psnr": _round_finite(mean_psnr(self.measurements.psnr)),
            "worst_frames": [
                {"frame": self.source_frame(shown.t), "psnr": _round_finite(shown.psnr)} for shown in self.worst
            ],
            "cuts": [list(pair) for pair in find_picture_changes(self.measurements, self.settings)],
            "layers": layers,
        }


def begin_survey(
    run: PlanarRun,
    size: tuple[int, int],
    looked_at: Sequence[int],
    heat: Sequence[int],
    settings: VerdictSettings = DEFAULTS,
) -> Survey:
    """Begins a survey of the layers of a finished run.

    Args:
        run: the finished run.
        size: (width, height) of the frames.
        looked_at: numbers of the frames that will be added.
        heat: those of them in which stretch, fold-over and residual are measured.
        settings: limits of the verdict; the survey uses the second of `stretch_risks`.

    Raises:
        UserError: the run has no maps yet, or they are damaged.
    """
    boxes = dict(zip(run.layers, run.maps.boxes, strict=True))
    return Survey(boxes, size, looked_at, heat, settings.stretch_risks[1])


def build_report(
    run: PlanarRun,
    survey: Survey,
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    cost: TrainingCost,
    starts: int,
    report: ProgressReporter = report_nothing,
    settings: VerdictSettings = DEFAULTS,
) -> Report:
    """Builds the report of a run whose frames were added to `survey`.

    Args:
        run: the finished run.
        survey: the survey to which the frames of the run were added.
        frames: RGB of the run at the size of the training; may be memory-mapped.
        flow: the optical flow of the clip; None leaves out the measurements that need it.
        cost: time and memory of the training.
        starts: number of frames from which points are tracked.
        report: called with the progress, as the stage "report".
        settings: limits of the verdict.
    """
    record, maps = run.record, run.maps
    report_drift, report_faults = (report_part(report, "report", *part) for part in ((0.0, 0.3), (0.3, 1.0)))
    drift = measure_drift(maps, flow, starts, report_drift) if flow is not None else {}
    trust = tuple(measure_flow_trust(flow)) if flow is not None else None
    faults, unheld = measure_faults(run, frames, flow, trust, report_faults, settings)
    (width, height), views = survey.size, []
    frame_area = 4 * width * height / max(survey.size) ** 2  # a frame is 2 units long
    for layer in survey.layers:
        heat = survey.compute_layer_maps(layer, maps.frame_count)
        risk = classify_risk(heat, maps.frame_count, settings)
        seen = heat.frames > 0
        cells = max(1, int(seen.sum()))
        values = [value for value in layer.psnr if math.isfinite(value)]
        stretch, residual = (part[np.isfinite(part)] for part in (heat.stretch, heat.residual))
        measured = LayerMeasurements(
            name=layer.name,
            pixel_share=layer.pixels / max(1, len(layer.psnr) * width * height),
            psnr=float(np.mean(values)) if values else None,
            stretched=layer.stretched / layer.bent if layer.bent else None,
            folded=layer.folded / layer.bent if layer.bent else None,
            seen=float(seen.mean()),
            frames_per_place=float(np.median(heat.frames[seen])) if seen.any() else 0.0,
            area_in_frames=float(seen.mean()) * layer.box.width * layer.box.height / frame_area,
            green=int((risk == 0).sum()) / cells,
            yellow=int((risk == 1).sum()) / cells,
            red=int((risk == 2).sum()) / cells,
            drift=drift.get(layer.name),
            faults=faults.get(layer.name, LayerFaults()),
        )
        medians = [float(np.median(part)) if len(part) else None for part in (stretch, residual)]
        views.append(LayerView(measured, run.canonical(layer.name), heat, *medians))
    measurements = ClipMeasurements(
        surveyed_frames=tuple(record.frames[t] for t in survey.surveyed_frames),
        psnr=tuple(survey.psnr),
        trust=trust,
        layers=tuple(view.measurements for view in views),
        command=reconstruct_train_command(run),
        presets=tuple(planar_presets()),
        unheld=unheld,
        chart_starts=frozenset(record.frames[chart.first] for series in maps.charts for chart in series),
    )
    jumps = [jump.t for one in faults.values() for jump in one.list_jumps(settings.jump_shares[0])[:1]]
    return Report(
        run=run.files,
        record=record,
        cost=cost,
        measurements=measurements,
        heat_frames=len(survey.heat),
        verdict=judge_clip(measurements, settings),
        layers=tuple(views),
        worst=tuple(survey.worst_frames(3)),
        thumbnails=tuple(survey.thumbnails),
        sheet=draw_layer_sheet(frames, record.frames, maps, find_objects(run), jumps),
        settings=settings,
    )


def find_objects(run: PlanarRun) -> tuple[str, ...]:
    """Finds the layers that are objects, front to back; those that are parts of the clip, in time, are none."""
    return () if isinstance(run.config.opacity, WindowOpacityConfig) else run.maps.layers[:-1]


def measure_faults(
    run: PlanarRun,
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    trust: Sequence[float] | None,
    report: ProgressReporter = report_nothing,
    settings: VerdictSettings = DEFAULTS,
) -> tuple[dict[str, LayerFaults], tuple[UnheldObject, ...]]:
    """Measures what is wrong with the layers of a run, and what has no layer.

    Args:
        run: the finished run.
        frames: RGB of the run at the size of the training; may be memory-mapped.
        flow: the optical flow of the clip; None measures nothing.
        trust: share of pixels with consistent flow, per pair of frames.
        report: called with the progress, as the stage "report".
        settings: limits of the verdict, which say where the picture changes abruptly.

    Returns:
        The faults of each object, by the name of its layer, and what no layer holds.
    """
    maps, objects = run.maps, find_objects(run)
    if flow is None or not trust or maps.frame_count <= FAULTS.span_frames:  # too short to follow anything
        return {}, ()
    clip = SmallClip(frames, maps, flow)
    limit = min(settings.min_flow_trust, float(np.median(trust)) / 2)
    ends = [0, *(t + 1 for t, share in enumerate(trust) if share < limit), maps.frame_count]
    shots = tuple(range(first, stop) for first, stop in pairwise(ends))
    parts = len(objects) + 1
    faults = {}
    for layer, name in enumerate(objects):
        report_layer = report_part(report, "report", layer / parts, (layer + 1) / parts)
        faults[name] = measure_layer_faults(clip, layer, shots, report=report_layer)
    if len(objects) < len(maps.layers) - 1:  # there is no background
        return faults, ()
    report_rest = report_part(report, "report", len(objects) / parts, 1.0)
    return faults, find_unheld_objects(clip, run.canonical(maps.layers[-1]), report=report_rest)


def reconstruct_train_command(run: PlanarRun) -> TrainCommandLine:
    """Reconstructs the command that made a run, as far as run.yaml remembers it."""
    record, (width, height) = run.record, run.record.size
    flags = ["--size", f"{width}x{height}"]
    for name, value in {"seed": record.seed, "roi": record.roi}.items():
        if value:
            flags += [f"--{name}", str(value)]

    # Settings that differ from the preset's, as flags; none if the preset cannot be read any more.
    settings: list[str] = []
    try:
        preset = _flatten_mapping(planar_config_to_mapping(load_planar_config(record.preset)))
    except UserError:
        preset = None
    if preset is not None:
        for name, value in _flatten_mapping(planar_config_to_mapping(run.config)).items():
            if preset.get(name) != value and not isinstance(value, list):
                settings += [f"--{name}", str(value)]

    return TrainCommandLine(
        video=str(record.video),
        out=str(run.path),
        frames=record.frames,
        preset=record.preset,
        quality=record.quality,
        masks=record.masks,
        flow=record.flow,
        flags=tuple(flags),
        settings=tuple(settings),
        source_size=(run.stored_metadata.width, run.stored_metadata.height),
    )


def _flatten_mapping(mapping: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flatten_mapping(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return flat


def _round_finite(value: float | None) -> float | None:
    """Rounds a number for JSON; None where it is not known."""
    return round(value, 5) if value is not None and math.isfinite(value) else None
