"""`videdit`: generates a described part of a layer along its edges: the method of VidEdit for atlases.

VidEdit (Couairon, Rambour, Haugeard and Thome, 2023, section 3): the region is cropped from the atlas, noised, and
denoised with a ControlNet of soft edges while its surroundings are kept at every step; then it is blended back with a
soft edge, on the frames of the source. In the paper a panoptic segmenter finds the region and a network (HED) the
edges; here words (`--region`) or a mask select the region, and gradients of brightness give the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.settings import wrong_setting_error
from editors.diffusion.common.control_images import ControlRequest, detect_soft_edges, load_controls
from editors.diffusion.common.region import RegionEditor, open_regions
from editors.diffusion.methods.inpaint import repaint_regions
from neural_fields.core.progress import ProgressReporter


@dataclass(frozen=True, kw_only=True)
class VidEdit(RegionEditor):
    """Give a region a new look and keep its structure by soft edges: VidEdit (Couairon et al., 2023)."""

    name: ClassVar[str] = "videdit"

    control: str
    """A folder of a ControlNet of soft edges (HED, scribble) for the model."""
    control_scale: float = 1.0
    """Strength of the edges' influence; 1 as trained."""
    strength: float = 0.8
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; less stays closer to the colors."""
    feather: float = 4.0
    """Pixels of that size over which the edit fades in from the edge of the region."""
    steps: int = 50
    """Number of denoising steps from pure noise to a picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.control_scale < float("inf"):
            raise wrong_setting_error("control-scale", self.control_scale, "it is 0 or more", "--control-scale 1")

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Repaints the region of each layer in its new look.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model or a ControlNet that cannot be used, or nothing to edit (exit 3).
        """
        model = load_model(self.weights_source())
        canvases, notes = open_regions(model, source, self, report)
        follows = [ControlRequest("soft-edges", self.control, self.control_scale)]
        controls = load_controls(
            model, canvases, follows, lambda _, canvas: detect_soft_edges(canvas.image), self.unsafe_weights
        )
        return repaint_regions(model, canvases, self, report, controls, notes)
