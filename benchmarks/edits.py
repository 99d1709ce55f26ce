"""Measures edits that need no model, and files for other programs, on a trained synthetic clip with known truth.

    python benchmarks/edits.py [--frames 24] [--size 320 180] [--quality draft] [--json FILE]

The demo's clip is fitted once with its true masks. Each row is measured over all frames: a logo placed on the object
and on the background in one frame, compared with the clip rendered with the logo on the surface (least PSNR of a
frame); the adjusted background, compared with the adjusted clip; the removed object, compared with the clip without it
where some frame shows what is behind it; a dragged point, compared with the true motion of its surface; a forward
STMap, read back from its EXR file and converted to uv by the formula of its README, compared with the baked maps in
pixels of the canonical picture; pixels painted into an .ora and a .psd document, compared with what is read back.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import ROOT, finish, parser, table

sys.path.insert(0, str(ROOT))

from PIL import Image, ImageDraw

from editors.api import edit
from editors.core.history import undo
from editors.demo import make_clip_metadata
from editors.effects.adjust import Adjust
from editors.effects.drag import Drag
from editors.effects.place import Place
from editors.effects.remove import Remove
from editors.inputs.document import read_document_overlays
from neural_fields.atlas import canonical
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip, make_demo_clip
from neural_fields.data.video.io import write_video
from neural_fields.export.base import export_run
from neural_fields.export.maps.stmap import STMapExporter
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.imaging.color_grading import apply_grade
from neural_fields.imaging.documents.layered import PAINT, DocumentLayer, place_on_canvas
from neural_fields.imaging.documents.openraster import read_ora, write_ora
from neural_fields.imaging.documents.psd import read_psd, write_psd
from neural_fields.imaging.exr import read_exr
from neural_fields.imaging.grade import Grade
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.run import Run
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train


def row(
    what: str, worst: float | np.floating, mean: float | np.floating, unit: str, asked: float | None
) -> dict[str, Any]:
    """Makes a row of the table.

    Args:
        what: the edit or file that was measured.
        worst: the figure of the worst frame.
        mean: the mean over the frames.
        unit: the unit of both.
        asked: the target, or None.
    """
    return {"what": what, "worst": float(worst), "mean": float(mean), "unit": unit, "asked": asked}


def psnr(shown: np.ndarray, truth: np.ndarray) -> float:
    """Computes the PSNR of 8-bit colors in dB, at most 120."""
    return float(-10 * np.log10(max(1e-12, (((shown.astype(float) - truth) / 255) ** 2).mean())))


def middle_of(box: Box) -> tuple[float, float]:
    """Returns the middle of a box in uv units."""
    return (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2


def fitted(home: Path, clip: SyntheticClip, quality: Any) -> Run:
    """Trains a run of a clip with its true masks.

    Args:
        home: folder for the video, the mask and the run.
        clip: the clip; its front layer is called "foreground".
        quality: "draft", "normal" or "final".
    """
    write_video(home / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    options = TrainOptions(home / "run", quality=quality, size="source", masks=(f"foreground={home / 'mask.npy'}",))
    return train(home / "clip.mkv", options).run


def frames_with(run: Run, clip: SyntheticClip) -> list[np.ndarray]:
    """Renders all frames with the active edits, and undoes the last edit."""
    changer = open_passes(require_planar(run, "the benchmark"))
    shown = [changer.render_frame(t, clip.frames[t]) for t in range(clip.count)]
    undo(run)
    return shown


def logo(home: Path) -> Path:
    """Writes a picture with letters, an edge and transparent corners, and returns its path."""
    picture = Image.new("RGBA", (240, 120))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((4, 4, 235, 115), 30, fill=(200, 40, 50, 255), outline=(250, 240, 220, 255), width=8)
    pen.text((60, 25), "Logo", font_size=60, fill=(250, 240, 220, 255))
    picture.save(home / "logo.png")
    return home / "logo.png"


def placing(run: Run, clip: SyntheticClip, home: Path, layer: int, at: tuple[float, float], t: int) -> dict[str, Any]:
    """Places a logo, 0.2 of the frame's width wide, and compares the frames with the true ones.

    Args:
        run: a run of the clip.
        clip: the clip with its truth.
        home: folder for the logo.
        layer: index of the layer that gets the logo.
        at: middle of the logo in frame `t`, (x, y) in pixels.
        t: number of the frame in which the logo is placed.

    Returns:
        The row with the PSNR.
    """
    path, name = logo(home), clip.layer_names[layer]
    width = 0.2 * clip.width
    height = width / 2
    edit(
        run,
        editor=Place(image=path, box=f"{at[0] - width / 2},{at[1] - height / 2},{width},{height}", frame=t),
        layers=(name,),
    )
    low, high = (
        coords.normalize_pixels(torch.tensor([at[0] + s * width / 2, at[1] + s * height / 2]), clip.width, clip.height)
        for s in (-1, 1)
    )
    box = Box(*(float(v) for v in (*low, *high)))
    truth = clip.render_edited([PaintedMark(np.asarray(Image.open(path)), box, name, t)])
    values = [psnr(a, b) for a, b in zip(frames_with(run, clip), truth, strict=True)]
    return row(f"logo on the {name}", min(values), np.mean(values), "dB", 32)


def adjusting(run: Run, clip: SyntheticClip) -> dict[str, Any]:
    """Changes exposure and saturation of the background, and measures the PSNR against the adjusted clip."""
    edit(run, editor=Adjust(exposure=-0.7, saturation=0.3), layers=("background",))
    grade = Grade(exposure=-0.7, saturation=0.3)
    values = []
    for t, shown in enumerate(frames_with(run, clip)):
        front, frame = clip.alpha[0, t][..., None], clip.frames[t].astype(np.float32)
        alone = (front < 1e-3)[..., 0]  # where the true answer is known without un-mixing
        values.append(psnr(shown[alone], 255 * apply_grade(grade, frame[alone] / 255)))
    return row("background adjusted", min(values), np.mean(values), "dB", None)


def removing(run: Run, clip: SyntheticClip) -> dict[str, Any]:
    """Removes the object, and measures the PSNR against the clip without it where some frame shows what is behind."""
    edit(run, editor=Remove())
    empty = dataclasses.replace(clip, surfaces=clip.surfaces[1:]).frames
    picture = canonical.read_pristine(run.canonical, "background")
    maps, values = Maps.open(run.maps), []
    for t, shown in enumerate(frames_with(run, clip)):
        uv = maps.read_uv(t, 1, (clip.width, clip.height))
        known = (picture.sample_rgba(uv)[..., 3] > 0.99) & (clip.alpha[0, t] > 0)
        values.append(psnr(shown[known], empty[t][known]))
    return row("object removed", min(values), np.mean(values), "dB", None)


def dragging(run: Run, clip: SyntheticClip, t: int) -> dict[str, Any]:
    """Drags a point of the object by 4 % of the frame's width, and measures where it ends in all frames.

    Args:
        run: a run of the clip.
        clip: the clip with its truth.
        t: number of the frame in which the point is dragged.

    Returns:
        The row with the errors in pixels.
    """
    start = clip.compute_mark_positions(0, middle_of(clip.boxes[0]))
    end = start[t] + np.array([0.04 * clip.width, -0.01 * clip.width])
    edit(run, editor=Drag(drag=(f"{start[t][0]},{start[t][1]}>{end[0]},{end[1]}",), frame=t))
    changer = open_passes(require_planar(run, "the benchmark"))
    assert isinstance(changer, WarpPass)
    there = clip.surfaces[0].uv_at(t, coords.normalize_pixels(torch.tensor(end)[None], clip.width, clip.height))
    wanted = clip.compute_mark_positions(0, there[0].tolist())
    errors = [
        float(np.linalg.norm(_came_from(changer, k, start[k], (clip.width, clip.height)) - wanted[k]))
        for k in range(clip.count)
    ]
    undo(run)
    return row("drag, end point", max(errors), np.mean(errors), "px", 1.5)


def _came_from(changer: WarpPass, t: int, place: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Finds the position in the changed frame `t` of the pixel that was at `place` before."""
    places = changer.source_positions(t, 0, size)
    row, column = np.unravel_index(((places - place) ** 2).sum(-1).argmin(), places.shape[:2])
    here = places[row - 1 : row + 2, column - 1 : column + 2]
    jacobian = np.stack([(here[1, 2] - here[1, 0]) / 2, (here[2, 1] - here[0, 1]) / 2], axis=1)
    return np.array([column + 0.5, row + 0.5]) + np.linalg.solve(jacobian, place - here[1, 1])


