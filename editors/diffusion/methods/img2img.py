"""`img2img`: adds noise to the region, and denoises it with the prompt.

SDEdit (Meng et al., ICLR 2022, section 3.2 and algorithm 1): little noise keeps the layout and changes the appearance,
more noise follows the prompt more closely. The picture around the region is preserved (their section 3.3, with latents
instead of pixels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editors.diffusion.methods.inpaint import Inpaint


@dataclass(frozen=True, kw_only=True)
class Img2Img(Inpaint):
    """Change the look of a layer and keep its layout as far as --strength allows: SDEdit (Meng et al., 2022)."""

    name: ClassVar[str] = "img2img"

    strength: float = 0.6
    """Share of the denoising steps that run, in (0, 1]: the amount of noise; less stays closer to the original."""
