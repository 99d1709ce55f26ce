"""The commands for runs of both families: planar models (canonical images of a video) and 3D scenes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neural_fields.config.volume import is_volume_config
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.progress import ProgressReporter
from neural_fields.rendering.render_planar import render
from neural_fields.rendering.render_volume import VolumeRenderOptions, render_volume
from neural_fields.rendering.retiming.timeline import parse_timing
from neural_fields.runs.kind import is_volume_run
from neural_fields.runs.run import Run, read_metrics
from neural_fields.training import train_planar
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import TrainResult
from neural_fields.volume.record import read_record


def train(
    source: str | Path, options: TrainOptions | None = None, report: ProgressReporter = lambda progress: None
) -> TrainResult:
    """Trains a planar model with `fitting.fit`, or a 3D scene with `volume_fit.train_volume`, as the config says."""
    options = options or TrainOptions()
    if is_volume_config(options.config):
        from neural_fields.training.train_volume import train_volume

        return train_volume(source, options, report)
    if (Path(source) / "transforms.json").is_file():
        raise bad_input(
            f"{source} is a 3D scene",
            where=str(Path(source) / "transforms.json"),
            why=f"{options.config} makes canonical images of the frames of one video",
            fix=f"unwrap train {source} --config hosnerf, or unwrap train {Path(source) / 'images'}",
        )
    return train_planar.train(source, options, report)


def describe_next_steps(result: TrainResult) -> list[str]:
    """Returns lines that say what a user can do with a finished training."""
    path, name = result.run.path, shlex.quote(str(result.run.path))
    if is_volume_run(result.run):
        first = f"done: {result.step} steps. Look at {path / 'previews' / 'scene.png'}, then"
        return [first, f"  unwrap render {name} --what reconstruction --camera orbit"]
    first = f"done: {result.step} steps. Paint on a picture in {path / 'canonical'}, then"
    return [first, f"  unwrap edit {name} PAINTED.png --layer NAME && unwrap render {name}"]


def render_run(path: Path, options: VolumeRenderOptions, report: Callable[[int, int], None]) -> list[Path]:
    """Renders a run.

    Args:
        path: the run's folder.
        options: those of both families; what the run's family does not have must be left at its default.
        report: called with the frames done and all frames.

    Returns:
        The files written.

    Raises:
        UserError: as `output.render` and `volume_output.render_volume`; an option that the run's family does not have.
    """
    run = Run.open(path)
    if is_volume_run(run):
        common = options.common
        if parse_timing(common.speed, common.rate, common.freeze).changes_something:
            raise bad_input(
                "a 3D scene has no --speed, --rate or --freeze",
                where=str(run.path),
                why="its frames are views, each at its own moment",
                fix="--time 20 shows one moment all along",
            )
        return render_volume(run, options, report)
    if options.what == "depth" or options.what == "opacity":
        raise _volume_option_error(run, f"--what {options.what}")
    if options.camera != "source":
        raise _volume_option_error(run, f"--camera {options.camera}")
    if options.time is not None:
        raise _volume_option_error(run, f"--time {options.time}")
    if options.pose is not None:
        raise _volume_option_error(run, f"--pose {options.pose}")
    return render(run, replace(options.common, what=options.what), report)


def _volume_option_error(run: Run, flag: str) -> UserError:
    return bad_input(
        flag,
        where=str(run.path),
        why="the run has canonical images of a video, not a 3D scene with cameras and bones",
        fix="leave it out, or train on a 3D scene: unwrap train SCENE --config hosnerf",
    )


def evaluate_run(path: Path, masks: Sequence[str], lpips: Path | None, html: bool) -> dict[str, Any]:
    """Measures a run against its source.

    Args:
        path: the run's folder.
        masks: true masks, "[NAME=]PATH" for each front layer; of planar runs only.
        lpips: weights of an LPIPS backbone; of planar runs only.
        html: whether to write report.html as well; of planar runs only.

    Returns:
        Plain values for JSON.

    Raises:
        UserError: as `evaluation.evaluate` and `volume_eval.evaluate_volume`.
    """
    run = Run.open(path)
    if is_volume_run(run):
        from neural_fields.evaluation.evaluate_volume import evaluate_volume

        for flag, value in {"--masks": masks, "--lpips": lpips, "--html": html}.items():
            if value:
                raise bad_input(
                    flag,
                    where=str(run.path),
                    why="it is about the canonical images of a video, and the run is of a 3D scene",
                    fix=f"unwrap eval {run.path} --json, and look at previews/scene.png",
                )
        return evaluate_volume(run)
    from neural_fields.evaluation.evaluate_planar import evaluate

    return evaluate(run, masks, lpips, html)


def video_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a video, for people and for JSON."""
    from neural_fields.data.video.io import probe_video

    metadata = probe_video(path)
    plain = metadata.to_json()
    times = metadata.timestamps
    copied = ("path", "kind", "width", "height", "frame_count", "codec", "pixel_format", "color_space", "range")
    return {
        **{name: plain[name] for name in copied},
        "seconds": round(float(times[-1] - times[0]) + 1 / float(metadata.rate), 3),
        "rate": plain["rate"],
        "variable_rate": metadata.variable_rate,
        "rotation": metadata.rotation,
        "sound": [f"{track.codec} {track.seconds:.1f} s" for track in metadata.sound],
        "notes": list(metadata.notes),
    }


def run_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a run, for people and for JSON."""
    from neural_fields.edits.read_stack import list_edits
    from neural_fields.runs.planar_record import read_planar_record

    run = Run.open(path)
    if is_volume_run(run):
        scene = read_record(run)
        return {
            "run": str(run.path),
            "source": str(scene.source),
            "preset": scene.preset,
            "quality": scene.quality,
            "size": list(scene.size),
            "views": len(scene.cameras),
            "held_out": len(scene.held_out),
            "moments": max(scene.times) + 1,
            "bones": 0 if scene.motion is None else scene.motion.skeleton.bone_count,
            "states": scene.state_count,
            "steps": _count_steps(read_metrics(run)),
            "edits": [f"{edit.folder.name}{'' if edit.active else ' (undone)'}" for edit in list_edits(run)],
        }
    record = read_planar_record(run)
    lines = read_metrics(run)
    psnr = [line["psnr"] for line in lines if line.get("psnr") is not None]
    return {
        "run": str(path),
        "video": str(record.video),
        "preset": record.preset,
        "quality": record.quality,
        "size": list(record.size),
        "frames": f"{record.frames.start}:{record.frames.stop}:{record.frames.step}",
        "masks": list(record.masks),
        "steps": _count_steps(lines),
        "last_psnr": psnr[-1] if psnr else None,
        "layers": sorted(sidecar.stem for sidecar in run.canonical.glob("*.json")),
        "edits": [f"{edit.folder.name}{'' if edit.active else ' (undone)'}" for edit in list_edits(run)],
    }


def _count_steps(metrics: list[dict[str, Any]]) -> int:
    """Returns the number of steps done, as the lines of metrics.jsonl say; 0 without any."""
    counts = [0]
    for line in metrics:
        counts += [line[name] for name in ("step", "steps") if isinstance(line.get(name), int)]
    return max(counts)
