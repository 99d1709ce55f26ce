"""`videdit`: generates a described part of a layer along its edges: the method of VidEdit for atlases.

VidEdit (Couairon, Rambour, Haugeard and Thome, 2023, section 3): the region is cropped from the atlas, noised, and
denoised with a ControlNet of soft edges while its surroundings are kept at every step; then it is blended back with a
soft edge, on the frames of the source. In the paper a panoptic segmenter finds the region and a network (HED) the
edges; here words (`--region`) or a mask select the region, and gradients of brightness give the edges.
"""

from __future__ import annotations

from dataclasses import dataclass

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.common.control_images import detect_soft_edges, load_controls
from editors.diffusion.common.region import RegionEditor, open_regions
from editors.diffusion.methods.inpaint import repaint_regions
from editors.options.controls import ControlRequest
from editors.options.regions import VidEditOptions
from neural_fields.core.progress import ProgressReporter


@dataclass(frozen=True, kw_only=True)
class VidEdit(VidEditOptions, RegionEditor):
    """Give a region a new look and keep its structure by soft edges: VidEdit (Couairon et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Repaints the region of each layer in its new look.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model or a ControlNet that cannot be used, or nothing to edit (exit 3).
        """
        model = load_model(self.weights_source(), report)
        canvases, notes = open_regions(model, source, self, report)
        follows = [ControlRequest("soft-edges", self.control, self.control_scale)]
        controls = load_controls(
            model, canvases, follows, lambda _, canvas: detect_soft_edges(canvas.image), self.unsafe_weights
        )
        return repaint_regions(model, canvases, self, report, controls, notes)
