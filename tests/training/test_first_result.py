"""Pictures to paint on before the end of a training: edits can be added, and stay where they were put."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editors.api import edit
from editors.demo import make_clip_metadata
from neural_fields.atlas.canonical import CanonicalImage, CanonicalSidecar, read_sidecar
from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import write_video
from neural_fields.edits.payloads import read_paint
from neural_fields.imaging.alpha import erode_alpha
from neural_fields.open_runs.opening import require_planar
from neural_fields.training.estimate import DEFAULTS
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train


def test_what_is_painted_on_the_first_pictures_stays_in_place_to_the_end(tmp_path: Path) -> None:
    clip = make_demo_clip(8, 160, 90)
    write_video(tmp_path / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(tmp_path / "mask.npy", clip.masks[0])
    options = TrainOptions(
        tmp_path / "run", size="160x90", masks=(f"turtle={tmp_path / 'mask.npy'}",), quality="normal"
    )
    points: dict[str, np.ndarray] = {}
    places: list[dict[str, np.ndarray]] = []
    heard: list[str] = []

    def find_places() -> dict[str, np.ndarray]:
        run = require_planar(tmp_path / "run", "the test")
        found = {}
        for layer in run.layers:
            if layer not in points:  # on the plane, where the middle frame has pixels of the layer
                xy = np.stack(np.meshgrid(np.arange(8.5, 160, 12), np.arange(8.5, 90, 12)), -1).reshape(-1, 2)
                seen = run.frame_to_canonical(layer, 4, xy)
                points[layer] = seen.uv[seen.weight > 0.9]
            frames = [run.canonical_to_frame(layer, t, points[layer]) for t in range(8)]
            found[layer] = np.stack([at.pixels for at in frames])
        return found

    def paint(progress: Progress) -> None:
        if "you can paint now" not in progress.note:
            return
        heard.append(progress.note)
        places.append(find_places())
        if len(heard) > 1:
            return
        path = tmp_path / "run" / "canonical" / "turtle.png"
        picture = np.asarray(Image.open(path)).copy()
        rows, columns = (slice(side // 2 - 4, side // 2 + 4) for side in picture.shape[:2])
        picture[rows, columns] = (255, 0, 255, 255)
        Image.fromarray(picture).save(tmp_path / "painted.png")
        edit(tmp_path / "run", tmp_path / "painted.png", layer="turtle")
        with pytest.raises(UserError, match="in use"):
            train(tmp_path / "clip.mkv", options)

    result = train(tmp_path / "clip.mkv", options, paint, replace(DEFAULTS, min_rest_s=0.0, min_long_rest_s=0.0))
    assert len(heard) == 2 and str(tmp_path / "run" / "canonical" / "turtle.png") in heard[0]
    run = require_planar(result.run, "the test")
    assert [one.name for one in run.edits] and json.loads((result.run.maps / "maps.json").read_text())[
        "step"
    ] == result.step
    places.append(find_places())
    for layer in run.layers:
        for early in places[:-1]:
            moved = np.nanmean(places[-1][layer] - early[layer], axis=0)
            assert np.linalg.norm(moved, axis=1).max() < 0.3, layer


def test_what_is_painted_on_pictures_of_the_first_frames_lies_there_to_the_end(tmp_path: Path) -> None:
    clip = make_demo_clip(40, 96, 54)
    write_video(tmp_path / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(tmp_path / "mask.npy", clip.masks[0])
    options = TrainOptions(tmp_path / "run", masks=(f"turtle={tmp_path / 'mask.npy'}",), quality="draft")
    early: list[tuple[np.ndarray, CanonicalSidecar]] = []

    def look(progress: Progress) -> None:
        if "a first picture to paint on" in progress.note:
            canonical = tmp_path / "run" / "canonical"
            early.append((np.asarray(Image.open(canonical / "turtle.png")), read_sidecar(canonical, "turtle")))
            with pytest.raises(UserError):  # a plain refusal: maps are not there yet
                edit(tmp_path / "run", canonical / "turtle.png", layer="turtle")

    train(tmp_path / "clip.mkv", options, look, replace(DEFAULTS, min_wait_s=0.0))
    ((picture, sidecar),) = early
    painted, run = picture.copy(), require_planar(tmp_path / "run", "the test")
    rows, columns = np.nonzero(erode_alpha((picture[..., 3] == 255).astype(np.float32), 6) > 0)
    row, column = int(np.median(rows)), int(np.median(columns))
    mark = np.s_[row - 2 : row + 3, column - 2 : column + 3]
    painted[mark] = (255, 0, 255, 255)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    added = edit(tmp_path / "run", tmp_path / "painted.png", layer="turtle")

    # Both pictures show the same at the same place of the plane, and the mark lies where it was painted.
    def find_uv(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        (height, width), box = picture.shape[:2], sidecar.box
        u, v = box.u0 + (columns + 0.5) / width * box.width, box.v0 + (rows + 0.5) / height * box.height
        return np.stack([u, v], -1).astype(np.float32)

    now = run.canonicals["turtle"].sample_rgba(find_uv(rows, columns))
    shown = now[:, 3] > 0.99
    gap = now[shown, :3] - picture[rows, columns, :3][shown] / 255
    assert shown.mean() > 0.9 and -10 * np.log10(np.square(gap).mean()) > 28
    overlay = read_paint(added.edit, "turtle")
    points = find_uv(np.array([row, row]), np.array([column, column + 6]))
    marked = CanonicalImage(overlay.rgba, overlay.box, "turtle").sample_rgba(points)
    assert marked[0, 3] > 0.99 and marked[1, 3] < 0.01
