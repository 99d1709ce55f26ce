"""Refuses nonsense of models: values that are no numbers, or one color where a picture was asked for.

In half precision many models compute NaN, and then show black. All editors that take pictures from networks ask here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.nonsense import FIX, make_nonsense_error


@dataclass(frozen=True)
class ModelPictureSettings:
    """Settings of telling a picture from one color. Levels are of 255."""

    flat_levels: float = 1.5  # standard deviation of every channel up to which a picture has one color
    varied_levels: float = 3.0  # of some channel, from which the picture before it had more than one
    gray_levels: float = 40.0  # largest difference of the channels of a color that counts as black, gray or white
    near_levels: float = 6.0  # largest difference of colors that count as the same
    familiar_share: float = 0.01  # of the picture before: from there on the one color may be meant
    min_pixels: int = 64  # fewer may well have one color


DEFAULTS = ModelPictureSettings()


def check_finite(values: Tensor, source: str) -> None:
    """Refuses values that are no numbers.

    Args:
        values: what a model computed.
        source: what computed them, for the message.

    Raises:
        UserError: some are NaN or infinite (exit 3).
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        share = 1 - float(finite.float().mean())
        raise make_nonsense_error(f"{source} computed values that are no numbers (NaN, {share:.3g} of all)")


def check_model_picture(
    picture: Float[Tensor, "n 3 height width"],
    given: Float[Tensor, "#n 3 height width"],
    region: Float[Tensor, "#n 1 height width"] | None = None,
    fix: str = FIX,
    settings: ModelPictureSettings = DEFAULTS,
) -> None:
    """Refuses pictures that are no numbers, or black, gray or white all over where those before them were not.

    One color is taken where the picture before had that color somewhere, or had one color there: a hole in a white wall
    becomes white.

    Args:
        picture: what the model made, RGB in [0, 1].
        given: what it was to edit.
        region: where the picture may change, in [0, 1]; None: everywhere.
        fix: what to change, for the message.
        settings: what counts as one color.

    Raises:
        UserError: see above (exit 3).
    """
    check_finite(picture, "the model")
    for index in range(len(picture)):
        made = picture[index].detach().float().cpu().flatten(1)
        before = given[index % len(given)].detach().float().cpu().flatten(1)
        inside = torch.ones(made.shape[1], dtype=torch.bool)
        if region is not None:
            inside = region[index % len(region)].detach().cpu().flatten() > 0.5
        for where, everywhere in ((inside, False), (torch.ones_like(inside), True)):
            if int(where.sum()) < settings.min_pixels:
                continue
            color = made[:, where].mean(dim=1, keepdim=True)
            is_flat = bool((made[:, where].std(dim=1) < settings.flat_levels / 255).all())
            was_varied = bool((before[:, where].std(dim=1) > settings.varied_levels / 255).any())
            near = ((before - color).abs() < settings.near_levels / 255).all(dim=0).float().mean()
            is_gray = float(color.max() - color.min()) < settings.gray_levels / 255
            if is_flat and is_gray and was_varied and float(near) < settings.familiar_share:
                red, green, blue = (255 * color[:, 0]).round().int().tolist()
                what = "a picture" if everywhere else "a region"
                raise make_nonsense_error(f"the model made {what} of one color, #{red:02x}{green:02x}{blue:02x}", fix)
