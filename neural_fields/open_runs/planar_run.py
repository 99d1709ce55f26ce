"""The open run of a video: its record, source, maps, canonical pictures, flow and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from neural_fields.atlas.canonical import CanonicalImage, read_pristine
from neural_fields.atlas.inverse_uv import FramePositions, find_frame_positions
from neural_fields.atlas.uv_maps import Maps
from neural_fields.config.loader import load_json
from neural_fields.core import array_coords
from neural_fields.core.errors import bad_input
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.video.io import read_video, source_frames
from neural_fields.data.video.metadata import Video, VideoMetadata
from neural_fields.imaging.notebook_pictures import make_gallery
from neural_fields.open_runs.base import OpenRun
from neural_fields.planar.record import PlanarRecord, parse_planar_record, require_source_video
from neural_fields.runs.run import Run

if TYPE_CHECKING:  # they import torch, which most commands do without
    from neural_fields.planar.composition.model import PlanarModel
    from neural_fields.planar.config import PlanarConfig


@dataclass(frozen=True)
class CanonicalPoints:
    """Holds the canonical positions of pixels of a frame in one layer.

    Attributes:
        uv: positions in uv units of the canonical plane (docs/design.md, section 4).
        texels: the same positions in texels of the canonical picture; the center of the first texel is (0.5, 0.5).
        weight: the share of each pixel that the layer fills, 0 to 1.
    """

    uv: Float[np.ndarray, "n 2"]
    texels: Float[np.ndarray, "n 2"]
    weight: Float[np.ndarray, " n"]


class PlanarRun(OpenRun):
    """Gives access to a run of a video, whose layers each have a canonical picture.

    Example:
        run = open_run("runs/car")
        run.layers                                  # ("foreground", "background")
        frame = run.read_frame(12)                  # uint8 [height, width, 3]
        picture = run.canonical("foreground")       # in a notebook, it shows itself
        found = run.frame_to_canonical("foreground", 12, np.array([[100.5, 60.5]]))
        run.canonical_to_frame("foreground", 24, found.uv).pixels
    """

    def __init__(self, files: Run, values: Mapping[str, Any]) -> None:
        """Stores the paths of a run and the content of its run.yaml."""
        super().__init__(files, values)
        self._canonicals: dict[str, CanonicalImage] = {}  # those that were read; not a cached property: threads fill it

    @cached_property
    def record(self) -> PlanarRecord:
        """The source and the options of the training.

        Raises:
            UserError: run.yaml was not written by `unwrap train` (exit 5).
        """
        return parse_planar_record(self.files, self._values)

    @cached_property
    def config(self) -> PlanarConfig:
        """The settings of the model and of its training.

        Raises:
            UserError: run.yaml was not written by `unwrap train` (exit 5).
        """
        from neural_fields.planar.recorded_config import parse_recorded_config

        return parse_recorded_config(self.files, self._values)

    # --- the source -------------------------------------------------------------------------------------------------

    @cached_property
    def metadata(self) -> VideoMetadata:
        """The metadata of the source video, which must still be where it was.

        Raises:
            UserError: the source video was moved or removed (exit 3), or source.json is damaged (exit 5).
        """
        require_source_video(self.files, self.record)
        return self.stored_metadata

    @cached_property
    def stored_metadata(self) -> VideoMetadata:
        """The metadata of the source video that the run stores; the video itself may be gone.

        Raises:
            UserError: source.json is damaged (exit 5).
        """
        fix = "run unwrap train again with the same --out: it writes it anew"
        return replace(load_json(VideoMetadata, self.files.source_json, fix), path=str(self.record.video))

    @property
    def frames(self) -> range:
        """The numbers in the source of the frames that the run was trained on."""
        return self.record.frames

    @property
    def frame_count(self) -> int:
        """The number of frames that the run was trained on."""
        return len(self.record.frames)

    @property
    def source_size(self) -> tuple[int, int]:
        """(width, height) of the source, in pixels."""
        return self.metadata.width, self.metadata.height

    def require_frame(self, number: int, flag: str = "--frame") -> int:
        """Returns the index of a frame among the frames of the run.

        Args:
            number: number of the frame in the source.
            flag: the flag that names the frame on the command line, for the message.

        Returns:
            The index, 0 to `frame_count` - 1.

        Raises:
            UserError: the run was not trained on that frame (exit 3).
        """
        if number not in self.frames:
            some = f", one in {self.frames.step}," if self.frames.step > 1 else ""
            raise bad_input(
                f"frame {number} is not part of this run",
                where=str(self.path),
                why=f"it was trained on frames {self.frames[0]} to {self.frames[-1]}{some} of the source",
                fix=f"{flag} {min(self.frames, key=lambda known: abs(known - number))}",
            )
        return self.frames.index(number)

    def read_frame(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """Reads a frame of the source.

        Args:
            number: number of the frame in the source.

        Returns:
            The frame, RGB at the source's size.

        Raises:
            UserError: the run was not trained on that frame, or the source is gone or has changed (exit 3).
        """
        self.require_frame(number)
        return next(iter(source_frames(self.metadata, range(number, number + 1))))

    def iterate_frames(self) -> Iterator[np.ndarray]:
        """Streams the frames that the run was trained on.

        Yields:
            RGB uint8 [height, width, 3] at the source's size.

        Raises:
            UserError: the source is gone or has changed (exit 3).
        """
        return source_frames(self.metadata, self.frames)

    @cached_property
    def video(self) -> Video:
        """The frames at the size of the training: from the cache, or decoded again.

        Raises:
            UserError: the source video was moved, removed or replaced (exit 3).
        """
        record = self.record
        path, (width, height), frames = require_source_video(self.files, record), record.size, record.frames
        video = read_video(path, self.files.cache, f"{width}x{height}", f"{frames.start}:{frames.stop}:{frames.step}")
        if video.metadata.sha256 != record.sha256:
            raise bad_input(
                f"{path.name} is not the video that this run was trained on",
                where=str(path),
                why="its content has changed since",
                fix="put the old file back, or train on the new one with another --out",
            )
        return video

    @cached_property
    def flow(self) -> FlowField | None:
        """The optical flow that training used: from the cache, or computed again; None for a single frame.

        Raises:
            UserError: the errors of `video`.
        """
        from neural_fields.nn.device import choose_device

        frames = self.video.frames
        if len(frames) < 2:
            return None
        size = (frames.shape[2], frames.shape[1])
        shrink = min(1.0, (self.config.mapping.flow_side or max(size)) / max(size))
        flow_size = (round(size[0] * shrink), round(size[1] * shrink))
        return compute_flow(frames, self.files.cache, self.record.flow, flow_size, device=str(choose_device("auto")))

    @cached_property
    def chart_flow(self) -> FlowField | None:
        """The optical flow between the charts of a layer; None where every layer has a single chart.

        Raises:
            UserError: the errors of `video`, or there is no checkpoint (exit 5).
        """
        return self.flow if self.model.list_charts() else None

    # --- layers -----------------------------------------------------------------------------------------------------

    @cached_property
    def maps(self) -> Maps:
        """The baked uv maps.

        Raises:
            UserError: the run has no maps yet, or they are damaged (exit 5).
        """
        return Maps.open(self.files.maps)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, front to back."""
        return self.maps.layers

    def require_layer(self, name: str) -> int:
        """Returns the number of a layer, counted from the front.

        Raises:
            UserError: the run has no layer of that name (exit 3, lists the layers).
        """
        if name not in self.layers:
            raise bad_input(
                f"there is no layer {name!r}",
                where=str(self.files.canonical),
                why=f"the layers of this run, front to back: {', '.join(self.layers)}",
                fix=f"--layer {self.layers[0]}",
            )
        return self.layers.index(name)

    def select_layers(self, names: Sequence[str]) -> list[int]:
        """Returns the numbers of the named layers, front to back; all layers where no name is given.

        Raises:
            UserError: a layer that the run does not have (exit 3).
        """
        chosen = {self.require_layer(name) for name in names}
        return [number for number in range(len(self.layers)) if not names or number in chosen]

    def canonical(self, layer: str) -> CanonicalImage:
        """Returns the newest canonical picture of a layer that the program wrote, without later paint.

        Raises:
            UserError: an unknown layer (exit 3), or a damaged image (exit 5).
        """
        self.require_layer(layer)
        found = self._canonicals.get(layer)
        if found is None:
            found = self._canonicals[layer] = read_pristine(self.files.canonical, layer)
        return found

    def _repr_html_(self) -> str:
        """Shows the canonical pictures in a notebook."""
        pictures = {layer: picture.rgba for layer, picture in self.canonicals.items()}
        return make_gallery(pictures, str(self.path))

    @cached_property
    def canonicals(self) -> Mapping[str, CanonicalImage]:
        """The canonical pictures of all layers by name, front to back.

        Raises:
            UserError: a damaged image (exit 5).
        """
        # Decoding pictures releases Python's lock: one after the other they would hold up the first frame.
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(self.layers, pool.map(self.canonical, self.layers), strict=True))

    @cached_property
    def model(self) -> PlanarModel:
        """The trained model of the newest checkpoint, on the CPU, ready for evaluation.

        Raises:
            UserError: no checkpoint yet, or all are damaged.
        """
        return self._checkpoint[0]

    @property
    def step(self) -> int:
        """The number of steps after which the newest checkpoint was written."""
        return self._checkpoint[1]

    @cached_property
    def _checkpoint(self) -> tuple[PlanarModel, int]:
        from neural_fields.planar.load import load_planar_model

        return load_planar_model(self.files, self.config)

    # --- from frames to canonical pictures and back -----------------------------------------------------------------

    def frame_to_canonical(self, layer: str, frame: int, xy: Shaped[np.ndarray, "n 2"]) -> CanonicalPoints:
        """Finds the canonical positions of pixels of a frame.

        Args:
            layer: the layer's name.
            frame: number of the frame in the source.
            xy: (x, y) in pixels of the source, y down; the center of the first pixel is (0.5, 0.5).

        Returns:
            The positions in the canonical picture, and the share of each pixel that the layer fills.

        Raises:
            UserError: an unknown layer, or a frame that the run was not trained on (exit 3).
        """
        number, t = self.require_layer(layer), self.require_frame(frame)
        x, y = (np.asarray(xy, np.float64) - 0.5).astype(np.float32).T
        found = self.maps.sample_at_points(t, x, y, self.source_size)
        image, uv = self.canonical(layer), np.asarray(found.uv[number], np.float32)
        texels = array_coords.uv_to_texels(uv, image.box, *image.size)
        return CanonicalPoints(uv, texels, found.weight[number])

    def canonical_to_frame(self, layer: str, frame: int, uv: Shaped[np.ndarray, "n 2"]) -> FramePositions:
        """Finds the positions of canonical points in a frame.

        Args:
            layer: the layer's name.
            frame: number of the frame in the source.
            uv: points in uv units of the canonical plane.

        Returns:
            Positions in pixels of the source, also of points that are hidden or outside the frame where they can be
            determined.

        Raises:
            UserError: an unknown layer, or a frame that the run was not trained on (exit 3).
        """
        self.require_layer(layer)
        points = np.asarray(uv, np.float64)
        return find_frame_positions(self.maps, self.require_frame(frame), layer, points, self.source_size)
