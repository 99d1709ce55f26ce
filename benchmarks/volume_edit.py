"""Measures edits of a 3D scene: a prompt must recolor the person from all sides, and must not change anything else.

    python benchmarks/volume_edit.py [--prompts red green blue] [--steps 200]
                                     [--features FILE] [--folder DIR] [--json FILE]

A synthetic scene (24 views of 96x72) is trained with `unwrap train --quality draft` and edited with `unwrap edit RUN
--editor dynvideo_e` by the toy model. From eight sides, each at another moment, the share of the person's pixels that
have the hue of the prompt's first word within 30 degrees is measured, before and after; asked: 0.90 in every view. The
background's pictures before and after are compared bit by bit. `remove` is measured against the true empty room, and
`volume_style` (with --features, the weights of a network) by what it changes: the background and not the
person. --folder keeps pictures.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Row, finish, parser, print_row, unwrap
from PIL import Image

from editors.volume.body_parts import body_outline
from editors.volume.views import Orbit, estimate_up_direction, make_single_moment
from examples.toy_diffusion.pictures import HUES, hue_share
from neural_fields.data.capture.capture_folder import write_capture
from neural_fields.data.synthetic.scene import SyntheticScene, make_walking_scene
from neural_fields.evaluation import metrics
from neural_fields.open_runs.opening import require_scene
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.volume.rays import camera_rays
from neural_fields.volume.record import VolumeRecord
from neural_fields.volume.scene import BACKGROUND, Scene

SIDES = 8
VIEWS, SIZE = 24, (96, 72)


def main() -> int:
    """Prints a line a figure and writes JSON."""
    options = parser(__doc__)
    options.add_argument("--prompts", nargs="+", default=["red", "green", "blue"])
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--features", type=Path, help="weights of VGG-16, SqueezeNet 1.1 or AlexNet")
    options.add_argument("--folder", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = chosen.folder or Path(made)
        rows = measure(chosen, folder)
    for row in rows:
        print_row(row)
    finish([vars(row) for row in rows], chosen.json, steps=chosen.steps)
    return 0


def measure(chosen: argparse.Namespace, folder: Path) -> list[Row]:
    """Trains a scene, edits it and measures the edits."""
    truth = make_walking_scene(count=VIEWS, size=SIZE, switches=(VIEWS // 2,))
    path = folder / "run"
    write_capture(folder / "scene", truth.capture)
    unwrap("train", folder / "scene", "--config", "dynvideo_e", "--quality", "draft", "--size", "source", "--out", path)
    run = require_scene(path, "the benchmark")
    record, scene = run.record, run.scene
    rows: list[Row] = []
    for prompt in chosen.prompts:
        rows += recolored(run, record, scene, prompt, chosen.steps, folder)
    rows.append(removed(run, record, scene, truth))
    return [*rows, *(styled(run, record, scene, folder, chosen.features) if chosen.features else [])]


def recolored(run: SceneRun, record: VolumeRecord, scene: Scene, prompt: str, steps: int, folder: Path) -> list[Row]:
    """Recolors the person by a prompt, and measures the hue from all sides.

    Args:
        run: the open run; the edit is undone.
        record: its record.
        scene: the trained scene.
        prompt: begins with the name of a hue.
        steps: steps of the editor.
        folder: folder for the pictures.

    Returns:
        The rows of the table.
    """
    words = ("--model", ROOT / "examples" / "toy_diffusion" / "model", "--prompt", prompt, "--steps", str(steps))
    begin = time.monotonic()
    unwrap("edit", run.path, "--editor", "dynvideo_e", *words)
    seconds = time.monotonic() - begin
    run.refresh_edits()
    edited, _ = run.apply_edits()
    hue = HUES[prompt.split()[0]]
    before, after = (from_all_sides(record, one, hue) for one in (scene, edited))
    Image.fromarray(np.concatenate([before[1], after[1]])).save(folder / f"{prompt.replace(' ', '-')}.png")
    same = all(torch.equal(room(record, scene, time), room(record, edited, time)) for time in (0, VIEWS // 2))
    unwrap("undo", run.path)
    least, mean = min(after[0]), float(np.mean(after[0]))
    return [
        Row(prompt, "hue from 8 sides, least", ">= 0.90", f"{least:.3f}", least >= 0.9),
        Row(prompt, "hue from 8 sides, mean", "", f"{mean:.3f} (before: {np.mean(before[0]):.3f})"),
        Row(prompt, "background unchanged", "bit for bit", str(same), same),
        Row(prompt, "seconds of the edit", "", f"{seconds:.0f}"),
    ]


def from_all_sides(record: VolumeRecord, scene: Scene, hue: float) -> tuple[list[float], np.ndarray]:
    """Renders the person from eight sides.

    Args:
        record: record of the run.
        scene: the scene.
        hue: in degrees.

    Returns:
        The share of the person's pixels with this hue in each view, and the views side by side.
    """
    assert record.motion is not None, "the scene has a person"
    shares, shown, up = [], [], estimate_up_direction(record.cameras)
    moments = record.make_moments()
    for side in range(SIDES):
        time = side * VIEWS // SIDES
        bones = record.motion.transforms[time]
        camera = Orbit.from_points(body_outline(record.motion.skeleton, bones), up).place_camera(
            side * math.pi / 4, 0.2, 96
        )
        now = make_single_moment(bones, moments.state[time], torch.device("cpu"))
        with torch.no_grad():
            seen = scene.render_person(camera_rays(camera), now, torch.ones(3))
        on = seen.person_opacity > 0.5
        white = (1 - seen.opacity)[:, None]  # the person's own color: without what shines through
        own = ((seen.color - white) / seen.opacity.clamp_min(1e-3)[:, None])[on].clamp(0, 1)
        shares.append(hue_share(own.numpy(), hue, within=30, darkest=0.15))
        shown.append((seen.color.clamp(0, 1).view(96, 96, 3).numpy() * 255).astype(np.uint8))
    return shares, np.concatenate(shown, axis=1)


def room(record: VolumeRecord, scene: Scene, time: int) -> torch.Tensor:
    """Renders the background of a filmed view.

    Args:
        record: record of the run.
        scene: the scene.
        time: index of the view.

    Returns:
        RGB in [0, 1].
    """
    return scene.render_view(record.cameras[time], time, record.make_moments(), parts=frozenset({BACKGROUND})).color


def removed(run: SceneRun, record: VolumeRecord, scene: Scene, truth: SyntheticScene) -> Row:
    """Removes the person, and compares the background there with the true empty room.

    Args:
        run: the open run; the edit is undone.
        record: its record.
        scene: the trained scene.
        truth: the true scene.

    Returns:
        The row of the table.
    """
    unwrap("edit", run.path, "--editor", "remove")
    run.refresh_edits()
    edited, parts = run.apply_edits()
    values: list[Any] = []
    for moment in range(0, VIEWS, 3):
        true = truth.compute_view(truth.cameras[moment], moment, person=False).rgb
        found = edited.render_view(record.cameras[moment], moment, record.make_moments(), parts=parts).color.numpy()
        values.append(metrics.psnr(found, true, truth.training_views[moment].mask))
    unwrap("undo", run.path)
    return Row("remove", "what was behind the person, PSNR", "", f"{np.mean(values):.2f} dB")


def styled(run: SceneRun, record: VolumeRecord, scene: Scene, folder: Path, features: Path) -> list[Row]:
    """Gives the background the style of a picture.

    Args:
        run: the open run; the edit is undone.
        record: its record.
        scene: the trained scene.
        folder: folder for the pictures.
        features: weights of the feature network.

    Returns:
        The rows of the table.
    """
    style = folder / "style.png"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8) // np.array([1, 2, 4], np.uint8)).resize(
        (128, 96)
    ).save(style)
    unwrap(
        "edit",
        run.path,
        "--editor",
        "volume_style",
        "--style",
        style,
        "--features",
        features,
        "--steps",
        "60",
        "--side",
        "64",
    )
    run.refresh_edits()
    edited, _ = run.apply_edits()
    rooms = [float((room(record, scene, now) - room(record, edited, now)).abs().mean()) for now in (0, VIEWS // 2)]
    assert record.motion is not None, "the scene has a person"
    rays = camera_rays(record.cameras[0])
    with torch.no_grad():
        same = torch.equal(*(one.render_person(rays, record.make_moments()).color for one in (scene, edited)))
    Image.fromarray((room(record, edited, 0).numpy() * 255).astype(np.uint8)).save(folder / "styled.png")
    unwrap("undo", run.path)
    return [
        Row("volume_style", "person unchanged", "bit for bit", str(same), same),
        Row("volume_style", "mean change of the background", "", f"{255 * np.mean(rooms):.1f} of 255"),
    ]


if __name__ == "__main__":
    sys.exit(main())
