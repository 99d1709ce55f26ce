"""`adjust`: changes exposure, curves, hue, saturation, blur and sharpness of a layer, or of a masked region of it.

The adjustment is stored as numbers and applied to the pixels of the frames that show the layer: the grain and detail of
the video are preserved, and pixels that do not show the layer do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.options.effects import AdjustOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter
from neural_fields.imaging.grade import CURVES, Curve, Grade


@dataclass(frozen=True, kw_only=True)
class Adjust(AdjustOptions, PlanarEditor):
    """Change light, color and sharpness of a layer, or with --mask of a region of it, on every frame."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Makes the adjustment of the chosen layers.

        Args:
            source: the run, and the layers to adjust.
            report: called with the progress.

        Raises:
            UserError: a setting out of range, a bad curve, or nothing that would change.
        """
        grade = self.make_grade(source)
        masks = {}
        if source.mask is not None:
            (layer,) = source.layers
            region = source.read_region(layer)
            rgba = np.concatenate([np.ones((*region.shape, 3), np.float32), region[..., None]], axis=-1)
            masks[layer] = Overlay(rgba * (region[..., None] > 0), source.pictures[layer].box)
        return EditorResult({}, effects=EditEffects(grades=dict.fromkeys(source.layers, grade), masks=masks))

    def make_grade(self, source: EditSource) -> Grade:
        """Converts the settings to a grade of the run's frames.

        Raises:
            UserError: a setting out of range, a bad curve, or nothing that would change.
        """
        longer = max(source.run.source_size)
        try:
            curves: dict[str, Curve] = {}
            for name in CURVES:
                text = getattr(self, name)  # points, such as "0,0 0.5,0.6 1,1"
                try:
                    points = [tuple(float(number) for number in word.split(",")) for word in text.split()]
                except ValueError:
                    points = [()]
                if any(len(point) != 2 or not np.isfinite(point).all() for point in points) or len(points) > 100:
                    raise ValueError(f"{name} {text!r} is not a list of points")
                curves[name] = tuple((x, y) for x, y in points)
            found = Grade(
                exposure=self.exposure,
                hue=self.hue,
                saturation=self.saturation,
                sharpen=self.sharpen,
                blur=_to_frame_share("blur", self.blur, longer),
                radius=_to_frame_share("radius", self.radius, longer),
                **curves,
            )
        except ValueError as problem:
            fix = '--exposure 0.5, or --curve "0,0 0.5,0.6 1,1"'
            raise bad_input(f"the layer cannot be adjusted so: {problem}", fix=fix) from None
        if found.does_nothing:
            raise bad_input("nothing to adjust", why="all settings leave colors as they are", fix="--exposure 0.5")
        return found


def _to_frame_share(name: str, pixels: float, longer: int) -> float:
    """Converts pixels to a share of the frame's longer side."""
    if not 0 <= pixels <= longer / 10:
        raise ValueError(f"{name} is {pixels:g} pixels; it is 0 to {longer // 10}")
    return pixels / longer
