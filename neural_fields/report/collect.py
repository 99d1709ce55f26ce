"""From a run to the facts of its report: what is read, what is measured, and how it becomes plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, pristine
from neural_fields.config import config_to_mapping, load_config, preset_names
from neural_fields.errors import UserError
from neural_fields.fit_record import FitRecord, read_fit_record
from neural_fields.report.heat import risk_levels
from neural_fields.report.steadiness import Drift, drifts, flow_trust, run_flow
from neural_fields.report.survey import LayerMaps, LayerSurvey, Shown, Survey
from neural_fields.report.verdict import (
    STRETCHED,
    ClipFacts,
    LayerFacts,
    Reason,
    TrainCommand,
    Verdict,
    cuts,
    judge,
    mean_psnr,
)
from neural_fields.run import Run, read_run_yaml

WORST = 3  # frames that are shown


@dataclass(frozen=True)
class FitCost:
    """What a fit took."""

    steps: int
    train_seconds: float | None
    peak_mib: float | None


@dataclass(frozen=True)
class LayerView:
    """One layer as the page shows it."""

    facts: LayerFacts
    image: CanonicalImage
    maps: LayerMaps
    stretch: float | None  # median over the places of the canonical image
    residual: float | None  # median, in 8-bit levels


@dataclass(frozen=True)
class Report:
    """Everything that the page says."""

    run: Run
    record: FitRecord
    cost: FitCost
    facts: ClipFacts
    heat_frames: int  # that stretch, fold-over and residual were measured in
    verdict: Verdict
    layers: tuple[LayerView, ...]
    worst: tuple[Shown, ...]
    thumbnails: tuple[tuple[int, UInt8[np.ndarray, "height width 3"]], ...]

    def frame(self, t: int) -> int:
        """The number in the source of a fitted frame."""
        return self.record.frames[t]

    @property
    def sentence(self) -> str:
        """The verdict in a line, with its first reason where it is not a plain yes."""
        first = self.verdict.reasons[0]
        return f"{self.verdict.title}." if self.verdict.level == "good" else f"{self.verdict.title}. {first.text}"

    def to_json(self) -> dict[str, Any]:
        """The same numbers as the page, as plain values."""
        return {
            "path": str(self.run.report),
            "verdict": self.verdict.level,
            "title": self.verdict.title,
            "reasons": [_reason_json(reason) for reason in self.verdict.reasons],
            "frames_looked_at": len(self.facts.looked_at),
            "psnr": _rounded(mean_psnr(self.facts.psnr)),
            "worst_frames": [{"frame": self.frame(shown.t), "psnr": _rounded(shown.psnr)} for shown in self.worst],
            "cuts": [list(pair) for pair in cuts(self.facts)],
            "layers": {view.facts.name: _layer_json(view) for view in self.layers},
        }


def begin_survey(run: Run, size: tuple[int, int], looked_at: Sequence[int], heat: Sequence[int]) -> Survey:
    """A survey of the layers of a finished run.

    Raises:
        UserError: the run has no maps yet, or they are damaged.
    """
    maps = Maps.open(run)
    boxes = dict(zip(maps.layers, maps.boxes, strict=True))
    return Survey(boxes, size, looked_at, heat, STRETCHED)


def conclude(
    run: Run,
    survey: Survey,
    frames: UInt8[np.ndarray, "time height width 3"],
    cost: FitCost,
    starts: int,
    with_flow: bool = True,
) -> Report:
    """The report of a run whose frames `survey` has looked at.

    Args:
        frames: of the source, at the size of the fit.
        starts: how many frames points are followed from.
        with_flow: whether flow may be used (the fit's is in the cache; otherwise it is computed).
    """
    record, maps = read_fit_record(run), Maps.open(run)
    flow = run_flow(run, record, frames) if with_flow else None
    drift = drifts(maps, flow, starts) if flow is not None else {}
    views = tuple(_layer_view(run, survey, layer, maps, drift.get(layer.name)) for layer in survey.layers)
    facts = ClipFacts(
        looked_at=tuple(record.frames[t] for t in survey.looked_at),
        psnr=tuple(survey.psnr),
        trust=tuple(flow_trust(flow)) if flow is not None else None,
        layers=tuple(view.facts for view in views),
        command=train_command(run, record),
        presets=tuple(preset_names()),
    )
    worst, thumbnails = tuple(survey.worst(WORST)), tuple(survey.thumbnails)
    return Report(run, record, cost, facts, len(survey.heat), judge(facts), views, worst, thumbnails)


def train_command(run: Run, record: FitRecord) -> TrainCommand:
    """The command that made a run, as far as run.yaml remembers it."""
    width, height = record.size
    flags = ["--size", f"{width}x{height}"]
    values = read_run_yaml(run)
    flags += [word for name in ("seed", "roi") if values.get(name) for word in (f"--{name}", str(values[name]))]
    return TrainCommand(
        str(record.video), str(run.path), record.frames, record.preset, record.quality, record.masks, record.flow,
        tuple(flags), tuple(_dotted(record)),
    )  # fmt: skip


def _dotted(record: FitRecord) -> list[str]:
    """Settings that differ from the preset's, as flags; none if the preset cannot be read any more."""
    try:
        before = _flat(config_to_mapping(load_config(record.preset)))
    except UserError:
        return []
    after = _flat(config_to_mapping(record.config))
    changed = [name for name, value in after.items() if before.get(name) != value and not isinstance(value, list)]
    return [word for name in changed for word in (f"--{name}", str(after[name]))]


def _flat(mapping: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return flat


def _layer_view(run: Run, survey: Survey, layer: LayerSurvey, maps: Maps, drift: Drift | None) -> LayerView:
    heat = survey.maps(layer, maps.frame_count)
    risk = risk_levels(heat, maps.frame_count)
    seen = heat.frames > 0
    cells = max(1, int(seen.sum()))
    frame_area = 4 * survey.size[0] * survey.size[1] / max(survey.size) ** 2  # a frame is 2 units long
    values = [value for value in layer.psnr if math.isfinite(value)]
    facts = LayerFacts(
        name=layer.name,
        pixel_share=layer.pixels / max(1, len(layer.psnr) * survey.size[0] * survey.size[1]),
        psnr=float(np.mean(values)) if values else None,
        stretched=layer.stretched / layer.bent if layer.bent else None,
        folded=layer.folded / layer.bent if layer.bent else None,
        seen=float(seen.mean()),
        frames_a_place=float(np.median(heat.frames[seen])) if seen.any() else 0.0,
        pictures=float(seen.mean()) * layer.box.width * layer.box.height / frame_area,
        green=int((risk == 0).sum()) / cells,
        yellow=int((risk == 1).sum()) / cells,
        red=int((risk == 2).sum()) / cells,
        drift=drift,
    )
    return LayerView(facts, pristine(run.canonical, layer.name), heat, _median(heat.stretch), _median(heat.residual))


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _reason_json(reason: Reason) -> dict[str, Any]:
    return {
        "level": reason.level, "text": reason.text, "advice": reason.advice, "commands": list(reason.commands),
    }  # fmt: skip


def _layer_json(view: LayerView) -> dict[str, Any]:
    facts = view.facts
    return {
        "psnr": _rounded(facts.psnr),
        "pixel_share": _rounded(facts.pixel_share),
        "coverage": {
            "seen": _rounded(facts.seen),
            "frames_a_place": _rounded(facts.frames_a_place),
            "pictures": _rounded(facts.pictures),
        },
        "stretch": {"median": _rounded(view.stretch), f"beyond_{STRETCHED:.0f}": _rounded(facts.stretched)},
        "fold": {"share": _rounded(facts.folded)},
        "residual": {"median": _rounded(view.residual)},
        "risk": {name: _rounded(getattr(facts, name)) for name in ("green", "yellow", "red")},
        "points": None if facts.drift is None else asdict(facts.drift),
    }


def _rounded(value: float | None) -> float | None:
    return round(value, 5) if value is not None and math.isfinite(value) else None
