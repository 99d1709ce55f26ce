"""Measures 3D scenes: `unwrap train` on a synthetic person in a room, compared with the known truth.

    python benchmarks/volume.py [--preset hosnerf] [--quality normal] [--views 40] [--size 128x96] [--seconds 570]
                                [--folder DIR] [--json FILE]

The scene is that of `neural_fields/data/synthetic/scene.py`: a moving camera, a walking person who carries something
that changes, exact cameras, bones and masks. Every eighth view is left out of the training. Targets on two cores, with
at most ten minutes a fit: the uncovered background from viewpoints that no view has, 27 dB; views that were left out,
26 dB; viewpoints far from the camera's path, 24 dB; the person in a pose that no view shows, in the box around them, 22
dB; the carried object in the right state at every moment. --folder keeps capture, run and pictures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Row, finish, parser, print_row, unwrap, unwrap_json
from PIL import Image

sys.path.insert(0, str(ROOT))

from neural_fields.data.capture.capture_folder import write_capture
from neural_fields.data.synthetic.scene import SyntheticScene, make_walking_scene
from neural_fields.evaluation import metrics
from neural_fields.open_runs.opening import require_scene
from neural_fields.volume.scene import BACKGROUND, PARTS, PERSON, Moments, Scene

HOLDOUT = 8
ANGLE = 30.0  # degrees between a viewpoint that was held out and the view of its moment
MOMENTS = 5  # at which other viewpoints are looked from


def main() -> int:
    """Prints a line a figure and writes JSON."""
    options = parser(__doc__)
    options.add_argument("--preset", default="hosnerf")
    options.add_argument("--quality", default="normal")
    options.add_argument("--views", type=int, default=40)
    options.add_argument("--size", default="128x96")
    options.add_argument("--seconds", type=float, default=570.0)
    options.add_argument("--folder", type=Path)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        rows, facts = measure(chosen, chosen.folder or Path(made))
    for row in rows:
        print_row(row)
    finish([vars(row) for row in rows], chosen.json, **facts)
    return 0


def measure(chosen: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Fits the scene and compares."""
    width, height = (int(side) for side in chosen.size.split("x"))
    truth = make_walking_scene(
        count=chosen.views, size=(width, height), switches=(chosen.views // 2,), seed=chosen.seed
    )
    capture, path = folder / "scene", folder / "run"
    write_capture(capture, truth.capture)
    fit = ("--config", chosen.preset, "--quality", chosen.quality, "--size", "source", "--out", path)
    settings = ("--training.holdout", str(HOLDOUT), "--seconds", str(chosen.seconds))
    done = unwrap("train", capture, *fit, *settings)
    found = unwrap_json("eval", path)
    run = require_scene(path, "the benchmark")
    record, scene = run.record, run.scene
    compared = Compared(truth, scene, record.make_moments(), folder / "pictures")
    background, viewpoint = compared.background(), compared.viewpoint()
    posed, (switch, right) = compared.posed(), compared.switch()
    asked = f"{truth.switches[0]}"
    on = f"{chosen.preset} {chosen.quality}"
    rows = [
        row(on, "views left out", 26, found["psnr_held_out"]),
        row(on, "background, new viewpoint", 27, background),
        row(on, "whole scene, new viewpoint", 24, viewpoint),
        row(on, "person in a new pose, in their box", 22, posed),
        Row(on, "first moment of the next state", asked, f"{switch} ({right:.0%} right)", str(switch) == asked),
        row(on, "views of the fit", None, found["psnr"]),
        row(on, "person in their box, views left out", None, found["psnr_person_held_out"]),
        Row(on, "seconds of the fit", "600", f"{done.seconds:.0f}", done.seconds <= 600),
        Row(on, "MiB of the fit", "", f"{done.peak_mib}"),
    ]  # fmt: skip
    return rows, {"views": chosen.views, "size": chosen.size, "steps": found["steps"], "holdout": HOLDOUT}


def row(on: str, figure: str, asked: float | None, value: float) -> Row:
    """Makes the row of a PSNR.

    Args:
        on: what was trained.
        figure: what was measured.
        asked: target in dB, or None.
        value: PSNR in dB.
    """
    wanted = "" if asked is None else f">= {asked} dB"
    return Row(on, figure, wanted, f"{value:.2f} dB", None if asked is None else value >= asked)


class Compared:
    """Compares a trained scene with its truth; `pictures` gets the truth above the renderings."""

    def __init__(self, truth: SyntheticScene, scene: Scene, moments: Moments, pictures: Path) -> None:
        self.truth, self.scene, self.moments, self.pictures = truth, scene, moments, pictures
        pictures.mkdir(parents=True, exist_ok=True)
        self.times = np.linspace(0, len(truth.times) - 1, MOMENTS).round().astype(int).tolist()

    def background(self) -> float:
        """Computes the PSNR of the room without the person, from viewpoints that no view has."""
        return self._at_viewpoints("background", frozenset({BACKGROUND}))

    def viewpoint(self) -> float:
        """Computes the PSNR of the whole scene from these viewpoints."""
        return self._at_viewpoints("viewpoint", PARTS)

    def _at_viewpoints(self, name: str, parts: frozenset[str]) -> float:
        pairs = []
        for time in self.times:
            camera = self.truth.place_holdout_camera(time, ANGLE)
            true = self.truth.compute_view(camera, time, person=PERSON in parts).rgb
            pairs.append((true, self.scene.render_view(camera, time, self.moments, parts=parts).color.numpy()))
        self._save(name, pairs)
        return float(np.mean([metrics.psnr(found, true) for true, found in pairs]))

    def posed(self) -> float:
        """Computes the PSNR in the box around the person in a pose that no view has."""
        pose, pairs, values = self.truth.make_unseen_pose(), [], []
        for time in self.times:
            camera, moments = (
                self.truth.cameras[time],
                self.moments.with_poses(np.stack([pose] * len(self.truth.times))),
            )
            true = self.truth.compute_view(camera, time, pose)
            found = self.scene.render_view(camera, time, moments).color.numpy()
            rows, columns = np.flatnonzero(true.mask.any(axis=1)), np.flatnonzero(true.mask.any(axis=0))
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            values.append(metrics.psnr(found[box], true.rgb[box]))
            pairs.append((true.rgb, found))
        self._save("posed", pairs)
        return float(np.mean(values))

    def switch(self) -> tuple[int, float]:
        """Finds the moment at which the held object changes, by comparison with both of its states.

        Returns:
            The first moment whose object looks like that of the second state, and the share of moments with the right
            state.
        """
        said, known = [], []
        for time, (camera, true) in enumerate(zip(self.truth.cameras, self.truth.training_views, strict=True)):
            if true.object_mask.sum() < 12:
                continue
            shown = self.scene.render_view(camera, time, self.moments).color.numpy()
            as_if = (0, len(self.truth.times) - 1)  # moments of the first and of the last state
            errors = [self._object_error(shown, camera, time, moment) for moment in as_if]
            said.append((time, int(np.argmin(errors))))
            known.append(int(time >= self.truth.switches[0]))
        first = next((time for time, state in said if state), -1)
        return first, float(np.mean([state == truth for (_, state), truth in zip(said, known, strict=True)]))

    def _object_error(self, shown: np.ndarray, camera: Any, time: int, moment: int) -> float:
        """Computes the squared error against the truth of a moment with the object in the state of another moment."""
        true = self.truth.compute_view(camera, moment, self.truth.motion.transforms[time])
        return float(((shown - true.rgb) ** 2)[true.object_mask].mean()) if true.object_mask.any() else np.inf

    def _save(self, name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        shown = np.concatenate([np.concatenate(pair) for pair in pairs], axis=1)
        Image.fromarray((shown.clip(0, 1) * 255).round().astype(np.uint8)).save(self.pictures / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
