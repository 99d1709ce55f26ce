"""Renders a report as one HTML page: pictures as data URIs, no script, nothing loaded from anywhere.

`page.html.j2` says what is on the page and in which order, `page.css` how it looks; here are the values.
"""

from __future__ import annotations

import base64
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from jaxtyping import UInt8

from neural_fields.core.html_pages import render_html
from neural_fields.evaluation.report import heat_maps
from neural_fields.evaluation.report.collect import LayerView, Report
from neural_fields.evaluation.report.drift import DEFAULTS as DRIFT_SETTINGS
from neural_fields.evaluation.report.heat_maps import DEFAULTS as HEAT_SETTINGS
from neural_fields.evaluation.report.verdict import mean_psnr
from neural_fields.nn.environment import collect_versions

MACHINE_FACTS = ("unwrap", "platform", "cores", "device", "torch", "numpy", "opencv-python-headless", "hash grid")


@dataclass(frozen=True)
class PagePicture:
    """A picture as an `img` shows it."""

    data_uri: str
    width: int
    height: int
    alt: str

    @staticmethod
    def from_array(rgb: UInt8[np.ndarray, "height width 3"], alt: str) -> PagePicture:
        """Encodes a picture for the page."""
        data = base64.b64encode(heat_maps.encode_jpeg(rgb)).decode()
        return PagePicture(f"data:image/jpeg;base64,{data}", rgb.shape[1], rgb.shape[0], alt)


@dataclass(frozen=True)
class QualityBar:
    """A bar of the quality strip: one frame, or some frames of which it shows the worst."""

    kind: str  # "bar", "bar low" or "bar worst"
    height: float  # in percent of the plot
    title: str


@dataclass(frozen=True)
class QualityStrip:
    """The PSNR of each frame as bars, with the marks of its axis (dB, percent from the top)."""

    bars: list[QualityBar]
    marks: list[tuple[int, float]]


@dataclass(frozen=True)
class LayerSection:
    """Holds the values of a layer on the page."""

    view: LayerView
    canonical: PagePicture
    heat: dict[str, PagePicture]
    about: str


