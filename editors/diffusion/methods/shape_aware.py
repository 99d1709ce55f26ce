"""Shape-aware editing: one frame is repainted, and the object takes the shape and the colors it has there everywhere.

Lee, Jang, Chen, Qiu and Huang, "Shape-aware Text-driven Layered Video Editing" (CVPR 2023). The object of a keyframe is
made anew by a diffusion model (section 3.2, "keyframe editing"), matched with the old one, deformed through the
canonical plane (section 3.2, "deformation formulation"), and repainted (section 3.3).

Differences: the paper draws its correspondence by hand; here outlines and the network's features are matched where the
user gives none. Its optimization of texture and deformation together is a lift of the keyframe's colors, which is
exact in that frame; what the frame does not show is made by score distillation, if steps of it are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, load_model
from editors.diffusion.backend.sampling import denoise_region, noise_to_start, shrink_mask_to_latents
from editors.diffusion.backend.settings import PromptedSettings, wrong_setting_error
from editors.diffusion.common.canvas import open_canvas
from editors.diffusion.common.region import make_inpainting_inputs
from editors.diffusion.common.score_distillation import DistillationPrompts, make_score
from editors.diffusion.common.shape_matching import compute_features, match_box_corners, match_features, match_outlines
from editors.diffusion.methods.sds import PyramidTexture, ScoreObjective, TextureOptimization, optimize_texture
from editors.effects.shape import DEFAULTS as SHAPING
from editors.effects.shape import ShapeEdit, compute_deformation, find_run_frame, require_one_layer
from editors.inputs.frame_lifting import DEFAULTS as LIFTING
from editors.inputs.frame_lifting import lift_paint
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from neural_fields.atlas.canonical import Overlay, resample_overlay
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.atlas.uv_extrapolation import extrapolate_frame_map
from neural_fields.core.errors import UserError, bad_input
from neural_fields.edits.read_stack import active_edits
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import Picture, read_picture
from neural_fields.imaging.push_pull import pull_push
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.warp_pass import WarpPass

Frame = Float[np.ndarray, "height width 3"]
Mask = Bool[np.ndarray, "height width"]
ModelCrop = tuple[slice, slice, tuple[int, int]]  # rows and columns of a frame, and (width, height) for the model


@dataclass(frozen=True)
class ShapeAwareSettings:
    """Settings of repainting an object in a frame, finding it there and taking its colors over."""

    paint_margin: float = 0.15  # of the object's extent: how far around it the model may paint
    crop_margin: float = 0.5  # of the object's extent that the model sees around it
    min_change: float = 12 / 255  # a pixel of an edited frame that differs by more was painted
    max_changed_share: float = 0.8  # of where it may be: if more changed, the change does not tell where the object is
    grabcut_side_px: int = 256  # at which the new object is cut out
    grabcut_rounds: int = 5
    min_area: float = 0.1  # of the old object's: a new one that is smaller was not found
    min_pure_weight: float = 0.95  # a pixel with less of the object is a mixture
    max_lost_share: float = 0.02  # of the new object: if more of it cannot be shown, the user is told
    refine_rate: float = 0.03  # learning rate of score distillation
    refine_keep: float = 0.5  # how strongly score distillation keeps the keyframe's colors


DEFAULTS = ShapeAwareSettings()


@dataclass(frozen=True, kw_only=True)
class ShapeAware(PromptedSettings):
    """Lee et al. (CVPR 2023): repaint an object in one frame; its new shape and colors go to all frames."""

    name: ClassVar[str] = "shape_aware"

    model: str = ""
    """A folder in diffusers' layout, or the name of a model on the hub. Not needed with --edited."""
    prompt: str = ""
    """What the edited object should be. Not needed with --edited."""
    frame: int | None = None
    """Number of the frame in the source that is repainted, 0 is the first (default: the middle one)."""
    edited: Path | None = None
    """That frame as you painted it, instead of the model."""
    edited_mask: Path | None = None
    """A picture of that frame's shape, bright where the new object is (default: it is looked for)."""
    pairs_file: Path | None = None
    """A CSV file of which point of the old object is which of the new: x, y, x, y (default: they are matched)."""
    flow: Path | None = None
    """Instead of points: a .flo or .npy file that says where each pixel of the old object is in the new frame."""
    refine: int = 0
    """Steps of score distillation on the texture afterwards, for what the frame does not show."""

    def __post_init__(self) -> None:
        if self.edited is None or self.model:
            super().__post_init__()
        if self.edited is None and not self.model:
            raise wrong_setting_error(
                "model", self.model, "a model repaints the frame, or you do", "--edited FRAME.png"
            )
        if self.refine < 0 or (self.refine and not self.model):
            raise wrong_setting_error("refine", self.refine, "it counts steps of a model", "--refine 0")

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Makes the shape and the colors of one layer.

        Raises:
            UserError: an edited frame that does not fit, no new object in it, or a match that folds.
        """
        layer = require_one_layer(source)
        number, t = find_run_frame(source, self.frame)
        if any(layer in edit.spec.get("shapes", {}) for edit in active_edits(source.run)):
            raise bad_input(f"the layer {layer} has a shape already", fix=f"unwrap undo {source.run.path}")
        frame = open_passes(source.run, source.maps).render_frame(t, source.read_frame(t))
        size = (frame.shape[1], frame.shape[0])
        before = source.maps.read_layer_weight(t, source.maps.layers.index(layer), size) >= EXTRAPOLATION.min_map_weight
        if not before.any():
            raise bad_input(f"the layer {layer} is not seen in frame {number}", fix="--frame with one that shows it")
        model = load_model(self.weights_source()) if self.model else None
        seen = frame.astype(np.float32) / 255
        if self.edited is not None:
            given = _read_frame_picture(self.edited, seen)
            alpha = given[..., 3:]
            edited = alpha * given[..., :3] + (1 - alpha) * seen
            if np.abs(edited - seen).max() < DEFAULTS.min_change:
                raise bad_input("the edited frame is the frame as it was", where=str(self.edited))
        else:
            assert model is not None, "checked when the settings were made"
            edited = repaint_frame(model, seen, before, self, report)
        # Where the new object is
        if self.edited_mask is not None:
            given = _read_frame_picture(self.edited_mask, seen)
            after = given[..., :3].mean(axis=-1) * given[..., 3] >= 0.5
        else:
            after = segment_new_object(seen, edited, before)
        is_found = after.sum() >= DEFAULTS.min_area * before.sum()
        if not is_found and (self.edited is not None or self.edited_mask is not None):
            raise bad_input(
                "the new object is not found in the edited frame",
                where=str(self.edited_mask or self.edited),
                fix="--edited-mask with a picture that is white where it is and black around it",
            )
        # Its shape and its colors
        if not is_found:
            after, shape = before, Deformation(np.zeros((2, 3, 3), np.float32), source.pictures[layer].box)
            points: list[list[float]] = []
            notes = ["no new outline was found in what the model made: the object keeps its shape"]
        else:
            shape, points, notes = self._match_shape(source, layer, t, model, (seen, edited), (before, after))
        overlay, lost = lift_object_colors(source, layer, t, frame, edited, after, shape)
        if lost > DEFAULTS.max_lost_share:
            notes.append(f"{lost:.0%} of the new object lies beyond the deformed one and was left out")
        if self.refine and model is not None:
            overlay = self._refine_texture(source, layer, model, overlay, report)
        facts, shapes = {"frame": number, "points": points}, {layer: shape} if points else {}
        return EditorResult({layer: overlay}, (*(model.notes if model else ()), *notes), facts, shapes)

    def _match_shape(
        self,
        source: EditSource,
        layer: str,
        t: int,
        model: DiffusionModel | None,
        frames: tuple[Frame, Frame],
        masks: tuple[Mask, Mask],
    ) -> tuple[Deformation, list[list[float]], list[str]]:
        """Computes the deformation; returns the points that it goes through, and notes on them, too."""
        if self.pairs_file is not None or self.flow is not None:
            given = ShapeEdit(pairs_file=self.pairs_file, flow=self.flow)
            start, end, loose = given.read_points(source, layer, t)
            return compute_deformation(source, layer, t, start, end, loose), _list_point_pairs(start, end), []
        outline = match_outlines(*masks)
        attempts = [("outlines", outline), ("the rectangles around them", match_box_corners(*masks))]
        if model is not None and model.unet is not None:
            inner = match_inside(model, frames, masks, outline, self)
            together = np.concatenate([outline[0], inner[0]]), np.concatenate([outline[1], inner[1]])
            attempts.insert(0, (f"outlines and {len(inner[0])} places in them", together))
        for name, (start, end) in attempts:
            try:
                shape = compute_deformation(source, layer, t, start, end, SHAPING.flow_smoothing)
            except UserError as problem:
                refused = problem
                continue
            return shape, _list_point_pairs(start, end), [f"the old and the new object were matched by {name}"]
        raise refused

    def _refine_texture(
        self, source: EditSource, layer: str, model: DiffusionModel, overlay: Overlay, report: Report
    ) -> Overlay:
        """Generates what the frame does not show of the texture, by some steps of score distillation."""
        side = self.side or model.trained_side
        canvas = open_canvas(
            source.pictures[layer].composite_overlay(overlay),
            source.read_region(layer),
            side,
            model.side_multiple,
            self.feather,
        )
        with torch.no_grad():
            score = make_score(model, "sds", DistillationPrompts(self.prompt, self.negative, ""), self.guidance)
        picture = optimize_texture(
            PyramidTexture(canvas.image.to(model.device), canvas.region.to(model.device)),
            ScoreObjective(model.encode_images, score, model.schedule),
            TextureOptimization(
                self.refine, DEFAULTS.refine_rate, DEFAULTS.refine_keep, max(1.0, self.guidance), True, self.seed
            ),
            window=model.trained_side if side > model.trained_side else None,
            multiple=model.side_multiple,
            report=report,
        )
        top = premultiply(overlay.rgba)
        below = premultiply(resample_overlay(canvas.make_overlay(picture.cpu()), overlay.size, overlay.box))
        return Overlay(unpremultiply(top + (1 - top[..., 3:]) * below), overlay.box, overlay.notes)


def lift_object_colors(
    source: EditSource,
    layer: str,
    t: int,
    frame: np.ndarray,
    edited: Frame,
    object_mask: Mask,
    shape: Deformation,
    settings: ShapeAwareSettings = DEFAULTS,
) -> tuple[Overlay, float]:
    """Lifts the colors of the new object to the layer.

    A pixel of the deformed layer shows the point of the plane that the shape takes it from: lifting goes there.

    Args:
        source: the run.
        layer: its name.
        t: frame of the run.
        frame: the source's frame, with what is painted on it, 8 bits.
        edited: the frame with the new object, in [0, 1].
        object_mask: where the new object is.
        shape: the deformation of the layer.
        settings: which pixels show the object alone.

    Returns:
        The overlay, and the share of the new object that the layer cannot show.
    """
    index, maps, size = source.maps.layers.index(layer), source.maps, (frame.shape[1], frame.shape[0])
    renderer = WarpPass(maps, source.pictures, {}, {layer: (shape,)})
    deformed, weights = renderer.deform_frame(t, frame)
    found = extrapolate_frame_map(maps, t, index)
    assert found is not None, "it was deformed"
    places = renderer.source_positions(t, index, size).reshape(-1, 2) * (np.array(maps.size) / size)
    here = source.read_frame_maps(t, size)
    uv, weight = here.uv.copy(), here.weight.copy()
    uv[index] = found.sample_uv(places).reshape(*frame.shape[:2], 2)
    weight[index] = weights[index]
    # At the outlines pixels show other things too, and around the new object the deformed one may show a rim of old
    # colors: there the colors inside go on.
    shown, own = deformed.astype(np.float32) / 255, weights[index]
    eroded = cv2.erode(object_mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    inside = eroded & (own > settings.min_pure_weight)
    color = pull_push(edited.astype(np.float32), inside)
    color = np.where(inside[..., None], edited, shown + own[..., None] * (color - shown))
    painted = object_mask | ((own > 0) & _dilate_mask(object_mask, settings))
    rgba = np.concatenate([color, painted[..., None]], axis=-1).astype(np.float32)
    lifted, _, _ = lift_paint(rgba, shown, replace(here, uv=uv, weight=weight), index)
    return Overlay(lifted, here.boxes[index]), float(
        (object_mask & (own < LIFTING.min_weight)).sum() / object_mask.sum()
    )


def repaint_frame(
    model: DiffusionModel,
    seen: Frame,
    before: Mask,
    editor: PromptedSettings,
    report: Report,
    settings: ShapeAwareSettings = DEFAULTS,
) -> Frame:
    """Generates an object of a frame, and some room around it, by a prompt (Blended Latent Diffusion).

    Args:
        model: the diffusion model.
        seen: the frame, in [0, 1].
        before: where the object is.
        editor: the prompt, guidance, steps and so on.
        report: of the progress.
        settings: margins around the object.

    Returns:
        The frame with the new object.
    """
    crop = _choose_crop(before, editor.side or model.trained_side, model.side_multiple, settings)
    rows, columns, size = crop
    wide = _dilate_mask(before, settings).astype(np.float32)[rows, columns]
    region = torch.from_numpy(np.clip(cv2.resize(wide, size, interpolation=cv2.INTER_AREA), 0, 1))[None, None]
    image = _crop_to_tensor(seen, crop)
    schedule = model.schedule
    with torch.no_grad():
        image, region = image.to(model.device), region.to(model.device)
        text, original = model.encode_prompt(editor.prompt, editor.negative), model.encode_images(image)
        inside = shrink_mask_to_latents(region, original)
        extra = make_inpainting_inputs(model, image, inside)
        noise, times = model.draw_noise(original, editor.seed), schedule.select_times(editor.steps, 1.0)
        first = inside * noise + (1 - inside) * noise_to_start(original, noise, times, schedule)
        latents = denoise_region(
            first,
            times,
            schedule,
            lambda noised, time: model.predict_denoised(noised, time, text, editor.guidance, extra=extra),
            original=original,
            noise=noise,
            region=inside,
            step=lambda done, total: report("repainting the frame", done, total),
        )
        generated = model.decode_latents(latents)[0].permute(1, 2, 0).cpu().numpy()
    result = seen.copy()
    part = resize_image(np.ascontiguousarray(generated), (columns.stop - columns.start, rows.stop - rows.start))
    result[rows, columns] += wide[..., None] * (np.clip(part, 0, 1) - result[rows, columns])
    return result


def segment_new_object(seen: Frame, edited: Frame, before: Mask, settings: ShapeAwareSettings = DEFAULTS) -> Mask:
    """Segments the new object in an edited frame: GrabCut (Rother et al., SIGGRAPH 2004) from what was painted.

    Args:
        seen: the frame before the edit, in [0, 1].
        edited: the frame after it.
        before: where the old object is.
        settings: of GrabCut, and of what counts as painted.
    """
    changed = np.abs(edited - seen).max(axis=-1) > settings.min_change
    allowed = cv2.dilate((_dilate_mask(before, settings) | changed).astype(np.uint8), np.ones((3, 3), np.uint8))
    scale = min(1.0, settings.grabcut_side_px / max(seen.shape[:2]))
    size = (round(seen.shape[1] * scale), round(seen.shape[0] * scale))
    # What is likely the object, and what is certainly not
    tells = changed.sum() < settings.max_changed_share * allowed.sum()
    likely = _resize_mask(changed if tells else before, size)
    small_allowed = _resize_mask(allowed, size)
    labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[~small_allowed] = cv2.GC_BGD
    if not (likely & small_allowed).any() or not (labels == cv2.GC_BGD).any():
        return changed
    picture = cv2.resize((255 * edited).round().astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(picture[..., ::-1])
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(bgr, labels, None, *models, settings.grabcut_rounds, cv2.GC_INIT_WITH_MASK)
    new_object = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.float32)
    return cv2.resize(new_object, (seen.shape[1], seen.shape[0]), interpolation=cv2.INTER_LINEAR) > 0.5


def match_inside(
    model: DiffusionModel,
    frames: tuple[Frame, Frame],
    masks: tuple[Mask, Mask],
    outline: tuple[np.ndarray, np.ndarray],
    editor: PromptedSettings,
    settings: ShapeAwareSettings = DEFAULTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Matches points inside the old and the new object by the features of the model.

    Args:
        model: with a U-Net.
        frames: before and after the edit, in [0, 1].
        masks: where the old and the new object are.
        outline: matches of their outlines, in pixels of the frame.
        editor: side, prompt and seed.
        settings: margins around the objects.

    Returns:
        Points of the old object and their partners, in pixels of the frame.
    """
    crop = _choose_crop(masks[0] | masks[1], editor.side or model.trained_side, model.side_multiple, settings)
    rows, columns, _ = crop
    corner = np.array([columns.start, rows.start])
    old, new = (compute_features(model, _crop_to_tensor(frame, crop), editor.prompt, editor.seed) for frame in frames)
    before, after = (np.ascontiguousarray(mask[rows, columns]) for mask in masks)
    start, end = match_features(old, new, before, after, (outline[0] - corner, outline[1] - corner))
    return start + corner, end + corner