def mapping(run: Run, home: Path) -> dict[str, Any]:
    """Exports forward STMaps, reads them back and compares them with the baked maps."""
    maps = Maps.open(run.maps)
    export_run(run, STMapExporter(direction="forward"), ExportOptions(out=home / "stmap"))
    errors = []
    for number, name in enumerate(maps.layers):
        picture = canonical.read_pristine(run.canonical, name)
        (width, height), box = picture.size, picture.box
        for t, path in enumerate(sorted((home / "stmap" / "forward").glob(f"{name}.*.exr"))):
            planes, _ = read_exr(path)
            x, y = planes["R"] * width, (1 - planes["G"]) * height
            uv = maps.read_uv(t, number, maps.size)
            shown = maps.read_layer_weight(t, number, maps.size) > 0
            true_x, true_y = (uv[..., 0] - box.u0) / box.width * width, (uv[..., 1] - box.v0) / box.height * height
            errors.append(np.hypot(x - true_x, y - true_y)[shown].max())
    return row("STMap, read back", max(errors), np.mean(errors), "px", 0.02)


def documents(run: Run, home: Path) -> list[dict[str, Any]]:
    """Paints random pixels into documents, as a paint program would, and reads them back."""
    rows = []
    kinds: tuple[tuple[Literal["ora", "psd"], Any, Any], ...]
    kinds = (("ora", write_ora, read_ora), ("psd", write_psd, read_psd))
    for suffix, write_file, read_file in kinds:
        export_run(run, CanonicalExporter(layer=("foreground",), format=suffix), ExportOptions(out=home / suffix))
        path = home / suffix / f"foreground.{suffix}"
        document = read_file(path, 64_000_000)
        width, height = document.size
        paint = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
        layers = tuple(_painted(layer, paint) if layer.name.startswith(PAINT) else layer for layer in document.layers)
        write_file(path, dataclasses.replace(document, layers=layers))
        found = read_document_overlays(require_planar(run, "the benchmark"), path)["foreground"].rgba
        wrong = np.abs(np.rint(found * 255) - paint)[paint[..., 3] > 0].max()
        rows.append(row(f"painted .{suffix}, read back", wrong, wrong, "levels", 0))
    return rows


