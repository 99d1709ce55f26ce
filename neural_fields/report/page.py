"""The report as one HTML page: pictures as data URIs, no script, nothing loaded from anywhere.

Text that comes from outside (paths, names of layers, sentences with them) goes through `html.escape`.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from statistics import median

import numpy as np
from jaxtyping import UInt8

from neural_fields.doctor import examine
from neural_fields.report import heat
from neural_fields.report.collect import LayerView, Report
from neural_fields.report.steadiness import FLOW_ERROR, STEADY
from neural_fields.report.style import STYLE
from neural_fields.report.verdict import (
    FALL_DB,
    RISK_FOLD,
    RISK_FRAMES,
    RISK_RESIDUAL,
    RISK_STRETCH,
    STRETCHED,
    Reason,
    mean_psnr,
)

MOST_BARS = 400  # of the quality strip; longer clips share a bar, which shows the worst of its frames
MACHINE = ("unwrap", "platform", "cores", "device", "torch", "numpy", "opencv-python-headless", "hash grid")

Picture = UInt8[np.ndarray, "height width 3"]


def page(report: Report) -> str:
    """The whole page."""
    title = f"{report.run.path.name}: report"
    parts = [
        _head(report),
        _verdict(report),
        _figures(report),
        _strip(report),
        _worst(report),
        *(_layer(report, view) for view in report.layers),
        _next_steps(report),
        _facts(report),
        _how(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    record = report.record
    frames = record.frames
    count = f"{len(frames)} frame{'s' * (len(frames) != 1)}"
    name = "/".join(record.video.parts[-2:]) if record.video.is_dir() else record.video.name
    about = f"{count}, {record.size[0]}x{record.size[1]}, preset {record.preset}, quality {record.quality}"
    return f"<h1>{escape(report.run.path.name)} <small>{escape(name)}: {escape(about)}</small></h1>"


def _verdict(report: Report) -> str:
    verdict = report.verdict
    reasons = "".join(_reason(reason) for reason in verdict.reasons)
    return (
        f'<section class="verdict {verdict.level}"><strong>{escape(verdict.title)}</strong>'
        f'<ul class="reasons">{reasons}</ul></section>'
    )


def _reason(reason: Reason) -> str:
    advice = f"<br>{escape(reason.advice)}" if reason.advice else ""
    return f'<li class="{reason.level}">{escape(reason.text)}{advice}{_commands(reason.commands)}</li>'


def _commands(lines: Iterable[str]) -> str:
    return "".join(f"<pre>{escape(line)}</pre>" for line in lines)


def _figures(report: Report) -> str:
    psnr, cost = report.facts.psnr, report.cost
    drifts = [view.facts.drift for view in report.layers if view.facts.drift and view.facts.drift.steady is not None]
    steady = f"{min(drift.steady for drift in drifts if drift.steady is not None):.0%}" if drifts else "-"
    seconds = "-" if cost.train_seconds is None else _clock(cost.train_seconds)
    memory = "-" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB"
    boxes = [
        (f"{mean_psnr(psnr):.2f} dB", "mean PSNR"),
        (_decibel(min(psnr)), "worst frame"),
        (steady, "of the points stay put (worst layer)" if drifts else "points stay put: not measured"),
        (f"{min((view.facts.green for view in report.layers), default=0):.0%}", "safe to paint on (worst layer)"),
        (seconds, f"for the fit, {cost.steps} steps"),
        (memory, "memory at most"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in boxes)
    return f'<div class="figures">{cells}</div>'


# --- quality --------------------------------------------------------------------------------------------------------


def _strip(report: Report) -> str:
    """Bars of the PSNR of each frame, with thumbnails below."""
    psnr, frames = report.facts.psnr, report.facts.looked_at
    bars = _bars(frames, psnr)
    values = [value for value in psnr if math.isfinite(value)] or [0.0]
    low, high = math.floor(min(values)) - 2, math.ceil(max(values)) + 1
    usual = median(psnr)

    def height(value: float) -> float:
        return 100 * (min(value, high) - low) / (high - low)

    drawn = []
    for place, (first, last, value) in enumerate(bars):
        kind = "bar worst" if value == min(psnr) else "bar low" if value < usual - FALL_DB / 2 else "bar"
        name = f"frame {first}" if first == last else f"frames {first} to {last}"
        drawn.append(
            f'<rect class="{kind}" x="{place + 0.06:.2f}" y="{100 - height(value):.2f}" width="0.88" '
            f'height="{height(value):.2f}"><title>{name}: {_decibel(value)}</title></rect>'
        )
    marks = [float(mark) for mark in range(low, high + 1, max(1, (high - low) // 4))]
    lines = "".join(
        f'<line class="grid" x1="0" x2="{len(bars)}" y1="{100 - height(m)}" y2="{100 - height(m)}"/>' for m in marks
    )
    labels = "".join(f'<span class="axis" style="top:{100 - height(m):.1f}%">{m:.0f} dB</span>' for m in marks)
    thumbs = "".join(
        f'<span class="axis">{_image(picture, f"frame {report.frame(t)}")}{report.frame(t)}</span>'
        for t, picture in report.thumbnails
    )
    total = len(report.record.frames)
    some = (
        ""
        if len(frames) == total
        else f" {len(frames)} of {total} frames were looked at; unwrap eval --html looks at all."
    )
    return (
        "<h2>Quality of each frame</h2>"
        f'<p class="soft">PSNR of the model against the video. The axis does not start at zero. Red: the worst frame; '
        f"amber: more than {FALL_DB / 2:.0f} dB below the median.{some}</p>"
        f'<div class="strip"><div><div class="plot">{labels}<svg viewBox="0 0 {len(bars)} 100" '
        f'preserveAspectRatio="none" role="img" aria-label="PSNR of each frame">{lines}{"".join(drawn)}</svg></div>'
        f'<div class="thumbs">{thumbs}</div></div></div>'
    )


def _bars(frames: Sequence[int], psnr: Sequence[float]) -> list[tuple[int, int, float]]:
    """(first frame, last frame, worst PSNR) of each bar."""
    share = -(-len(frames) // MOST_BARS)
    groups = [slice(i, i + share) for i in range(0, len(frames), share)]
    return [(frames[group][0], frames[group][-1], min(psnr[group])) for group in groups]


def _worst(report: Report) -> str:
    rows = []
    for shown in report.worst:
        number = report.frame(shown.t)
        rows.append(
            f"<h3>Frame {number}: {_decibel(shown.psnr)}</h3>"
            '<div class="three">'
            f"{_figure(shown.source, f'source, frame {number}', 'source')}"
            f"{_figure(shown.shown, f'reconstruction of frame {number}', 'reconstruction')}"
            f"{_figure(heat.error_picture(shown.error), f'error of frame {number}', 'difference')}</div>"
        )
    scale = _scale("bad", "0", f"{heat.MOST_RESIDUAL:.0f} levels of 255 and more")
    return (
        "<h2>Where it fits worst</h2>"
        '<p class="soft">The worst frames, each from another part of the clip.</p>'
        + "".join(rows)
        + f"<div>{scale}</div>"
    )


# --- layers ---------------------------------------------------------------------------------------------------------


def _layer(report: Report, view: LayerView) -> str:
    """The canonical image of a layer with what is known of each place."""
    facts = view.facts
    if facts.pixel_share == 0:
        return f"<h2>Layer {escape(facts.name)}</h2><p>No frame shows this layer.</p>"
    count = len(report.record.frames)
    pictures = heat.heat_pictures(view.image, view.maps, count)
    reds, ambers = (tuple(pair[i] for pair in (RISK_FOLD, RISK_STRETCH, RISK_RESIDUAL)) for i in (1, 0))
    legend = "".join(
        f'<span class="swatch" style="{style}"></span>{name} {share:.0%}'
        for style, name, share in zip(
            _risk_swatches(), ("safe", "care", "risk"), (facts.green, facts.yellow, facts.red), strict=True
        )
    )
    captions = {
        "risk": f"<b>Edit risk</b>{legend}. Red where it folds in {reds[0]:.0%} of the frames, is stretched "
        f"{reds[1]:g}-fold or wrong by {reds[2]:.0f} levels; amber from {ambers[0]:.0%}, {ambers[1]:g}-fold, "
        f"{ambers[2]:.0f} levels, or where fewer than {RISK_FRAMES} frames show it.",
        "coverage": f"<b>Coverage</b>: frames that show a place; {facts.frames_a_place:.0f} of {count} (median). "
        f"{facts.seen:.0%} of the picture is seen at all." + _scale("seen", "0", f"all {count} frames"),
        "stretch": f"<b>Stretch</b>: beyond {STRETCHED:g}-fold in {_share(facts.stretched)} of what is seen."
        + _scale("bad", "1: none", f"{heat.MOST_STRETCH:g}-fold and more"),
        "fold": f"<b>Fold-over</b>: {_share(facts.folded, 2)} of what is seen."
        + _scale("bad", "never", f"{heat.MOST_FOLD:.0%} of the time and more"),
        "residual": f"<b>Residual</b>: colour error; {_number(view.residual)} of 255 levels (median)."
        + _scale("bad", "0", f"{heat.MOST_RESIDUAL:.0f} levels and more"),
    }
    figures = "".join(
        _figure(pictures[name], f"{name} of layer {facts.name}", caption, True) for name, caption in captions.items()
    )
    main = _figure(
        heat.canonical_picture(view.image),
        f"canonical image of layer {facts.name}",
        "<b>Canonical image</b>; checkered where no frame shows it.",
        True,
    )
    return (
        f"<h2>Layer {escape(facts.name)}</h2><p class='soft'>{escape(_about(view))}</p><div class='main'>{main}</div>"
        f'<div class="maps">{figures}</div>'
    )


def _about(view: LayerView) -> str:
    """A layer's numbers in one line."""
    facts, drift = view.facts, view.facts.drift
    words = [
        f"{facts.pixel_share:.1%} of all pixels",
        f"PSNR {_decibel(facts.psnr)} where it is seen",
        f"as large as {facts.pictures:.1f} frames",
    ]
    if drift is not None and drift.far is not None and drift.next_frame is not None and drift.steady is not None:
        words.append(
            f"points against flow: {drift.next_frame:.2f} pixels after one frame, {drift.far:.2f} after {drift.span} "
            f"(medians), {drift.steady:.0%} stay put"
        )
    return "; ".join(words) + "."


