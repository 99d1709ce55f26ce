"""A trained model with its source frames and their flow, for exports that evaluate the model itself."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.core.errors import bad_input
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.planar.init.load import load_planar_model
from neural_fields.planar.model import PlanarModel
from neural_fields.runs.planar_record import read_planar_record
from neural_fields.runs.run import Run
from neural_fields.runs.source import read_run_flow, read_source, read_source_metadata


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its source.

    Attributes:
        model: on the CPU, in evaluation mode.
        metadata: metadata of the source video.
        frames: numbers in the source of the frames that the model was trained on.
        flow: by which points move from one chart of a canonical plane to the next; None where there is only one.
    """

    model: PlanarModel
    metadata: VideoMetadata
    frames: range
    flow: FlowField | None

    @property
    def source_size(self) -> tuple[int, int]:
        """(width, height) of the source."""
        return self.metadata.width, self.metadata.height

    def frame_index(self, frame: int | None) -> int:
        """Returns the frame of the run that is frame `frame` of the source; by default the middle one.

        Raises:
            UserError: a frame that the run was not trained on (exit 3).
        """
        frames = self.frames
        if frame is None:
            return len(frames) // 2
        if frame not in frames:
            step = f", one in {frames.step}" if frames.step > 1 else ""
            raise bad_input(
                f"there is no frame {frame} in this run",
                where="--frame",
                why=f"frames are counted in the source from 0, and it was trained on {frames[0]} to {frames[-1]}{step}",
                fix=f"--frame {min(frames, key=lambda known: abs(known - frame))}",
            )
        return frames.index(frame)


def open_trained_model(run: Run) -> TrainedModel:
    """Loads the newest model of a run with the metadata and flow of its source.

    Raises:
        UserError: the source is gone or changed, no checkpoint yet, or a damaged run.
    """
    facts, frames = read_source_metadata(run)
    model, _ = load_planar_model(run)
    flow = read_run_flow(run, read_planar_record(run), read_source(run).frames) if model.list_charts() else None
    return TrainedModel(model, facts, frames, flow)
