"""Renders a report as one HTML page: pictures as data URIs, no script, nothing loaded from anywhere.

Text that comes from outside (paths, names of layers, sentences with them) goes through `html.escape`.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Iterable
from html import escape
from statistics import median

import numpy as np
from jaxtyping import UInt8

from neural_fields.evaluation.report import heat_maps
from neural_fields.evaluation.report.collect import LayerView, Report
from neural_fields.evaluation.report.drift import DEFAULTS as DRIFT_SETTINGS
from neural_fields.evaluation.report.heat_maps import DEFAULTS as HEAT_SETTINGS
from neural_fields.evaluation.report.stylesheet import STYLE
from neural_fields.evaluation.report.verdict import mean_psnr
from neural_fields.nn.environment import collect_environment

Picture = UInt8[np.ndarray, "height width 3"]


def render_page(report: Report) -> str:
    """Renders the whole page."""
    record = report.record
    count = f"{len(record.frames)} frame{'s' * (len(record.frames) != 1)}"
    video = "/".join(record.video.parts[-2:]) if record.video.is_dir() else record.video.name
    about = f"{count}, {record.size[0]}x{record.size[1]}, preset {record.preset}, quality {record.quality}"
    heading = f"<h1>{escape(report.run.path.name)} <small>{escape(video)}: {escape(about)}</small></h1>"
    parts = [
        heading,
        _render_verdict(report),
        _render_figures(report),
        _render_quality_strip(report),
        _render_worst_frames(report),
        *(_render_layer(report, view) for view in report.layers),
        _render_next_steps(report),
        _render_run_details(report),
        _render_method(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.run.path.name)}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _render_verdict(report: Report) -> str:
    """Renders the verdict with its reasons."""
    verdict = report.verdict
    reasons = ""
    for reason in verdict.reasons:
        advice = f"<br>{escape(reason.advice)}" if reason.advice else ""
        commands = _render_commands(reason.commands)
        reasons += f'<li class="{reason.level}">{escape(reason.text)}{advice}{commands}</li>'
    return (
        f'<section class="verdict {verdict.level}"><strong>{escape(verdict.title)}</strong>'
        f'<ul class="reasons">{reasons}</ul></section>'
    )


def _render_commands(lines: Iterable[str]) -> str:
    """Renders command lines to copy."""
    return "".join(f"<pre>{escape(line)}</pre>" for line in lines)


def _render_figures(report: Report) -> str:
    """Renders the row of figures below the verdict."""
    psnr, cost = report.measurements.psnr, report.cost
    steady_shares = [view.measurements.drift.steady for view in report.layers if view.measurements.drift is not None]
    known_shares = [share for share in steady_shares if share is not None]
    steady = f"{min(known_shares):.0%}" if known_shares else "-"
    seconds = "-"
    if cost.train_seconds is not None:
        whole = round(cost.train_seconds)
        is_short = cost.train_seconds < 60
        seconds = f"{cost.train_seconds:.1f} s" if is_short else f"{whole // 60}:{whole % 60:02d} min"
    memory = "-" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB"
    boxes = [
        (f"{mean_psnr(psnr):.2f} dB", "mean PSNR"),
        (_format_decibel(min(psnr)), "worst frame"),
        (steady, "of the points stay put (worst layer)" if known_shares else "points stay put: not measured"),
        (
            f"{min((view.measurements.green for view in report.layers), default=0):.0%}",
            "safe to paint on (worst layer)",
        ),
        (seconds, f"of training, {cost.steps} steps"),
        (memory, "memory at most"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in boxes)
    return f'<div class="figures">{cells}</div>'


# --- quality --------------------------------------------------------------------------------------------------------


def _render_quality_strip(report: Report, max_bars: int = 400) -> str:
    """Renders bars of the PSNR of each frame, with thumbnails below.

    Longer clips share a bar, which shows the worst of its frames.
    """
    psnr, frames = report.measurements.psnr, report.measurements.surveyed_frames
    values = [value for value in psnr if math.isfinite(value)] or [0.0]
    low, high = math.floor(min(values)) - 2, math.ceil(max(values)) + 1
    low_psnr = median(psnr) - report.settings.psnr_drop_db / 2

    drawn = []
    frames_per_bar = -(-len(frames) // max_bars)
    for place, begin in enumerate(range(0, len(frames), frames_per_bar)):
        group = slice(begin, begin + frames_per_bar)
        first, last, value = frames[group][0], frames[group][-1], min(psnr[group])
        kind = "bar worst" if value == min(psnr) else "bar low" if value < low_psnr else "bar"
        name = f"frame {first}" if first == last else f"frames {first} to {last}"
        height = 100 * (min(value, high) - low) / (high - low)
        drawn.append(
            f'<rect class="{kind}" x="{place + 0.06:.2f}" y="{100 - height:.2f}" width="0.88" '
            f'height="{height:.2f}"><title>{name}: {_format_decibel(value)}</title></rect>'
        )

    lines, labels = "", ""
    for mark in range(low, high + 1, max(1, (high - low) // 4)):
        y = 100 - 100 * (float(mark) - low) / (high - low)
        lines += f'<line class="grid" x1="0" x2="{len(drawn)}" y1="{y}" y2="{y}"/>'
        labels += f'<span class="axis" style="top:{y:.1f}%">{mark} dB</span>'
    thumbs = "".join(
        f'<span class="axis">{_render_image(picture, f"frame {report.source_frame(t)}")}{report.source_frame(t)}</span>'
        for t, picture in report.thumbnails
    )
    total = len(report.record.frames)
    partial_note = ""
    if len(frames) < total:
        partial_note = f" {len(frames)} of {total} frames were looked at; unwrap eval --html looks at all."
    return (
        "<h2>Quality of each frame</h2>"
        f'<p class="soft">PSNR of the model against the video. The axis does not start at zero. Red: the worst frame; '
        f"amber: more than {report.settings.psnr_drop_db / 2:.0f} dB below the median.{partial_note}</p>"
        f'<div class="strip"><div><div class="plot">{labels}<svg viewBox="0 0 {len(drawn)} 100" '
        f'preserveAspectRatio="none" role="img" aria-label="PSNR of each frame">{lines}{"".join(drawn)}</svg></div>'
        f'<div class="thumbs">{thumbs}</div></div></div>'
    )


def _render_worst_frames(report: Report) -> str:
    """Renders the frames with the lowest quality: source, reconstruction and difference."""
    rows = []
    for shown in report.worst:
        number = report.source_frame(shown.t)
        rows.append(
            f"<h3>Frame {number}: {_format_decibel(shown.psnr)}</h3>"
            '<div class="three">'
            f"{_render_figure(shown.source, f'source, frame {number}', 'source')}"
            f"{_render_figure(shown.reconstruction, f'reconstruction of frame {number}', 'reconstruction')}"
            f"{_render_figure(heat_maps.draw_error(shown.error), f'error of frame {number}', 'difference')}</div>"
        )
    scale = _render_scale("bad", "0", f"{HEAT_SETTINGS.max_residual:.0f} levels of 255 and more")
    return (
        "<h2>Where it fits worst</h2>"
        '<p class="soft">The worst frames, each from another part of the clip.</p>'
        + "".join(rows)
        + f"<div>{scale}</div>"
    )


# --- layers ---------------------------------------------------------------------------------------------------------


def _render_layer(report: Report, view: LayerView) -> str:
    """Renders the canonical image of a layer with what is known of each place."""
    facts, limits = view.measurements, report.settings
    if facts.pixel_share == 0:
        return f"<h2>Layer {escape(facts.name)}</h2><p>No frame shows this layer.</p>"
    count = len(report.record.frames)
    pictures = heat_maps.draw_heat_maps(view.image, view.maps, count, limits)

    # The swatches of the edit risk; red is striped, as on the picture.
    green, yellow, red = (f"rgb({r},{g},{b})" for r, g, b in HEAT_SETTINGS.risk_colors)
    dark_red = "rgb({},{},{})".format(*(value // 2 for value in HEAT_SETTINGS.risk_colors[2]))
    striped = f"repeating-linear-gradient(135deg,{red} 0 3px,{dark_red} 3px 6px)"
    legend = "".join(
        f'<span class="swatch" style="background:{fill}"></span>{name} {share:.0%}'
        for fill, name, share in (
            (green, "safe", facts.green),
            (yellow, "care", facts.yellow),
            (striped, "risk", facts.red),
        )
    )

    stretched = "an unknown part" if facts.stretched is None else f"{facts.stretched:.1%}"
    folded = "an unknown part" if facts.folded is None else f"{facts.folded:.2%}"
    residual = "unknown" if view.residual is None else f"{view.residual:.1f}"
    captions = {
        "risk": f"<b>Edit risk</b>{legend}. Red where it folds in {limits.fold_risks[1]:.0%} of the frames, is "
        f"stretched {limits.stretch_risks[1]:g}-fold or wrong by {limits.residual_risks[1]:.0f} levels; amber from "
        f"{limits.fold_risks[0]:.0%}, {limits.stretch_risks[0]:g}-fold, {limits.residual_risks[0]:.0f} levels, or "
        f"where fewer than {limits.min_risk_frames} frames show it.",
        "coverage": f"<b>Coverage</b>: frames that show a place; {facts.frames_per_place:.0f} of {count} (median). "
        f"{facts.seen:.0%} of the picture is seen at all." + _render_scale("seen", "0", f"all {count} frames"),
        "stretch": f"<b>Stretch</b>: beyond {limits.min_stretch:g}-fold in {stretched} of what is seen."
        + _render_scale("bad", "1: none", f"{HEAT_SETTINGS.max_stretch:g}-fold and more"),
        "fold": f"<b>Fold-over</b>: {folded} of what is seen."
        + _render_scale("bad", "never", f"{HEAT_SETTINGS.max_fold:.0%} of the time and more"),
        "residual": f"<b>Residual</b>: color error; {residual} of 255 levels (median)."
        + _render_scale("bad", "0", f"{HEAT_SETTINGS.max_residual:.0f} levels and more"),
    }
    figures = ""
    for name, caption in captions.items():
        figures += _render_figure(pictures[name], f"{name} of layer {facts.name}", caption, True)
    main = _render_figure(
        heat_maps.draw_canonical(view.image),
        f"canonical image of layer {facts.name}",
        "<b>Canonical image</b>; checkered where no frame shows it.",
        True,
    )

    # The layer's numbers in one line.
    drift = facts.drift
    words = [
        f"{facts.pixel_share:.1%} of all pixels",
        f"PSNR {_format_decibel(facts.psnr)} where it is seen",
        f"as large as {facts.area_in_frames:.1f} frames",
    ]
    if drift is not None and drift.far is not None and drift.next_frame is not None and drift.steady is not None:
        words.append(
            f"points against flow: {drift.next_frame:.2f} pixels after one frame, {drift.far:.2f} after {drift.span} "
            f"(medians), {drift.steady:.0%} stay put"
        )
    about = "; ".join(words) + "."
    return (
        f"<h2>Layer {escape(facts.name)}</h2><p class='soft'>{escape(about)}</p><div class='main'>{main}</div>"
        f'<div class="maps">{figures}</div>'
    )


# --- the run ---------------------------------------------------------------------------------------------------------


def _render_next_steps(report: Report) -> str:
    """Renders commands to go on with."""
    run = report.run.path
    layer = report.layers[0].measurements.name if report.layers else "background"
    lines = [
        shlex.join(["unwrap", "edit", str(run), "PAINTED.png", "--layer", layer]),
        shlex.join(["unwrap", "render", str(run)]),
        shlex.join(["unwrap", "render", str(run), "--what", "compare"]),
    ]
    return (
        "<h2>How to go on</h2>"
        f"<p>Paint on a picture in {escape(str(report.run.canonical))}, then put it on the video:</p>"
        f"{_render_commands(lines[:2])}"
        f"<p>Source and model side by side:</p>{_render_commands(lines[2:])}"
    )


def _render_run_details(report: Report) -> str:
    """Renders a table of the run and all its settings."""
    record, cost, machine = report.record, report.cost, collect_environment()
    frames = record.frames
    machine_facts = ("unwrap", "platform", "cores", "device", "torch", "numpy", "opencv-python-headless", "hash grid")
    rows = [
        ("video", str(record.video)),
        ("frames", f"{frames.start}:{frames.stop}:{frames.step} ({len(frames)})"),
        ("size of the run", f"{record.size[0]}x{record.size[1]}"),
        ("preset, quality", f"{record.preset}, {record.quality}"),
        ("masks", ", ".join(record.masks) or "none"),
        ("flow", record.flow),
        ("steps", str(cost.steps)),
        ("time", "-" if cost.train_seconds is None else f"{cost.train_seconds:.1f} s in all"),
        ("memory", "-" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB at most"),
        *((name, machine[name]) for name in machine_facts if name in machine),
    ]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    settings = escape(report.run.run_yaml.read_text(encoding="utf-8"))
    return (
        f'<h2>The run</h2><div class="table"><table>{cells}</table></div>'
        f"<details><summary>All settings (run.yaml)</summary><pre>{settings}</pre></details>"
    )


def _render_method(report: Report) -> str:
    """Renders an explanation of how the figures are measured."""
    paragraphs = (
        "PSNR: 8-bit reconstruction against the frames at the size of the run. A pixel belongs to a layer that has at "
        "least half of its weight.",
        "Stretch: with s1 and s2 the singular values of the Jacobian of the map from frame to canonical image, and m "
        "the square root of the median area change in that frame, max(s1/m, m/s2): zoom as a whole is no stretch. "
        "Fold-over: the Jacobian's determinant has the other sign than most of the layer. Residual: root mean square "
        "color error of the pixels that show a place.",
        "Points stay put: points move along the optical flow where it agrees with itself forward and backward; "
        "measured is how far apart the flow and the canonical image have them, and the share that is within "
        f"{DRIFT_SETTINGS.max_gap_share:.0%} of the frame's longer side, at least {DRIFT_SETTINGS.flow_error_px:g} "
        "pixels. The flow errs too, above all on water, in blur and on flat things.",
        f"{len(report.measurements.surveyed_frames)} frames were looked at, {report.heat_frames} of them for "
        "stretch, fold-over and residual. The limits of the verdict are the settings in "
        "neural_fields/evaluation/report/verdict.py.",
    )
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return f"<details><summary>How this is measured</summary>{text}</details>"


# --- pieces ---------------------------------------------------------------------------------------------------------


def _render_image(picture: Picture, alt: str) -> str:
    """Renders a picture as a data URI."""
    data = base64.b64encode(heat_maps.encode_jpeg(picture)).decode()
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img {size} style="height:auto" alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def _render_figure(picture: Picture, alt: str, caption: str, is_html: bool = False) -> str:
    """Renders a picture with its caption; a caption with tags in it says so."""
    text = caption if is_html else escape(caption)
    return f"<figure>{_render_image(picture, alt)}<figcaption>{text}</figcaption></figure>"


def _render_scale(name: str, low: str, high: str) -> str:
    """Renders the colors of a scale with a text at each end."""
    stops = heat_maps.color_scale(name)[:: 255 // 15]
    colors = ",".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    return (
        f'<div class="scale" style="background:linear-gradient(90deg,{colors})"></div>'
        f'<div class="ends"><span>{escape(low)}</span><span>{escape(high)}</span></div>'
    )


def _format_decibel(value: float | None) -> str:
    """Formats a PSNR, which may be infinite or unknown."""
    if value is None:
        return "unknown"
    return f"{value:.2f} dB" if math.isfinite(value) else "exact"