def _choose_crop(mask: Mask, side: int, multiple: int, settings: ShapeAwareSettings) -> ModelCrop:
    """Chooses the part of a frame around an object, and the size at which a model looks at it."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    margin = int(settings.crop_margin * max(width, height))
    rows = slice(max(0, y - margin), min(mask.shape[0], y + height + margin))
    columns = slice(max(0, x - margin), min(mask.shape[1], x + width + margin))
    sides = columns.stop - columns.start, rows.stop - rows.start
    scale = side / max(sides)
    wanted = [max(multiple, multiple * round(scale * length / multiple)) for length in sides]
    return rows, columns, (wanted[0], wanted[1])


def _crop_to_tensor(frame: Frame, crop: ModelCrop) -> Float[torch.Tensor, "1 3 rows columns"]:
    rows, columns, size = crop
    part = np.clip(resize_image(np.ascontiguousarray(frame[rows, columns]), size), 0, 1)
    return torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].float()


def _dilate_mask(mask: Mask, settings: ShapeAwareSettings) -> Mask:
    """Dilates a mask by the margin in which the model may paint."""
    _, _, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = 2 * max(1, round(settings.paint_margin * max(width, height))) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> Mask:
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _read_frame_picture(path: Path, frame: Frame) -> Float[np.ndarray, "height width 4"]:
    """Reads a picture of the user's at the size of the frame."""
    size = (frame.shape[1], frame.shape[0])
    picture: Picture = read_picture(path, max_pixels=compute_pixel_limit(size))
    check_picture_size(picture, size, "the frame")
    return np.clip(resize_image(picture.rgba, size), 0, 1)


def _list_point_pairs(start: np.ndarray, end: np.ndarray) -> list[list[float]]:
    return np.round(np.concatenate([start, end], axis=1), 2).tolist()
