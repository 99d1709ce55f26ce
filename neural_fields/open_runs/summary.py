"""The metadata of a run in plain values, as `unwrap info` prints them. A run of a video needs no package of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neural_fields.config.presets import VOLUME_KIND
from neural_fields.edits.read_stack import list_edits
from neural_fields.planar.record import parse_planar_record
from neural_fields.runs.run import Run, read_metrics, read_run_yaml


def run_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a run: the values that `unwrap info RUN` prints.

    Args:
        path: the folder of the run.

    Returns:
        Plain values: source, preset, sizes in pixels, number of steps, layers and edits.

    Raises:
        UserError: the folder is not a run (exit 3), or the run is damaged (exit 5).
    """
    run = Run.open(path)
    values, lines = read_run_yaml(run), read_metrics(run)
    edits = [f"{edit.folder.name}{'' if edit.active else ' (undone)'}" for edit in list_edits(run)]
    counts = [line[name] for line in lines for name in ("step", "steps") if isinstance(line.get(name), int)]
    if values.get("kind") == VOLUME_KIND:
        from neural_fields.volume.record import parse_volume_record

        scene = parse_volume_record(run, values)
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
            "steps": max(counts, default=0),
            "edits": edits,
        }
    record = parse_planar_record(run, values)
    psnr = [line["psnr"] for line in lines if line.get("psnr") is not None]
    return {
        "run": str(run.path),
        "video": str(record.video),
        "preset": record.preset,
        "quality": record.quality,
        "size": list(record.size),
        "frames": f"{record.frames.start}:{record.frames.stop}:{record.frames.step}",
        "masks": list(record.masks),
        "steps": max(counts, default=0),
        "last_psnr": psnr[-1] if psnr else None,
        "layers": sorted(file.stem for file in run.canonical.glob("*.json")),
        "edits": edits,
    }
