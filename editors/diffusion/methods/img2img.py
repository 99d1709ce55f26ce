"""Image to image: the region is noised so far, and denoised from there with the prompt.

SDEdit (Meng et al., ICLR 2022, section 3.2 and algorithm 1): little noise keeps the layout and changes the look, more
noise follows the prompt further. Around the region the picture stays (their section 3.3, with latents for pixels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.common.region import RegionalSettings, open_regions
from editors.diffusion.methods.inpaint import repaint_regions


@dataclass(frozen=True, kw_only=True)
class Img2Img(RegionalSettings):
    """SDEdit (Meng et al., 2022): the layer in another look, with its layout kept as far as the strength says."""

    name: ClassVar[str] = "img2img"

    strength: float = 0.6
    """How far the region is taken to noise first, in (0, 1]; less stays nearer to what is there."""

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Repaints the region of each layer in the look that the prompt asks for."""
        model = load_model(self.weights_source())
        canvases, notes = open_regions(model, source, self, report)
        return repaint_regions(model, canvases, self, report, notes=notes)
