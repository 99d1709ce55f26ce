"""`img2img`: adds noise to the region, and denoises it with the prompt.

SDEdit (Meng et al., ICLR 2022, section 3.2 and algorithm 1): little noise keeps the layout and changes the appearance,
more noise follows the prompt more closely. The picture around the region is preserved (their section 3.3, with latents
instead of pixels).
"""

from __future__ import annotations

from dataclasses import dataclass

from editors.diffusion.methods.inpaint import Inpaint
from editors.options.regions import Img2ImgOptions


@dataclass(frozen=True, kw_only=True)
class Img2Img(Img2ImgOptions, Inpaint):
    """Change the look of a layer and keep its layout as far as --strength allows: SDEdit (Meng et al., 2022)."""
