"""`remove`: hides a layer and shows the layers behind it.

The canonical pictures of the layers behind provide all texels that other frames show. Texels that no frame shows are
inpainted once, on the canonical picture, and are therefore the same in every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.effects.patchmatch import DEFAULTS as COMPLETION
from editors.effects.patchmatch import CompletionSettings, complete_picture
from editors.options.effects import RemoveOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter, rename_stage
from neural_fields.imaging.resampling import sample_area


@dataclass(frozen=True)
class RemoveEditSettings:
    """Settings of what is inpainted behind a removed layer."""

    min_coverage: float = 0.5  # least coverage of a known texel
    min_weight: float = 0.02  # a pixel with less of a layer is not changed
    margin_px: int = 7  # side of the square by which a removed layer is dilated, at the size of the training
    # Around a removed layer, up to this share of the longer side, frames may not show what is behind it: as far as they
    # differ from it by so many times as much, and so many levels more, as farther away.
    halo_share: float = 0.012
    halo_ratio: float = 1.05
    halo_levels: float = 0.3
    halo_slack: float = 1.5  # of what is measured: the difference fades
    halo_frames: int = 12  # in which that is measured
    max_inpainted_share: float = 0.5  # share of the uncovered area above which a note is given
    completion: CompletionSettings = COMPLETION


DEFAULTS = RemoveEditSettings()


@dataclass(frozen=True, kw_only=True)
class Remove(RemoveOptions, PlanarEditor):
    """Remove a layer from the video and show the background behind it."""

    def edit(
        self, source: EditSource, report: ProgressReporter, settings: RemoveEditSettings = DEFAULTS
    ) -> EditorResult:
        """Removes the layers, and inpaints the texels behind them that no frame shows.

        Args:
            source: the run, and the layers to remove.
            report: called with the progress.
            settings: thresholds and settings of the inpainting.

        Raises:
            UserError: the layer at the back, a mask, or a width out of range.
        """
        back = source.maps.layers[-1]
        if back in source.layers:
            raise bad_input(
                f"nothing is behind {back}",
                where=str(source.run.files.canonical),
                why=f"the layers of this run, front to back: {', '.join(source.maps.layers)}",
                fix=f"unwrap edit {source.run.path} --editor replace --image FILE puts something in its place",
            )
        if source.mask is not None:
            raise bad_input("only entire layers can be removed", why="--mask is not supported", fix="leave --mask out")
        if self.grow is not None and not 0 <= self.grow <= 100:
            raise bad_input(f"--grow {self.grow:g}", why="it counts pixels from 0 to 100", fix="--grow 3")
        overlays, notes, maps = {}, [], source.maps
        for number, layer in enumerate(maps.layers):
            if layer in source.layers or number <= min(map(maps.layers.index, source.layers)):
                continue
            stage = f"looking behind, at {layer}"
            report(Progress(stage, 0, maps.frame_count))
            # The texels that some frame would show without the removed layers in front of them.
            picture, size, box = source.pictures[layer], source.pictures[layer].size, source.pictures[layer].box
            in_front = [index for index in map(maps.layers.index, source.layers) if index < number]
            found = np.zeros((size[1], size[0]), np.uint8)
            # How far from the removed layers each texel is seen, at most: up to a pixel more than what is looked at.
            farthest = np.zeros((size[1], size[0]), np.float32)
            reach = settings.halo_slack * settings.halo_share * max(maps.size)
            around = np.ones((settings.margin_px, settings.margin_px), np.uint8)
            for t in range(maps.frame_count):
                distance = measure_distance(source, t, in_front, settings)
                inside = cv2.dilate((distance == 0).astype(np.uint8), around) > 0
                outside = (distance > 0) & (maps.read_layer_weight_small(t, number) > settings.min_coverage)
                uv = maps.read_uv_small(t, number)
                rows, columns, kept = find_texels(uv[inside], box, size)
                found[rows[kept], columns[kept]] = 1
                rows, columns, kept = find_texels(uv[outside], box, size)
                near = np.minimum(distance[outside], reach + 1)[kept]
                order = np.argsort(near)  # of several pixels on a texel the farthest comes last, and counts
                rows, columns = rows[kept][order], columns[kept][order]
                farthest[rows, columns] = np.maximum(farthest[rows, columns], near[order])
                report(Progress(stage, t + 1, maps.frame_count))
            # Texels may be finer than the pixels that show them: gaps between them are closed.
            step = max(3, 2 * round(max(size) / max(maps.size)) + 1)
            window = np.ones((step, step), np.uint8)
            hidden = cv2.morphologyEx(found, cv2.MORPH_CLOSE, window) > 0
            # What is only ever seen right beside the removed layers has their outlines and feathers in it.
            halo = measure_halo(source, number, in_front, farthest > reach, settings)
            seen = source.run.canonical(layer).rgba[..., 3] > settings.min_coverage
            if halo:
                seen &= cv2.morphologyEx((farthest > halo).astype(np.uint8), cv2.MORPH_CLOSE, window) > 0
            missing = hidden & ~seen
            if not missing.any() or not seen.any():
                continue
            rgb = complete_picture(
                np.ascontiguousarray(picture.rgba[..., :3]),
                seen,
                missing,
                report=rename_stage(report, f"filling {layer}"),
                settings=settings.completion,
            )
            alpha = missing.astype(np.float32)[..., None]
            overlays[layer] = Overlay(np.concatenate([rgb, alpha], axis=-1) * alpha, picture.box)
            inpainted = float(missing.sum() / hidden.sum())
            if inpainted > settings.max_inpainted_share:
                notes.append(f"{inpainted:.0%} of what would be seen of {layer} is in no frame: it is made up")
        notes.append("shadows and reflections belong to what they fall on, and stay")
        effects = EditEffects(hidden=source.layers, grow=self.grow, grain=self.grain)
        return EditorResult(overlays, tuple(notes), effects=effects)


def measure_distance(
    source: EditSource, t: int, in_front: Sequence[int], settings: RemoveEditSettings = DEFAULTS
) -> Float[np.ndarray, "height width"]:
    """Measures how far the pixels of a frame, at the size of the maps, are from some layers; 0 on them.

    Args:
        source: the run.
        t: number of the frame in the run.
        in_front: numbers of the layers.
        settings: least weight of a pixel that shows them.
    """
    weight = sum(source.maps.read_layer_weight_small(t, index) for index in in_front)
    return cv2.distanceTransform((np.asarray(weight) <= settings.min_weight).astype(np.uint8), cv2.DIST_L2, 3)


def find_texels(
    uv: Float[np.ndarray, "n 2"], box: Box, size: tuple[int, int]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Finds rows and columns of the texels at points of the plane, and which of them the picture has.

    Args:
        uv: in uv units.
        box: of the picture, in uv units.
        size: (width, height) of the picture in texels.
    """
    columns = np.floor((uv[:, 0] - box.u0) / box.width * size[0]).astype(int)
    rows = np.floor((uv[:, 1] - box.v0) / box.height * size[1]).astype(int)
    return rows, columns, (columns >= 0) & (columns < size[0]) & (rows >= 0) & (rows < size[1])


