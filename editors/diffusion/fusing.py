"""From edited keyframes to overlays: merged in the canonical pictures, and completed where no keyframe shows them.

StableVideo (Chai et al., ICCV 2023, 3.3) merges its keyframes by the median of their atlases, and offers a small
network that learns what the median lost, from the difference between the edited keyframes and the atlas rendered into
them. As released the network gets no gradient. Here that difference itself goes back into the canonical picture, also
by the median, a few times (`lift.merge`): nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from editors.base import EditorResult, Report
from editors.diffusion.canvas import filled
from editors.diffusion.keyframes import SHOWN, Keyframes, Part
from editors.diffusion.region import inpainting_inputs
from editors.diffusion.sampling import denoise_region, region_of
from editors.diffusion.schedule import Latents, Schedule
from editors.diffusion.settings import Prompted
from editors.diffusion.wrapper import DiffusionModel, Text
from editors.lift import Merged, Places, merge, pull

FINE = 2  # lookups for each pixel of a keyframe along a side, so that no texel is left out where a layer is stretched
SEEN = 0.3  # lookups that a texel needs to count as seen
THIN = 5  # pixels; a part that no keyframe shows and that is thinner than this is filled from around
ENOUGH = 0.01  # of the region: less than this needs no model, and is not worth telling
DISAGREE = 0.1  # of a colour's range; keyframes further apart than this say different things


@dataclass(frozen=True)
class Fused:
    """The pictures that keyframes show of a layer, merged on the pixels of its canvas.

    Attributes:
        part: the layer in the keyframes.
        merged: RGB without lighting.
    """

    part: Part
    merged: Merged

    @property
    def seen(self) -> Bool[Tensor, "height width"]:
        """Pixels of the canvas that some keyframe shows; single ones between such are seen too."""
        known = (self.merged.weight > SEEN).numpy().astype(np.uint8)
        return torch.from_numpy(cv2.morphologyEx(known, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)

    def picture(self, made: Float[Tensor, "1 3 height width"] | None = None) -> Float[Tensor, "1 3 height width"]:
        """The canvas with the merged picture on it; what is not known is smooth from around.

        Args:
            made: another picture, for the parts that are `missing`.
        """
        known, colours = self.merged.weight > SEEN, self.merged.values.clamp(0, 1)
        if made is not None:
            there = self.missing
            known, colours = known | there, torch.where(there & ~known, made[0], colours)
        image = filled(colours.movedim(0, 2).contiguous().numpy(), known.numpy())
        return torch.from_numpy(image).movedim(2, 0)[None].contiguous()

    @property
    def missing(self) -> Bool[Tensor, "height width"]:
        """Parts of the region that no keyframe shows; not those thinner than a few pixels, which their rims fill."""
        unseen = ((self.part.region > SHOWN) & ~self.seen).numpy().astype(np.uint8)
        return torch.from_numpy(cv2.morphologyEx(unseen, cv2.MORPH_OPEN, np.ones((THIN, THIN), np.uint8)) > 0)

    @property
    def shares(self) -> tuple[float, float]:
        """Of the region: how much is missing; of what keyframes show: on how much they disagree."""
        region = self.part.region > SHOWN
        inside = self.seen & region
        conflicts = self.merged.conflicts(DISAGREE) & inside
        return float(self.missing.sum() / region.sum().clamp(min=1)), float(conflicts.sum() / inside.sum().clamp(min=1))


def fused(keyframes: Keyframes, edited: Float[Tensor, "n 3 height width"]) -> dict[str, Fused]:
    """What edited keyframes make of the canonical picture of each layer: the weighted median, and what it missed."""
    found = {}
    for layer, part in keyframes.parts.items():
        # Light is no part of the canonical picture; where there is next to none it cannot be divided out.
        colours = (edited.to(part.gain) / part.gain.clamp(min=0.05)).clamp(0, 1)
        places = _finer(part.places())
        size = places.weight.shape[1:]
        found[layer] = Fused(part, merge(interpolate(colours, size, mode="bilinear", align_corners=False), places))
    return found


def shown_in(
    keyframes: Keyframes, found: Mapping[str, Fused]
) -> tuple[Float[Tensor, "n 3 height width"], Float[Tensor, "n 1 height width"]]:
    """Merged pictures as keyframes see them, over the keyframes' own; and how much of each pixel they fill."""
    images, share = keyframes.images, torch.zeros_like(keyframes.images[:, :1])
    for layer, one in found.items():
        part = keyframes.parts[layer]
        places = part.places()
        known = one.seen.float()[None]
        covers = (pull(known, places) > 0.5) * part.weight[:, None]
        colour = (pull(one.picture()[0], places) * part.gain).clamp(0, 1)
        images, share = images + covers * (colour - images), share + covers
    return images.clamp(0, 1), share.clamp(0, 1)


