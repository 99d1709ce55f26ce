"""`controlnet`: generates the region so that it follows edges, depth, a pose or another picture.

ControlNet (Zhang, Rao and Agrawala, ICCV 2023): a copy of the denoiser's first half reads the control picture and adds
its outputs, multiplied by a scale, to those of the denoiser (section 3.4; several ControlNets are summed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import Images, load_model
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.canvas import Canvas
from editors.diffusion.common.control_images import (
    detect_edges,
    detect_soft_edges,
    load_controls,
    load_depth_estimator,
    read_control_picture,
)
from editors.diffusion.common.region import RegionEditor, open_regions
from editors.diffusion.methods.inpaint import repaint_regions
from editors.options.controls import ControlRequest, parse_control, parse_control_pictures
from editors.options.regions import ControlNetOptions
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter

DepthEstimator = Callable[[Images], Images] | None


@dataclass(frozen=True, kw_only=True)
class ControlNet(ControlNetOptions, RegionEditor):
    """Regenerate a layer along its edges, its depth or your picture: ControlNet (Zhang et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Generates the region of each layer along its control pictures.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model, a ControlNet or a picture that cannot be used, or nothing to edit (exit 3).
        """
        given = parse_control_pictures(self.control_picture)
        if given and len(source.layers) > 1:
            why = "a control picture belongs to one canonical picture"
            raise bad_input("one control picture for several layers", why=why, fix=f"--layer {source.layers[0]}")
        model = load_model(self.weights_source(), report)
        canvases, notes = open_regions(model, source, self, report)
        follows = [parse_control(text) for text in self.control]
        estimate_depth = None
        if self.depth_model and "depth" not in given:
            estimate_depth = load_depth_estimator(WeightsSource(self.depth_model, "cpu", self.unsafe_weights))
        make_picture = partial(self._make_control_picture, source=source, given=given, estimate_depth=estimate_depth)
        controls = load_controls(model, canvases, follows, make_picture, self.unsafe_weights)
        return repaint_regions(model, canvases, self, report, controls, notes)

    def _make_control_picture(
        self,
        follow: ControlRequest,
        canvas: Canvas,
        source: EditSource,
        given: Mapping[str, Path],
        estimate_depth: DepthEstimator,
    ) -> Images:
        """Makes the control picture of a canvas.

        Args:
            follow: the ControlNet and the kind of its picture.
            canvas: canvas of the layer.
            source: the run.
            given: the user's pictures, by kind.
            estimate_depth: estimates depth; None without a depth network.
        """
        if follow.kind in given:
            return read_control_picture(given[follow.kind], source, canvas)
        if follow.kind == "edges":
            return detect_edges(canvas.image, *self.edge_thresholds)
        if follow.kind == "soft-edges" or estimate_depth is None:
            return detect_soft_edges(canvas.image)
        return estimate_depth(canvas.image)
