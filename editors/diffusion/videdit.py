"""A named part of a layer, generated along its own edges: the recipe of VidEdit for atlases.

VidEdit (Couairon, Rambour, Haugeard and Thome, 2023, section 3): the region is cut out of the atlas, noised, and
denoised by a ControlNet of soft edges with its outside kept at every step; then it is put back with a soft edge, on the
source's own frames. There a panoptic segmenter finds the region and a network (HED) the edges; here words (`--region`)
or a mask find the one, and gradients of brightness are the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.base import EditorResult, Report, Source
from editors.diffusion.conditions import Follow, controls_for, soft_edges
from editors.diffusion.inpaint import repaint
from editors.diffusion.region import Regional, open_regions
from editors.diffusion.settings import wrong_setting
from editors.diffusion.wrapper import load_model


@dataclass(frozen=True, kw_only=True)
class VidEdit(Regional):
    """VidEdit (Couairon et al., 2023): a region in a new look, with its structure kept by soft edges."""

    name: ClassVar[str] = "videdit"

    control: str
    """A folder of a ControlNet of soft edges (HED, scribble) for the model."""
    control_scale: float = 1.0
    """How strictly the edges are followed; 1 as trained."""
    strength: float = 0.8
    """How much of the picture in the region is lost to noise first, in (0, 1]: what is left keeps the colours near."""
    feather: float = 4.0
    """Pixels of that size over which the edit fades in from the edge of the region."""
    steps: int = 50
    """Steps of a whole run from noise to a picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.control_scale < float("inf"):
            raise wrong_setting("control-scale", self.control_scale, "it is 0 or more", "--control-scale 1")

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """Repaints the region of each layer in its new look."""
        model = load_model(self.weights())
        canvases, notes = open_regions(model, source, self, report)
        follows = [Follow("soft-edges", self.control, self.control_scale)]
        controls = controls_for(
            model, canvases, follows, lambda _, canvas: soft_edges(canvas.image), self.unsafe_weights
        )
        return repaint(model, canvases, self, report, controls, notes)