def completed(
    model: DiffusionModel,
    text: Text,
    settings: Prompted,
    keyframes: Keyframes,
    found: Mapping[str, Fused],
    report: Report,
) -> EditorResult:
    """Overlays of merged pictures. What no keyframe shows is inpainted with the same prompt in the canonical picture.

    Blended Latent Diffusion (Avrahami et al., 2023), as the editor `inpaint` does it; what is thin,
    or less than a hundredth of the region, is filled smoothly instead.
    """
    overlays, facts = {}, {}
    notes = [f"keyframes: {', '.join(map(str, keyframes.numbers))} of the source"]
    for layer, one in found.items():
        canvas, picture = one.part.canvas, one.picture()
        missing, conflicts = one.shares
        if missing > ENOUGH:
            around = canvas.image + canvas.region * (picture - canvas.image)
            picture = one.picture(_inpainted(model, text, settings, around, one.missing[None, None], report))
            notes.append(f"{missing:.0%} of the region of {layer} is in no keyframe and was inpainted")
        if conflicts > ENOUGH:
            notes.append(f"the keyframes disagree on {conflicts:.0%} of what they show of {layer}")
        overlays[layer] = canvas.overlay(picture)
        facts[layer] = {"not_in_keyframes": round(missing, 4), "disagreement": round(conflicts, 4)}
    return EditorResult(overlays, (*model.notes, *notes), {"keyframes": list(keyframes.numbers), "layers_shown": facts})


def started(
    original: Latents,
    noise: Latents,
    inside: Float[Tensor, "#n 1 height width"],
    time: int,
    schedule: Schedule,
    strength: float,
) -> Latents:
    """Latents of the first time: the original noised so far; of strength 1, nothing of it in the region."""
    noised = schedule.add_noise(original, noise, time)
    return noised if strength < 1 else inside * noise + (1 - inside) * noised


def _inpainted(
    model: DiffusionModel,
    text: Text,
    settings: Prompted,
    picture: Float[Tensor, "1 3 height width"],
    missing: Bool[Tensor, "1 1 height width"],
    report: Report,
) -> Float[Tensor, "1 3 height width"]:
    """A picture with a part made anew."""
    image = picture.to(model.device)
    original = model.encode(image)
    noise = model.noise(original, settings.seed)
    inside = region_of(missing.float().to(model.device), original)
    extra = inpainting_inputs(model, image, inside)
    times = model.schedule.times(settings.steps)
    latents = denoise_region(
        inside * noise + (1 - inside) * model.schedule.add_noise(original, noise, times[0]),
        times,
        model.schedule,
        lambda noised, time: model.predict(noised, time, text, settings.guidance, extra=extra),
        original=original,
        noise=noise,
        region=inside,
        step=lambda done, total: report("inpainting what no keyframe shows", done, total),
    )
    return model.decode(latents).cpu()


def _finer(places: Places) -> Places:
    """The same view with more pixels. At its borders positions repeat, as the colours do that go with them."""
    texels = interpolate(places.texels.movedim(3, 1), scale_factor=FINE, mode="bilinear", align_corners=False)
    weight = places.weight.repeat_interleave(FINE, dim=1).repeat_interleave(FINE, dim=2)
    return Places(texels.movedim(1, 3).contiguous(), weight, places.size)
