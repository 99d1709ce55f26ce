"""`img2img`: adds noise to the region, and denoises it with the prompt.

SDEdit (Meng et al., ICLR 2022, section 3.2 and algorithm 1): little noise keeps the layout and changes the appearance,
more noise follows the prompt more closely. The picture around the region is preserved (their section 3.3, with latents
instead of pixels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.common.region import RegionalSettings, open_regions
from editors.diffusion.methods.inpaint import repaint_regions
from neural_fields.core.progress import ProgressReporter


@dataclass(frozen=True, kw_only=True)
class Img2Img(RegionalSettings, PlanarEditor):
    """Change the look of a layer and keep its layout as far as --strength allows: SDEdit (Meng et al., 2022)."""

    name: ClassVar[str] = "img2img"

    strength: float = 0.6
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; less stays closer to the original."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Repaints the region of each layer in the look that the prompt describes.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model that cannot be used, or nothing to edit (exit 3).
        """
        model = load_model(self.weights_source())
        canvases, notes = open_regions(model, source, self, report)
        return repaint_regions(model, canvases, self, report, notes=notes)
