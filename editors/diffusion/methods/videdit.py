"""A named part of a layer, generated along its own edges: the recipe of VidEdit for atlases.

VidEdit (Couairon, Rambour, Haugeard and Thome, 2023, section 3): the region is cut out of the atlas, noised, and
denoised by a ControlNet of soft edges with its outside kept at every step; then it is put back with a soft edge, on the
source's own frames. There a panoptic segmenter finds the region and a network (HED) the edges; here words (`--region`)
or a mask find the one, and gradients of brightness are the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.settings import wrong_setting_error
from editors.diffusion.common.control_images import ControlRequest, detect_soft_edges, load_controls
from editors.diffusion.common.region import RegionalSettings, open_regions
from editors.diffusion.methods.inpaint import repaint_regions


@dataclass(frozen=True, kw_only=True)
class VidEdit(RegionalSettings):
    """VidEdit (Couairon et al., 2023): a region in a new look, with its structure kept by soft edges."""

    name: ClassVar[str] = "videdit"

    control: str
    """A folder of a ControlNet of soft edges (HED, scribble) for the model."""
    control_scale: float = 1.0
    """How strictly the edges are followed; 1 as trained."""
    strength: float = 0.8
    """How much of the picture in the region is lost to noise first, in (0, 1]: what is left keeps the colors near."""
    feather: float = 4.0
    """Pixels of that size over which the edit fades in from the edge of the region."""
    steps: int = 50
    """Steps of a whole run from noise to a picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.control_scale < float("inf"):
            raise wrong_setting_error("control-scale", self.control_scale, "it is 0 or more", "--control-scale 1")

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Repaints the region of each layer in its new look."""
        model = load_model(self.weights_source())
        canvases, notes = open_regions(model, source, self, report)
        follows = [ControlRequest("soft-edges", self.control, self.control_scale)]
        controls = load_controls(
            model, canvases, follows, lambda _, canvas: detect_soft_edges(canvas.image), self.unsafe_weights
        )
        return repaint_regions(model, canvases, self, report, controls, notes)
