"""A trained model with its source frames and their flow, for exports that evaluate the model itself."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.data.facts import VideoFacts
from neural_fields.data.flow import FlowField
from neural_fields.errors import bad_input
from neural_fields.evaluation import read_source
from neural_fields.fit_record import read_fit_record
from neural_fields.fitting import load_model
from neural_fields.output import source_facts
from neural_fields.planar.model import PlanarModel
from neural_fields.report.steadiness import run_flow
from neural_fields.run import Run


@dataclass(frozen=True)
class Fitted:
    """A trained model with its source.

    Attributes:
        model: on the CPU, in evaluation mode.
        facts: metadata of the source video.
        frames: numbers in the source of the frames that the model was trained on.
        flow: by which points move from one chart of a canonical plane to the next; None where there is only one.
    """

    model: PlanarModel
    facts: VideoFacts
    frames: range
    flow: FlowField | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the source."""
        return self.facts.width, self.facts.height

    def index(self, frame: int | None) -> int:
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


def open_fitted(run: Run) -> Fitted:
    """Loads the newest model of a run with the metadata and flow of its source.

    Raises:
        UserError: the source is gone or changed, no checkpoint yet, or a damaged run.
    """
    facts, frames = source_facts(run)
    model, _ = load_model(run)
    flow = run_flow(run, read_fit_record(run), read_source(run).frames) if model.charts() else None
    return Fitted(model, facts, frames, flow)
