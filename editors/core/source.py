"""The data that an editor of a video reads: the pictures, frames and masks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from editors.inputs.picture_input import PictureInput, take_picture
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.paint_lifting import FrameMaps, read_frame_maps
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import bad_input
from neural_fields.imaging.alpha import resize_image
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.compositor import canonical_painters


@dataclass(frozen=True)
class EditSource:
    """Gives an editor access to the run of a video.

    Attributes:
        run: the open run.
        layers: names of the layers to edit, front to back.
        mask: a picture of the shape of the layer's canonical picture, bright where the edit may go; None for the
            entire layer. Only with a single layer.
    """

    run: PlanarRun
    layers: tuple[str, ...]
    mask: PictureInput | None = None

    @property
    def maps(self) -> Maps:
        """The baked maps of the run."""
        return self.run.maps

    @property
    def only_layer(self) -> str | None:
        """The layer to edit if there is only one; None if there are several to choose from."""
        return self.layers[0] if len(self.layers) == 1 else None

    @cached_property
    def pictures(self) -> Mapping[str, CanonicalImage]:
        """The canonical pictures of all layers, with the active edits painted on them."""
        found = dict(self.run.canonicals)
        for edit in self.run.active_edits():
            for painter in canonical_painters(edit):
                found[painter.layer] = painter.paint(found[painter.layer])
        return found

    def read_region(self, layer: str) -> Float[np.ndarray, "height width"]:
        """Reads the region in which a layer may be edited: the mask, or all texels that the video shows.

        Args:
            layer: name of the layer.

        Returns:
            A mask in [0, 1] at the size of the layer's picture.

        Raises:
            UserError: the mask has a different shape than the picture, or selects nothing that the video shows
                (exit 3).
        """
        picture = self.pictures[layer]
        # Not the coverage of `picture`: edits may have painted a little beyond what was seen.
        region = (self.run.canonical(layer).rgba[..., 3] > 0).astype(np.float32)
        if self.mask is not None:
            painted = take_picture(self.mask, picture.rgba.copy, max_pixels=compute_pixel_limit(picture.size))
            check_picture_size(painted, picture.size, f"the picture of the layer {picture.layer}")
            bright = painted.rgba[..., :3].mean(axis=-1, keepdims=True) * painted.rgba[..., 3:]
            region = region * np.clip(resize_image(np.ascontiguousarray(bright), picture.size)[..., 0], 0, 1)
        if region.max(initial=0) < 0.5:
            raise bad_input(
                "there is nothing to edit",
                where=str(self.mask if isinstance(self.mask, str | Path) else self.run.files.canonical),
                why=f"the video shows no texel of the layer {layer}"
                if self.mask is None
                else f"the mask chooses no texel of the layer {layer} that the video shows",
                fix=f"paint the mask white on black over {self.run.files.canonical / layer}.png",
            )
        return region

    @property
    def frame_count(self) -> int:
        """The number of frames that the run was trained on."""
        return self.run.frame_count

    def read_frame(self, t: int) -> UInt8[np.ndarray, "height width 3"]:
        """Reads the original frame of the source video at index `t` of the run."""
        return self.run.read_frame(self.run.frames[t])

    def read_frame_maps(self, t: int, size: tuple[int, int]) -> FrameMaps:
        """Reads the maps of one frame into the canonical pictures.

        Args:
            t: index of the frame in the run.
            size: (width, height) in pixels at which the maps are sampled.
        """
        return read_frame_maps(self.maps, self.pictures, t, size)
