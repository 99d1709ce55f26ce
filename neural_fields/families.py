"""What the commands ask for, of whichever family a run is: still pictures of a video, or a scene in space."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neural_fields import fitting
from neural_fields.config_volume import is_volume
from neural_fields.errors import UserError, bad_input
from neural_fields.fit_options import FitOptions, Reporter
from neural_fields.fitting import FitResult
from neural_fields.output import render
from neural_fields.retiming import parse_timing
from neural_fields.run import Run, read_metrics
from neural_fields.volume_output import VolumeRenderOptions, render_volume
from neural_fields.volume_run import is_volume_run, read_record


def fit(source: str | Path, options: FitOptions | None = None, report: Reporter = lambda progress: None) -> FitResult:
    """`fitting.fit`, or `volume_fit.fit_volume` where the config is that of a scene in space."""
    options = options or FitOptions()
    if is_volume(options.config):
        from neural_fields.volume_fit import fit_volume

        return fit_volume(source, options, report)
    if (Path(source) / "transforms.json").is_file():
        raise bad_input(
            f"{source} is a scene in space",
            where=str(Path(source) / "transforms.json"),
            why=f"{options.config} fits still pictures to the frames of one video",
            fix=f"unwrap train {source} --config hosnerf, or unwrap train {Path(source) / 'images'}",
        )
    return fitting.fit(source, options, report)


def next_step(result: FitResult) -> list[str]:
    """What a user can do with a finished fit, in lines."""
    path, name = result.run.path, shlex.quote(str(result.run.path))
    if is_volume_run(result.run):
        first = f"done: {result.step} steps. Look at {path / 'previews' / 'scene.png'}, then"
        return [first, f"  unwrap render {name} --what reconstruction --camera orbit"]
    first = f"done: {result.step} steps. Paint on a picture in {path / 'canonical'}, then"
    return [first, f"  unwrap edit {name} PAINTED.png --layer NAME && unwrap render {name}"]


def render_run(path: Path, options: VolumeRenderOptions, report: Callable[[int, int], None]) -> list[Path]:
    """Renders a run; returns the files written.

    Raises:
        UserError: as `output.render` and `volume_output.render_volume`; an option that the run's family has not.
    """
    run = Run.open(path)
    if is_volume_run(run):
        common = options.common
        if parse_timing(common.speed, common.rate, common.freeze).changes_something:
            raise bad_input(
                "a scene in space has no --speed, --rate or --freeze",
                where=str(run.path),
                why="its frames are views of their own moments",
                fix="--time 20 shows one moment all along",
            )
        return render_volume(run, options, report)
    if options.what == "depth" or options.what == "opacity":
        raise _of_space(run, f"--what {options.what}")
    _refuse(run, options)
    return render(run, replace(options.common, what=options.what), report)


def _refuse(run: Run, options: VolumeRenderOptions) -> None:
    """Options of scenes in space on a run of still pictures."""
    given = {
        f"--camera {options.camera}": options.camera != "source",
        f"--time {options.time}": options.time is not None,
        f"--pose {options.pose}": options.pose is not None,
    }
    for flag, is_there in given.items():
        if is_there:
            raise _of_space(run, flag)


def _of_space(run: Run, flag: str) -> UserError:
    return bad_input(
        flag,
        where=str(run.path),
        why="the run has still pictures of a video, not a scene in space with cameras and bones",
        fix="leave it out, or fit a scene: unwrap train SCENE --config hosnerf",
    )


def evaluate_run(path: Path, masks: Sequence[str], lpips: Path | None, html: bool) -> dict[str, Any]:
    """Measures a run against its source; plain values for JSON.

    Raises:
        UserError: as `evaluation.evaluate` and `volume_eval.evaluate_volume`.
    """
    run = Run.open(path)
    if is_volume_run(run):
        from neural_fields.volume_eval import evaluate_volume

        for flag, value in {"--masks": masks, "--lpips": lpips, "--html": html}.items():
            if value:
                raise bad_input(
                    flag,
                    where=str(run.path),
                    why="it is about the still pictures of a video, and the run is of a scene in space",
                    fix=f"unwrap eval {run.path} --json, and look at previews/scene.png",
                )
        return evaluate_volume(run)
    from neural_fields.evaluation import evaluate

    return evaluate(run, masks, lpips, html)


def video_facts(path: Path) -> dict[str, Any]:
    """Facts of a video, for people and for JSON."""
    from neural_fields.data.video import probe

    facts = probe(path)
    plain = facts.to_json()
    times = facts.timestamps
    shown = ("path", "kind", "width", "height", "frame_count", "codec", "pixel_format", "color_space", "range")
    return {
        **{name: plain[name] for name in shown},
        "seconds": round(float(times[-1] - times[0]) + 1 / float(facts.rate), 3),
        "rate": plain["rate"],
        "variable_rate": facts.variable_rate,
        "rotation": facts.rotation,
        "sound": [f"{track.codec} {track.seconds:.1f} s" for track in facts.sound],
        "notes": list(facts.notes),
    }


def run_facts(path: Path) -> dict[str, Any]:
    """Facts of a run, for people and for JSON."""
    from neural_fields.edits import list_edits
    from neural_fields.fit_record import read_fit_record

    run = Run.open(path)
    if is_volume_run(run):
        return _volume_facts(run)
    record = read_fit_record(run)
    lines = read_metrics(run)
    steps = [value for line in lines for name in ("step", "steps") if isinstance(value := line.get(name), int)]
    psnr = [line["psnr"] for line in lines if line.get("psnr") is not None]
    return {
        "run": str(path),
        "video": str(record.video),
        "preset": record.preset,
        "quality": record.quality,
        "size": list(record.size),
        "frames": f"{record.frames.start}:{record.frames.stop}:{record.frames.step}",
        "masks": list(record.masks),
        "steps": max(steps, default=0),
        "last_psnr": psnr[-1] if psnr else None,
        "layers": sorted(p.stem for p in run.canonical.glob("*.json")),
        "edits": [f"{edit.folder.name}{'' if edit.active else ' (undone)'}" for edit in list_edits(run)],
    }


def _volume_facts(run: Run) -> dict[str, Any]:
    """Facts of a run of a scene in space."""
    from neural_fields.edits import list_edits

    record = read_record(run)
    steps = [
        value for line in read_metrics(run) for name in ("step", "steps") if isinstance(value := line.get(name), int)
    ]
    return {
        "run": str(run.path),
        "source": str(record.source),
        "preset": record.preset,
        "quality": record.quality,
        "size": list(record.size),
        "views": len(record.cameras),
        "held_out": len(record.held_out),
        "moments": max(record.times) + 1,
        "bones": 0 if record.motion is None else record.motion.skeleton.count,
        "states": record.state_count,
        "steps": max(steps, default=0),
        "edits": [f"{edit.folder.name}{'' if edit.active else ' (undone)'}" for edit in list_edits(run)],
    }
