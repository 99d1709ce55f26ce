"""Converts edited keyframes to overlays: merges them in the canonical pictures, and completes texels that none shows.

StableVideo (Chai et al., ICCV 2023, 3.3) merges its keyframes by the median of their atlases, and has a small network
that learns the loss of the median from the difference between the edited keyframes and the atlas rendered into them. In
the released code the network gets no gradient. Here that difference is added back to the canonical picture, also by the
median, a few times (`merge_frames`): nothing is trained.
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

from editors.core.editor import EditorResult
from editors.core.model_pictures import check_model_picture
from editors.diffusion.backend.diffusers_model import DiffusionModel, EncodedPrompt
from editors.diffusion.backend.noise_schedule import Latents, NoiseSchedule
from editors.diffusion.backend.sampling import denoise_region, shrink_mask_to_latents
from editors.diffusion.backend.settings import DiffusionEditor
from editors.diffusion.common.canvas import fill_holes
from editors.diffusion.common.keyframes import Keyframes, LayerKeyframes
from editors.diffusion.common.region import make_inpainting_inputs
from editors.inputs.merging import MergedFrames, TexelFootprints, merge_frames, sample_frames
from neural_fields.core.progress import ProgressReporter, rename_stage


@dataclass(frozen=True)
class KeyframeFusingSettings:
    """Settings of merging edited keyframes into canonical pictures."""

    supersampling: int = (
        2  # lookups for each pixel along a side, so that no texel is left out where a layer is stretched
    )
    min_lookups: float = 0.3  # least number of lookups of a seen texel
    min_region: float = 0.5  # opacity of the region from which a pixel of the canvas belongs to it
    min_cover: float = 0.5  # of a keyframe's pixel by known texels: less of it shows none of the merged picture
    min_gain: float = 0.05  # lighting below which it cannot be divided out
    min_hole_px: int = 5  # holes thinner than this are filled smoothly from their surroundings
    min_share: float = 0.01  # least share of the region for inpainting, and for a note
    max_disagreement: float = 0.1  # of a color's range; keyframes further apart than this disagree


DEFAULTS = KeyframeFusingSettings()


@dataclass(frozen=True)
class FusedKeyframes:
    """Holds the keyframes of a layer, merged on the pixels of its canvas.

    Attributes:
        part: the layer in the keyframes.
        merged: RGB without lighting.
        settings: thresholds of the merging.
    """

    part: LayerKeyframes
    merged: MergedFrames
    settings: KeyframeFusingSettings = DEFAULTS

    @property
    def seen_mask(self) -> Bool[Tensor, "height width"]:
        """Pixels of the canvas that at least one keyframe shows, with single gaps closed."""
        known = (self.merged.weight > self.settings.min_lookups).numpy().astype(np.uint8)
        return torch.from_numpy(cv2.morphologyEx(known, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)

    def compose_picture(
        self, inpainted: Float[Tensor, "1 3 height width"] | None = None
    ) -> Float[Tensor, "1 3 height width"]:
        """Composes the canvas with the merged picture; unknown parts are filled smoothly from their surroundings.

        Args:
            inpainted: another picture in [0, 1], for the parts in `missing_mask`.
        """
        known, colors = self.merged.weight > self.settings.min_lookups, self.merged.values.clamp(0, 1)
        if inpainted is not None:
            missing = self.missing_mask
            known, colors = known | missing, torch.where(missing & ~known, inpainted[0], colors)
        image = fill_holes(colors.movedim(0, 2).contiguous().numpy(), known.numpy())
        return torch.from_numpy(image).movedim(2, 0)[None].contiguous()

    @property
    def missing_mask(self) -> Bool[Tensor, "height width"]:
        """Parts of the region that no keyframe shows, without those that are only a few pixels thin."""
        unseen = ((self.part.region > self.settings.min_region) & ~self.seen_mask).numpy().astype(np.uint8)
        kernel = np.ones((self.settings.min_hole_px, self.settings.min_hole_px), np.uint8)
        return torch.from_numpy(cv2.morphologyEx(unseen, cv2.MORPH_OPEN, kernel) > 0)

    @property
    def missing_and_conflict_shares(self) -> tuple[float, float]:
        """The share of the region that is missing, and the share of its seen part on which keyframes disagree."""
        region = self.part.region > self.settings.min_region
        inside = self.seen_mask & region
        conflicts = self.merged.find_conflicts(self.settings.max_disagreement) & inside
        return float(self.missing_mask.sum() / region.sum().clamp(min=1)), float(
            conflicts.sum() / inside.sum().clamp(min=1)
        )


def fuse_keyframes(
    keyframes: Keyframes, edited: Float[Tensor, "n 3 height width"], settings: KeyframeFusingSettings = DEFAULTS
) -> dict[str, FusedKeyframes]:
    """Merges edited keyframes into the canonical picture of each layer, by the weighted median and its residuals.

    Args:
        keyframes: the keyframes, with the positions of the layers in them.
        edited: the keyframes after the edit, RGB in [0, 1].
        settings: thresholds of the merging.

    Returns:
        The merged picture of each layer, by its name.

    Raises:
        UserError: an edited keyframe is no picture (exit 3).
    """
    check_model_picture(edited, keyframes.images, keyframes.change_mask)
    merged = {}
    for layer, part in keyframes.layers.items():
        # Light is no part of the canonical picture.
        colors = (edited.to(part.gain) / part.gain.clamp(min=settings.min_gain)).clamp(0, 1)
        # The same view with more pixels. At its borders positions repeat, as the colors do that go with them.
        coarse, factor = part.locate_pixels(), settings.supersampling
        texels = interpolate(coarse.texels.movedim(3, 1), scale_factor=factor, mode="bilinear", align_corners=False)
        weight = coarse.weight.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        places = TexelFootprints(texels.movedim(1, 3).contiguous(), weight, coarse.size)
        fine_colors = interpolate(colors, weight.shape[1:], mode="bilinear", align_corners=False)
        merged[layer] = FusedKeyframes(part, merge_frames(fine_colors, places), settings)
    return merged


def render_into_keyframes(
    keyframes: Keyframes, fused_layers: Mapping[str, FusedKeyframes]
) -> tuple[Float[Tensor, "n 3 height width"], Float[Tensor, "n 1 height width"]]:
    """Renders merged pictures into keyframes.

    Args:
        keyframes: the keyframes to render into; they may differ from those that were merged.
        fused_layers: the merged picture of each layer, by name.

    Returns:
        The keyframes with the merged pictures composited over them, and the coverage of each pixel by these, in [0, 1].
    """
    images, share = keyframes.images, torch.zeros_like(keyframes.images[:, :1])
    for layer, one in fused_layers.items():
        part = keyframes.layers[layer]
        places = part.locate_pixels()
        known = one.seen_mask.float()[None]
        cover = (sample_frames(known, places) > one.settings.min_cover) * part.weight[:, None]
        color = (sample_frames(one.compose_picture()[0], places) * part.gain).clamp(0, 1)
        images, share = images + cover * (color - images), share + cover
    return images.clamp(0, 1), share.clamp(0, 1)


def make_overlays(
    model: DiffusionModel,
    text: EncodedPrompt,
    editor: DiffusionEditor,
    keyframes: Keyframes,
    fused_layers: Mapping[str, FusedKeyframes],
    report: ProgressReporter,
) -> EditorResult:
    """Makes overlays of merged pictures, and inpaints texels that no keyframe shows with the same prompt.

    The inpainting is Blended Latent Diffusion (Avrahami et al., 2023) in the canonical picture, as in the editor
    `inpaint`; thin parts, and parts below a hundredth of the region, are filled smoothly instead.

    Args:
        model: the model that edited the keyframes.
        text: the encoded prompt.
        editor: guidance, steps and seed.
        keyframes: the keyframes that were merged.
        fused_layers: the merged picture of each layer, by name.
        report: called with the progress.

    Returns:
        One overlay per layer, with notes for the user.
    """
    overlays, details = {}, {}
    notes = [f"keyframes: {', '.join(map(str, keyframes.source_frames))} of the source"]
    for layer, one in fused_layers.items():
        canvas, picture = one.part.canvas, one.compose_picture()
        missing, conflicts = one.missing_and_conflict_shares
        if missing > one.settings.min_share:
            around = canvas.image + canvas.region * (picture - canvas.image)
            picture = one.compose_picture(
                _inpaint_picture(model, text, editor, around, one.missing_mask[None, None], report)
            )
            notes.append(f"{missing:.0%} of the region of {layer} is in no keyframe and was inpainted")
        if conflicts > one.settings.min_share:
            notes.append(f"the keyframes disagree on {conflicts:.0%} of what they show of {layer}")
        overlays[layer] = canvas.make_overlay(picture)
        details[layer] = {"not_in_keyframes": round(missing, 4), "disagreement": round(conflicts, 4)}
    return EditorResult(
        overlays, (*model.notes, *notes), {"keyframes": list(keyframes.source_frames), "layers_shown": details}
    )


def noise_to_first_time(
    original: Latents,
    noise: Latents,
    inside: Float[Tensor, "#n 1 height width"],
    time: int,
    schedule: NoiseSchedule,
    strength: float,
) -> Latents:
    """Noises latents to the first time of a denoising; with strength 1 the region keeps nothing of the original.

    Args:
        original: clean latents.
        noise: noise of the same shape.
        inside: 1 in the region, else 0.
        time: the first time, an index into the schedule.
        schedule: noise schedule of the model.
        strength: share of the denoising steps that run, in (0, 1].
    """
    noised = schedule.add_noise(original, noise, time)
    return noised if strength < 1 else inside * noise + (1 - inside) * noised


def _inpaint_picture(
    model: DiffusionModel,
    text: EncodedPrompt,
    editor: DiffusionEditor,
    picture: Float[Tensor, "1 3 height width"],
    missing: Bool[Tensor, "1 1 height width"],
    report: ProgressReporter,
) -> Float[Tensor, "1 3 height width"]:
    """Generates the missing part of a picture."""
    image = picture.to(model.device)
    original = model.encode_images(image)
    noise = model.draw_noise(original, editor.seed)
    inside = shrink_mask_to_latents(missing.float().to(model.device), original)
    extra = make_inpainting_inputs(model, image, inside)
    times = model.schedule.select_times(editor.steps)
    latents = denoise_region(
        noise_to_first_time(original, noise, inside, times[0], model.schedule, strength=1.0),
        times,
        model.schedule,
        lambda noised, time: model.predict_denoised(noised, time, text, editor.guidance, extra=extra),
        original=original,
        noise=noise,
        region=inside,
        report=rename_stage(report, "inpainting what no keyframe shows"),
    )
    generated = model.decode_latents(latents).cpu()
    check_model_picture(generated, picture, missing.float())
    return generated
