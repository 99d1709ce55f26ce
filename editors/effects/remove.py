"""`remove`: hides a layer and shows the layers behind it.

The canonical pictures of the layers behind provide all texels that other frames show. Texels that no frame shows are
inpainted once, on the canonical picture, and are therefore the same in every frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.effects.patchmatch import DEFAULTS as COMPLETION
from editors.effects.patchmatch import CompletionSettings, complete_picture
from editors.options.effects import RemoveOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter, rename_stage


@dataclass(frozen=True)
class RemoveEditSettings:
    """Settings of what is inpainted behind a removed layer."""

    min_coverage: float = 0.5  # least coverage of a known texel
    min_weight: float = 0.02  # a pixel with less of a layer is not changed
    margin_px: int = 7  # side of the square by which a removed layer is dilated, at the size of the training
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
        if not 0 <= self.grow <= 100:
            raise bad_input(f"--grow {self.grow:g}", why="it counts pixels from 0 to 100", fix="--grow 3")
        overlays, notes, maps = {}, [], source.maps
        for number, layer in enumerate(maps.layers):
            if layer in source.layers or number <= min(map(maps.layers.index, source.layers)):
                continue
            stage = f"looking behind, at {layer}"
            report(Progress(stage, 0, maps.frame_count))
            picture = source.pictures[layer]

            # The texels that some frame would show without the removed layers in front of them.
            size, box = picture.size, picture.box
            in_front = [index for index in map(maps.layers.index, source.layers) if index < number]
            found = np.zeros((size[1], size[0]), np.uint8)
            around = np.ones((settings.margin_px, settings.margin_px), np.uint8)
            for t in range(maps.frame_count):
                weight = sum(maps.read_layer_weight_small(t, index) for index in in_front)
                inside = cv2.dilate((np.asarray(weight) > settings.min_weight).astype(np.uint8), around) > 0
                uv = maps.read_uv_small(t, number)[inside]
                x = np.floor((uv[:, 0] - box.u0) / box.width * size[0]).astype(int)
                y = np.floor((uv[:, 1] - box.v0) / box.height * size[1]).astype(int)
                kept = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
                found[y[kept], x[kept]] = 1
                report(Progress(stage, t + 1, maps.frame_count))
            # Texels may be finer than the pixels that show them: gaps between them are closed.
            step = max(3, 2 * round(max(size) / max(maps.size)) + 1)
            hidden = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((step, step), np.uint8)) > 0

            seen = source.run.canonical(layer).rgba[..., 3] > settings.min_coverage
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
        return EditorResult(overlays, tuple(notes), effects=EditEffects(hidden=source.layers, grow=self.grow))