def _painted(layer: DocumentLayer, paint: np.ndarray) -> DocumentLayer:
    rgba = paint.astype(np.float32) / 255
    assert place_on_canvas(layer, (paint.shape[1], paint.shape[0])).shape == rgba.shape
    return dataclasses.replace(layer, pixels=lambda: rgba)


def main() -> None:
    """Prints the table and one line of JSON."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--frames", type=int, default=24)
    arguments.add_argument("--size", type=int, nargs=2, default=(320, 180))
    arguments.add_argument("--quality", default="draft")
    chosen: argparse.Namespace = arguments.parse_args()
    clip = make_demo_clip(chosen.frames, *chosen.size)
    middle = clip.compute_mark_positions(
        0, [(clip.boxes[0].u0 + clip.boxes[0].u1) / 2, (clip.boxes[0].v0 + clip.boxes[0].v1) / 2]
    )
    with tempfile.TemporaryDirectory() as folder:
        home, t = Path(folder), chosen.frames // 3
        run = fitted(home, clip, chosen.quality)
        rows = [
            placing(run, clip, home, 0, (float(middle[t][0]), float(middle[t][1])), t),
            placing(run, clip, home, 1, (0.8 * clip.width, 0.75 * clip.height), t),
            adjusting(run, clip),
            removing(run, clip),
            dragging(run, clip, t),
            mapping(run, home),
            *documents(run, home),
        ]
    print(*table(["what", "worst", "mean", "unit", "asked"], rows), sep="\n")
    finish(rows, chosen.json, frames=chosen.frames, size=list(chosen.size), quality=chosen.quality)


if __name__ == "__main__":
    main()
