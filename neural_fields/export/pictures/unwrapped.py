"""Exports an unwrapped layer: a clip in uv space, in which the layer does not move, to paint on in a video program.

The painted clip is compared with this one, and the difference becomes an edit (`editors/inputs/unwrapped_clip.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.core.errors import bad_input
from neural_fields.core.files import sha256_file, write_json
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.video.encode import CODECS
from neural_fields.data.video.image_sequence import hash_images, list_images
from neural_fields.data.video.io import write_video
from neural_fields.data.video.metadata import check_size, parse_size
from neural_fields.export.base import Target
from neural_fields.export.exporter_options import UnwrappedExportOptions
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.rendering.uv_space import CanonicalPlane, UnwrappedFrame


@dataclass(frozen=True, kw_only=True)
class UnwrappedExporter(UnwrappedExportOptions):
    """Write an unwrapped layer as a clip to paint on; `unwrap edit RUN --unwrapped FILE` makes an edit of the paint."""

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Writes the clip and unwrapped.json, which describes it.

        Raises:
            UserError: an unknown layer, a size out of range or with another aspect (exit 3), or no room (exit 4).
        """
        run = target.run
        name = self.layer or run.layers[0]
        number, picture = run.require_layer(name), run.canonical(name)
        plane = CanonicalPlane(run.maps, number, picture.box, parse_unwrapped_size(self.size, picture.size))
        behind = CanonicalFill.from_canonical(picture, plane.size) if self.fill else None
        metadata, chosen = run.metadata, run.frames
        words = build_provenance(run, "unwrapped", layer=name) if target.metadata else None

        path = target.folder / (name if self.format == "png" else name + CODECS[self.format].suffixes[0])
        frames, stage = run.iterate_frames(), f"laying {name} flat"
        unwrapped = _unwrap_frames(plane, behind, frames, stage, len(chosen), report)
        like, times = replace(metadata, rate=metadata.rate / chosen.step), metadata.find_times(chosen)
        if self.format == "png":  # numbers without gaps, which a sequence must have, from that of the first frame
            first = target.frame_numbers[0]
            like = replace(like, timestamps=times, frame_count=len(times), first_number=first)
        write_video(path, unwrapped, like, codec=self.format, timestamps=times, sound=False, texts=words)
        described = {
            "schema": 1,
            "layer": name,
            "box": picture.box.as_tuple(),
            "size": plane.size,
            "frames": list(chosen),
            "fill": self.fill,
            "file": path.name,
            "sha256": hash_images(list_images(path)) if path.is_dir() else sha256_file(path),
        }
        write_json(target.folder / "unwrapped.json", described)
        return [f"after painting: unwrap edit {run.path} --unwrapped {target.final_folder / path.name} --layer {name}"]


@dataclass(frozen=True)
class CanonicalFill:
    """Fills the parts of a layer that a frame does not show with its canonical picture."""

    rgb: Float[np.ndarray, "height width 3"]

    @staticmethod
    def from_canonical(picture: CanonicalImage, size: tuple[int, int]) -> CanonicalFill:
        """Resizes a canonical picture to (width, height)."""
        return CanonicalFill(unpremultiply(resize_image(premultiply(picture.rgba), size))[..., :3])

    def fill_frame(self, flat: UnwrappedFrame) -> UInt8[np.ndarray, "height width 3"]:
        """Fills an unwrapped frame with the picture, in the frame's light, where the frame does not show the layer."""
        share = flat.visibility[..., None]
        lit = 255 * np.clip(self.rgb * flat.gain, 0, 1)
        return np.rint(share * flat.color + (1 - share) * lit).astype(np.uint8)


def _unwrap_frames(
    plane: CanonicalPlane,
    behind: CanonicalFill | None,
    frames: Iterator[UInt8[np.ndarray, "height width 3"]],
    stage: str,
    count: int,
    report: ProgressReporter,
) -> Iterator[UInt8[np.ndarray, "rows columns 4"]]:
    """Yields the layer in uv space for each frame, RGBA; `behind` fills it where the frame does not show it."""
    for t, frame in enumerate(frames):
        flat = plane.unwrap_frame(t, frame)
        color = flat.color if behind is None else behind.fill_frame(flat)
        yield np.dstack([color, np.rint(255 * flat.visibility).astype(np.uint8)])
        report(Progress(stage, t + 1, count))


def parse_unwrapped_size(text: str, size: tuple[int, int]) -> tuple[int, int]:
    """Computes the (width, height) of an unwrapped clip: even numbers, which codecs ask for.

    Args:
        text: `--size`.
        size: (width, height) of the canonical picture.

    Raises:
        UserError: a text that is no size, another shape, or out of range (exit 3).
    """
    wanted = size if text == "canonical" else parse_size(text, *size)
    width, height = (side + side % 2 for side in wanted)
    if not has_same_aspect((width, height), size):
        raise bad_input(
            f"{text} has another shape than the canonical picture",
            where="--size",
            why=f"that has {size[0]}x{size[1]} pixels",
            fix=f"--size {size[0] // 2}x{size[1] // 2}",
        )
    check_size(width, height, where="--size")
    return width, height


def has_same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tells whether two pictures have the same aspect, up to two pixels of rounding.

    Args:
        size: (width, height) of the first picture.
        other: (width, height) of the second picture.

    Example:
        >>> has_same_aspect((854, 480), (1920, 1080)), has_same_aspect((640, 480), (1920, 1080))
        (True, False)
    """
    scale = (size[0] + size[1]) / (other[0] + other[1])
    return all(abs(side - scale * of) <= 2 for side, of in zip(size, other, strict=True))
