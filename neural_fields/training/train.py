"""`unwrap train` for both families of models: a planar model of a video, or a 3D scene."""

from __future__ import annotations

from pathlib import Path

from neural_fields.config.presets import is_volume_config
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.training import train_planar
from neural_fields.training.options import TrainOptions
from neural_fields.training.session import TrainResult


def train(
    source: str | Path, options: TrainOptions | None = None, report: ProgressReporter = report_nothing
) -> TrainResult:
    """Trains a planar model on a video, or a model of a 3D scene, as the config says.

    Args:
        source: a video file, a folder of numbered pictures, or for a 3D scene a folder with a transforms.json.
        options: the options of `unwrap train`; by default those of the preset `atlas`.
        report: called with the progress of each stage.

    Returns:
        The run, its last step and notes for the user. A run that was stopped continues where it was.

    Raises:
        UserError: a source, a config or an option that cannot be used (exit 3), no room (4), a damaged run (5), a run
            that another process trains (6), or losses that are not finite (8).

    Example:
        from neural_fields import render, train
        from neural_fields.rendering.options import RenderOptions
        from neural_fields.training.options import TrainOptions

        result = train("car.mp4", TrainOptions(quality="draft"))
        render(result.run, RenderOptions(what="reconstruction"))
    """
    options = options or TrainOptions()
    if is_volume_config(options.config):
        if options.hints:
            raise bad_input(
                f"{options.hints[0].words} with --config {options.config}",
                why="a 3D scene has the masks of its capture",
                fix=f"leave it out: unwrap train {source} --config {options.config}",
            )
        from neural_fields.training.train_volume import train_volume

        return train_volume(source, options, report)
    if (Path(source) / "transforms.json").is_file():
        raise bad_input(
            f"{source} is a 3D scene",
            where=str(Path(source) / "transforms.json"),
            why=f"{options.config} makes canonical pictures of the frames of one video",
            fix=f"unwrap train {source} --config hosnerf, or unwrap train {Path(source) / 'images'}",
        )
    return train_planar.train(source, options, report)
