"""What an editor reads: the pictures, frames and masks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from editors.inputs.frame_lifting import FrameMaps, read_frame_maps
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import bad_input
from neural_fields.data.video.io import source_frames
from neural_fields.edits.read_stack import active_edits
from neural_fields.imaging.alpha import resize_image
from neural_fields.imaging.image_io import read_picture
from neural_fields.rendering.compositor import canonical_painters
from neural_fields.runs.run import Run
from neural_fields.runs.source import read_source_metadata


@dataclass(frozen=True)
class EditSource:
    """A run as an editor sees it.

    Attributes:
        run, maps: the run and its baked maps.
        layers: the layers to edit, front to back.
        mask: a picture that is bright where the edit may go, of the shape of the layer's canonical picture; None for
            the whole layer. Only with a single layer.
    """

    run: Run
    maps: Maps
    layers: tuple[str, ...]
    mask: Path | None = None

    @cached_property
    def pictures(self) -> Mapping[str, CanonicalImage]:
        """The canonical pictures of all layers as they look now: with the active edits painted on."""
        found = {layer: canonical.read_pristine(self.run.canonical, layer) for layer in self.maps.layers}
        for edit in active_edits(self.run):
            for painter in canonical_painters(edit):
                found[painter.layer] = painter.paint(found[painter.layer])
        return found

    def read_region(self, layer: str) -> Float[np.ndarray, "height width"]:
        """Reads where the edit of a layer may go: the mask, or all that was seen.

        Returns:
            A mask in [0, 1] at the size of the layer's picture.

        Raises:
            UserError: the mask has another shape than the picture, or chooses nothing that the video shows (exit 3).
        """
        picture = self.pictures[layer]
        # Not the coverage of `picture`: edits may have painted a little beyond what was seen.
        region = (canonical.read_pristine(self.run.canonical, layer).rgba[3].numpy() > 0).astype(np.float32)
        if self.mask is not None:
            painted = read_picture(self.mask, max_pixels=compute_pixel_limit(picture.size))
            check_picture_size(painted, picture.size, f"the picture of the layer {picture.layer}")
            bright = painted.rgba[..., :3].mean(axis=-1, keepdims=True) * painted.rgba[..., 3:]
            region = region * np.clip(resize_image(np.ascontiguousarray(bright), picture.size)[..., 0], 0, 1)
        if region.max(initial=0) < 0.5:
            raise bad_input(
                "there is nothing to edit",
                where=str(self.mask or self.run.canonical),
                why=f"the mask chooses no texel of the layer {layer} that the video shows"
                if self.mask
                else f"the video shows no texel of the layer {layer}",
                fix=f"paint the mask white on black over {self.run.canonical / layer}.png",
            )
        return region

    @property
    def frame_count(self) -> int:
        """How many frames the run was trained on."""
        return len(read_source_metadata(self.run)[1])

    def read_frame(self, t: int) -> UInt8[np.ndarray, "height width 3"]:
        """Reads the source's frame at index `t` of the run, as it was."""
        metadata, chosen = read_source_metadata(self.run)
        k = chosen[t]
        return next(iter(source_frames(metadata, range(k, k + 1))))

    def read_frame_maps(self, t: int, size: tuple[int, int]) -> FrameMaps:
        """Reads where frame `t` of the run lies in the canonical pictures, at `size` (width, height)."""
        return read_frame_maps(self.maps, self.pictures, t, size)