def measure_halo(
    source: EditSource,
    number: int,
    in_front: Sequence[int],
    is_clean: Bool[np.ndarray, "height width"],
    settings: RemoveEditSettings = DEFAULTS,
) -> float:
    """Measures how far around layers frames differ from what is behind: outlines, feathers, what a mask misses.

    Args:
        source: the run.
        number: of the layer behind.
        in_front: numbers of the layers in front of it.
        is_clean: the texels of its picture that are also seen far from them: what they look like is known.
        settings: distances, and what counts as different.

    Returns:
        Pixels of the maps; 0 where nothing differs.
    """
    maps, picture = source.maps, source.run.canonicals[source.maps.layers[number]]
    reach = int(np.ceil(settings.halo_share * max(maps.size)))
    sums = np.zeros((2, 2 * reach + 1))
    for t in sorted({int(t) for t in np.linspace(0, maps.frame_count - 1, settings.halo_frames)}):
        distance = measure_distance(source, t, in_front, settings)
        pixels = (distance > 0) & (distance <= 2 * reach)
        pixels &= maps.read_layer_weight_small(t, number) > settings.min_coverage
        uv = maps.read_uv_small(t, number)[pixels]
        rows, columns, kept = find_texels(uv, picture.box, picture.size)
        kept[kept] = is_clean[rows[kept], columns[kept]]
        x, y = array_coords.uv_to_texels(uv[kept].astype(np.float32), picture.box, *picture.size).T - np.float32(0.5)
        pixel = 2 / max(maps.size) * picture.size[0] / picture.box.width  # of the maps, in texels
        known = sample_area(picture.rgba, np.ascontiguousarray(x), np.ascontiguousarray(y), pixel)[:, :3]
        known = known * maps.read_gain(t, number, maps.size)[pixels][kept]
        off = np.abs(255 * known - source.run.video.frames[t][pixels][kept]).max(axis=1)
        bins = np.ceil(distance[pixels][kept]).astype(int).clip(1, 2 * reach)
        sums += [np.bincount(bins, off, 2 * reach + 1), np.bincount(bins, minlength=2 * reach + 1)]
    means = sums[0] / np.maximum(sums[1], 1)
    usual = float(np.median(means[reach + 1 :]))
    differs = means[1 : reach + 1] > settings.halo_ratio * usual + settings.halo_levels
    return settings.halo_slack * float(np.argmin(np.append(differs, False)))