def render_page(report: Report) -> str:
    """Renders the page."""
    run, record = report.run.path, report.record
    count = f"{len(record.frames)} frame{'s' * (len(record.frames) != 1)}"
    layer = report.layers[0].measurements.name if report.layers else "background"
    worst = []
    for shown in report.worst:
        number = report.source_frame(shown.t)
        pictures = (
            ("source", PagePicture.from_array(shown.source, f"source, frame {number}")),
            ("reconstruction", PagePicture.from_array(shown.reconstruction, f"reconstruction of frame {number}")),
            ("difference", PagePicture.from_array(heat_maps.draw_error(shown.error), f"error of frame {number}")),
        )
        worst.append((number, shown.psnr, pictures))
    numbered = [(report.source_frame(t), picture) for t, picture in report.thumbnails]
    scales = {}  # the colors of each scale, for a gradient in CSS
    for name in ("seen", "bad"):
        stops = heat_maps.color_scale(name)[:: 255 // 15]
        scales[name] = ",".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    # The figures below the verdict, as pairs of a value and what it measures.
    psnr, cost = report.measurements.psnr, report.cost
    drifts = [view.measurements.drift for view in report.layers if view.measurements.drift is not None]
    steady = [drift.steady for drift in drifts if drift.steady is not None]
    safe = min((view.measurements.green for view in report.layers), default=0)
    seconds = "-"
    if cost.train_seconds is not None:
        whole = round(cost.train_seconds)
        is_short = cost.train_seconds < 60
        seconds = f"{cost.train_seconds:.1f} s" if is_short else f"{whole // 60}:{whole % 60:02d} min"
    figures = [
        (f"{mean_psnr(psnr):.2f} dB", "mean PSNR"),
        (_format_decibel(min(psnr)), "worst frame"),
        (f"{min(steady):.0%}", "of points agree with flow (worst layer)")
        if steady
        else ("-", "tracking: not measured"),
        (f"{safe:.0%}", "safe to paint on (worst layer)"),
        (seconds, f"of training, {cost.steps} steps"),
        ("-" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB", "peak memory"),
    ]
    machine = collect_versions()
    run_facts = [
        ("video", str(record.video)),
        ("frames", f"{record.frames.start}:{record.frames.stop}:{record.frames.step} ({len(record.frames)})"),
        ("size of the run", f"{record.size[0]}x{record.size[1]}"),
        ("preset, quality", f"{record.preset}, {record.quality}"),
        ("masks", ", ".join(record.masks) or "none"),
        ("flow", record.flow),
        ("steps", str(cost.steps)),
        ("time", "-" if cost.train_seconds is None else f"{cost.train_seconds:.1f} s"),
        ("peak memory", "-" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB"),
        *((name, machine[name]) for name in MACHINE_FACTS if name in machine),
    ]
    return render_html(
        Path(__file__).with_name("page.html.j2"),
        report=report,
        name=run.name,
        video="/".join(record.video.parts[-2:]) if record.video.is_dir() else record.video.name,
        about=f"{count}, {record.size[0]}x{record.size[1]}, preset {record.preset}, quality {record.quality}",
        figures=figures,
        strip=_plot_quality_strip(report),
        thumbnails=[(number, PagePicture.from_array(picture, f"frame {number}")) for number, picture in numbered],
        worst=worst,
        layers=[_show_layer(report, view) for view in report.layers],
        edit_commands=[
            shlex.join(["unwrap", "edit", str(run), "PAINTED.png", "--layer", layer]),
            shlex.join(["unwrap", "render", str(run)]),
        ],
        compare_commands=[shlex.join(["unwrap", "render", str(run), "--what", "compare"])],
        run_facts=run_facts,
        settings_text=report.run.run_yaml.read_text(encoding="utf-8"),
        sheet=PagePicture.from_array(report.sheet.picture, "layers on frames"),
        sheet_frames=", ".join(map(str, report.sheet.numbers)),
        layer_colors={name: f"rgb{color}" for name, color in report.sheet.colors.items()},
        scales=scales,
        heat=HEAT_SETTINGS,
        drift=DRIFT_SETTINGS,
        decibel=_format_decibel,
    )


def _plot_quality_strip(report: Report, max_bars: int = 400) -> QualityStrip:
    """Computes bars of the PSNR of each frame. In longer clips frames share a bar, which shows the worst."""
    psnr, frames = report.measurements.psnr, report.measurements.surveyed_frames
    values = [value for value in psnr if math.isfinite(value)] or [0.0]
    low, high = math.floor(min(values)) - 2, math.ceil(max(values)) + 1
    low_psnr = median(psnr) - report.settings.psnr_drop_db / 2
    bars = []
    frames_per_bar = -(-len(frames) // max_bars)
    for begin in range(0, len(frames), frames_per_bar):
        group = slice(begin, begin + frames_per_bar)
        first, last, value = frames[group][0], frames[group][-1], min(psnr[group])
        kind = "bar worst" if value == min(psnr) else "bar low" if value < low_psnr else "bar"
        name = f"frame {first}" if first == last else f"frames {first} to {last}"
        height = 100 * (min(value, high) - low) / (high - low)
        bars.append(QualityBar(kind, height, f"{name}: {_format_decibel(value)}"))
    steps = range(low, high + 1, max(1, (high - low) // 4))
    return QualityStrip(bars, [(mark, 100 - 100 * (float(mark) - low) / (high - low)) for mark in steps])


def _show_layer(report: Report, view: LayerView) -> LayerSection:
    """Draws the pictures of a layer and summarizes its numbers in a line."""
    measurements, drift = view.measurements, view.measurements.drift
    maps = heat_maps.draw_heat_maps(view.image, view.maps, len(report.record.frames), report.settings)
    area = measurements.area_in_frames
    words = [
        f"{measurements.pixel_share:.1%} of all pixels",
        f"PSNR {_format_decibel(measurements.psnr)} where it is visible",
        f"covers {area:.1f} of a frame" if area < 1 else f"covers the area of {area:.1f} frames",
    ]
    if drift is not None and drift.far is not None and drift.next_frame is not None and drift.steady is not None:
        words.append(
            f"tracking against optical flow: median error {drift.next_frame:.2f} px after one frame, "
            f"{drift.far:.2f} px after {drift.span}; {drift.steady:.0%} of points agree"
        )
    return LayerSection(
        view=view,
        canonical=PagePicture.from_array(
            heat_maps.draw_canonical(view.image), f"canonical picture of layer {measurements.name}"
        ),
        heat={
            name: PagePicture.from_array(picture, f"{name} of layer {measurements.name}")
            for name, picture in maps.items()
        },
        about="; ".join(words) + ".",
    )


def _format_decibel(value: float | None) -> str:
    """Formats a PSNR, which may be infinite or unknown."""
    if value is None:
        return "unknown"
    return f"{value:.2f} dB" if math.isfinite(value) else "exact"