def _risk_swatches() -> list[str]:
    plain = [f"rgb({red},{green},{blue})" for red, green, blue in heat.RISK_COLOURS]
    dark = "rgb({},{},{})".format(*(value // 2 for value in heat.RISK_COLOURS[2]))
    striped = f"repeating-linear-gradient(135deg,{plain[2]} 0 3px,{dark} 3px 6px)"
    return [f"background:{plain[0]}", f"background:{plain[1]}", f"background:{striped}"]


# --- facts ----------------------------------------------------------------------------------------------------------


def _next_steps(report: Report) -> str:
    run = report.run.path
    layer = report.layers[0].facts.name if report.layers else "background"
    lines = [
        shlex.join(["unwrap", "edit", str(run), "PAINTED.png", "--layer", layer]),
        shlex.join(["unwrap", "render", str(run)]),
        shlex.join(["unwrap", "render", str(run), "--what", "compare"]),
    ]
    return (
        "<h2>How to go on</h2>"
        f"<p>Paint on a picture in {escape(str(report.run.canonical))}, then put it on the video:</p>"
        f"{_commands(lines[:2])}"
        f"<p>Source and model side by side:</p>{_commands(lines[2:])}"
    )


def _facts(report: Report) -> str:
    record, cost, machine = report.record, report.cost, examine()
    frames = record.frames
    rows = [
        ("video", str(record.video)),
        ("frames", f"{frames.start}:{frames.stop}:{frames.step} ({len(frames)})"),
        ("size of the fit", f"{record.size[0]}x{record.size[1]}"),
        ("preset, quality", f"{record.preset}, {record.quality}"),
        ("masks", ", ".join(record.masks) or "none"),
        ("flow", record.flow),
        ("steps", str(cost.steps)),
        ("time", "-" if cost.train_seconds is None else f"{cost.train_seconds:.1f} s in all"),
        ("memory", "-" if cost.peak_mib is None else f"{cost.peak_mib:.0f} MiB at most"),
        *((name, machine[name]) for name in MACHINE if name in machine),
    ]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    settings = escape(report.run.run_yaml.read_text(encoding="utf-8"))
    return (
        f'<h2>The fit</h2><div class="table"><table>{cells}</table></div>'
        f"<details><summary>All settings (run.yaml)</summary><pre>{settings}</pre></details>"
    )


def _how(report: Report) -> str:
    paragraphs = (
        "PSNR: 8-bit reconstruction against the frames at the size of the fit. A pixel belongs to a layer that has at "
        "least half of its weight.",
        "Stretch: with s1 and s2 the singular values of the Jacobian of the map from frame to canonical image, and m "
        "the square root of the median area change in that frame, max(s1/m, m/s2): zoom as a whole is no stretch. "
        "Fold-over: the Jacobian's determinant has the other sign than most of the layer. Residual: root mean square "
        "colour error of the pixels that show a place.",
        "Points stay put: points are carried along the optical flow where it agrees with itself forward and backward; "
        "measured is how far apart the flow and the canonical image have them, and the share that is within "
        f"{STEADY:.0%} of the frame's longer side, at least {FLOW_ERROR:g} pixels. The flow errs too, above all on "
        "water, in blur and on flat things.",
        f"{len(report.facts.looked_at)} frames were looked at, {report.heat_frames} of them for stretch, fold-over and "
        "residual. The limits of the verdict are the constants of neural_fields/report/verdict.py.",
    )
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return f"<details><summary>How this is measured</summary>{text}</details>"


# --- pieces ---------------------------------------------------------------------------------------------------------


def _image(picture: Picture, alt: str) -> str:
    data = base64.b64encode(heat.jpeg(picture)).decode()
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img {size} style="height:auto" alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def _figure(picture: Picture, alt: str, caption: str, is_html: bool = False) -> str:
    """A picture with its caption; a caption with tags in it says so."""
    return f"<figure>{_image(picture, alt)}<figcaption>{caption if is_html else escape(caption)}</figcaption></figure>"


def _scale(name: str, low: str, high: str) -> str:
    stops = heat.palette(name)[:: 255 // 15]
    colours = ",".join("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops)
    return (
        f'<div class="scale" style="background:linear-gradient(90deg,{colours})"></div>'
        f'<div class="ends"><span>{escape(low)}</span><span>{escape(high)}</span></div>'
    )


def _decibel(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.2f} dB" if math.isfinite(value) else "exact"


def _share(value: float | None, digits: int = 1) -> str:
    return "an unknown part" if value is None else f"{value:.{digits}%}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60}:{whole % 60:02d} min"
