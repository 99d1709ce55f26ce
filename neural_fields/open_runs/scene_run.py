"""The open run of a 3D scene: its record, its model and its capture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from neural_fields.core.errors import UserError
from neural_fields.imaging.notebook_pictures import make_gallery
from neural_fields.open_runs.base import OpenRun
from neural_fields.runs.checkpoints import Checkpoint

if TYPE_CHECKING:  # they import torch or SciPy, and a run of a video is opened without
    from neural_fields.data.capture.capture import Capture
    from neural_fields.volume.record import VolumeRecord
    from neural_fields.volume.scene import Scene


class SceneRun(OpenRun):
    """Gives access to a run of a 3D scene: a background and a person.

    Example:
        run = open_run("runs/walk")
        run.record.cameras
        scene, visible_parts = run.apply_edits()
    """

    @cached_property
    def record(self) -> VolumeRecord:
        """The capture, the config, the cameras and the bones of the training.

        Raises:
            UserError: run.yaml or the files in scene/ are missing or damaged (exit 5).
        """
        from neural_fields.volume.record import parse_volume_record

        return parse_volume_record(self.files, self._values)

    @property
    def scene(self) -> Scene:
        """The trained scene of the newest checkpoint, ready for evaluation.

        Raises:
            UserError: no checkpoint yet, or all are damaged.
        """
        return self._loaded[0]

    @property
    def step(self) -> int:
        """The number of steps after which the newest checkpoint was written."""
        return self._loaded[1].step

    @cached_property
    def _loaded(self) -> tuple[Scene, Checkpoint]:
        from neural_fields.volume.record import load_scene

        return load_scene(self.files, self.record)

    @cached_property
    def capture(self) -> Capture:
        """The pictures that the scene was trained on, with their masks and cameras.

        Raises:
            UserError: the capture was moved or removed, or cannot be read (exit 3).
        """
        from neural_fields.data.capture.capture_folder import read_capture

        return read_capture(self.record.source, self.record.size)

    def _repr_html_(self) -> str:
        """Shows a view in a notebook: what was filmed, the scene, its parts and its depth, as training ended."""
        from neural_fields.volume.previews import read_preview_view, render_preview_view

        try:
            pictures = read_preview_view(self.files, self.record) or render_preview_view(self.scene, self.record)
        except UserError:  # no previews and no checkpoint yet, or damaged ones: the path is shown alone
            pictures = {}
        return make_gallery(pictures, str(self.path))

    def apply_edits(self, names: Sequence[str] = ()) -> tuple[Scene, frozenset[str]]:
        """Applies edits to a copy of the scene.

        Args:
            names: names of edits; by default all active edits.

        Returns:
            The edited scene, and the names of the parts that are not removed.

        Raises:
            UserError: an unknown edit or an edit of another scene (exit 3), or a damaged edit (exit 5).
        """
        from neural_fields.volume.record import apply_edits

        return apply_edits(self.scene, self.active_edits(names))
