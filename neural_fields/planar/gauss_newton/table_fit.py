"""Fits a model whose parts are all tables, by passes over the frames of its clip.

A pass looks at each frame twice: once for its opacities, shifts and gains, which the frame alone decides, and once for
the texels, which all frames decide together at the end of the pass. Then the passes so far are extrapolated (`anderson`
says how). One or two passes do what hundreds of steps of Adam do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import ClipDataset
from neural_fields.data.masks.layer_masks import settle_front_to_back
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.nn.torch_threads import open_torch_threads
from neural_fields.planar.appearance.grid_gain import GridGain
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.pixel_opacity import SNAP_MARGIN, PixelOpacity
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.gauss_newton.anderson import AndersonAcceleration
from neural_fields.planar.gauss_newton.frame_looks import (
    FrameLooks,
    FrameTables,
    MapEquations,
    OpacityEquations,
    OpacitySettings,
    TexelBuffers,
    TexturePicture,
    solve_alpha,
)
from neural_fields.planar.gauss_newton.grid_stencil import (
    GridInterpolation,
    add_smoothness,
    solve_scalars,
    solve_vectors,
)
from neural_fields.planar.gauss_newton.texture_update import solve_texture_step
from neural_fields.planar.gauss_newton.torch_looks import TorchLooks
from neural_fields.planar.init.frame_patch import FramePatch
from neural_fields.planar.losses.table import LossWeights
from neural_fields.planar.mappings.grid import GridMapping


@dataclass(frozen=True)
class TableFitSettings:
    """Settings of the passes."""

    shift_iterations: int = 8  # of conjugate gradients
    gain_iterations: int = 5  # of conjugate gradients
    max_shift_px: float = 1.5  # of a knot in a pass
    max_log_gain: float = 0.3  # of a knot in a pass
    remembered_passes: int = 4  # by the acceleration
    # Farther than this from its mask a layer is not seen: colors alone would find specks of it there, which would show
    # its paint. A share of the longer side of the frame, and pixels at least.
    mask_reach: float = 0.01
    min_mask_reach_px: int = 3
    max_rise: float = 1.01  # of the squared error in a pass; above, the acceleration is taken back and begins anew
    remembered_mib: float = 512.0  # at most, by the acceleration; long clips are accelerated with fewer passes
    min_texel_weight: float = 0.05  # of texels that the acceleration moves; a pixel that is seen at its size has 1
    # Of textures, see `solve_texture_step`: clips of fewer frames have less, since their frames contradict less.
    stiffness: float = 0.05
    stiff_frames: int = 20
    # In the acceleration, whose unknowns have different units: the unit of each, in colors from 0 to 1.
    texel_scale: float = 5.0
    shift_scale: float = 0.3  # for a pixel
    gain_scale: float = 1.0  # for the logarithm of a gain


DEFAULTS = TableFitSettings()
T = TypeVar("T")


class TableFit:
    """Fits a model to a clip, a few frames a step.

    Args:
        model: its parts are tables, which are changed in place.
        clip: frames and masks.
        frames_per_step: number of frames that a step looks at.
        settings: of the passes.
    """

    def __init__(
        self, model: PlanarModel, clip: ClipDataset, frames_per_step: int, settings: TableFitSettings = DEFAULTS
    ) -> None:
        self.clip, self.settings, self.frames_per_step = clip, settings, frames_per_step
        self.mappings = cast("list[GridMapping]", list(model.mappings))
        self.textures = cast("list[ImageTexture]", list(model.textures))
        self.gains = cast("list[GridGain]", list(model.gains))
        self.opacity = cast("PixelOpacity", model.opacity)
        self.device, (width, height) = model.device, clip.size
        self.pixel = 2 / max(clip.size)
        # The weights of the losses, in squared residuals of a frame.
        weights: LossWeights = model.weights
        unit = 3 * width * height / weights.color
        shift_grid, gain_grid = self.mappings[0].residual.shape[2:], self.gains[0].table.shape[2:]
        self.shift_weights = [
            weight * unit / (2 * shift_grid[0] * shift_grid[1])
            for weight in (weights.residual_smoothness, weights.residual_anchor)
        ]
        self.gain_weights = [
            weight * unit / (3 * gain_grid[0] * gain_grid[1]) for weight in (weights.gain_smoothness, weights.gain_size)
        ]
        self.texture_smoothness = weights.texture_smoothness / weights.color
        self.stiffness = settings.stiffness * min(1.0, clip.frame_count / settings.stiff_frames)
        front = max(1, len(self.mappings) - 1)
        self.opacity_settings = OpacitySettings(3 * weights.mask / (front * weights.color))
        # Opacities that have a grid of their own are solved for its cells, after a look.
        cells = self.opacity.table.shape[2:]
        self.cells = None
        if tuple(cells) != (height, width):
            self.cells = GridInterpolation.between_sizes((cells[0], cells[1]), clip.size, self.device)
        self.looks = self._choose_looks(shift_grid, gain_grid)
        self.threads = max(1, torch.get_num_threads()) if self.device.type == "cpu" else 1
        # What a pass remembers of those before it.
        self.seen = [torch.zeros(0, dtype=torch.int64, device=self.device) for _ in self.textures]
        self.acceleration = AndersonAcceleration(settings.remembered_passes, settings.remembered_mib)
        self.before: Tensor | None = None
        self.squared_error = 0.0  # of the frames of this pass so far
        self.last_squared_error = math.inf  # of the pass before
        self.last_gain = math.inf  # dB that the last pass was better than the one before
        self.last_move_px = math.inf  # by which it moved points, the root of the mean square

    @cached_property
    def levels(self) -> list[list[tuple[int, int]]]:
        """How often each layer's texture is halved for each frame, across and down; two samples are left at least."""
        times = torch.arange(self.clip.frame_count, dtype=torch.float32, device=self.device)
        levels = []
        for mapping, texture in zip(self.mappings, self.textures, strict=True):
            highest_down, highest_across = (side.bit_length() - 2 for side in texture.image.shape[1:])
            chosen = texture.choose_levels(mapping.uv_per_pixel(times)).tolist()
            levels.append([(min(across, highest_across), min(down, highest_down)) for across, down in chosen])
        return levels

    @cached_property
    def pictures(self) -> dict[tuple[int, int, int], TexturePicture]:
        """Where the pictures of the textures lie in the buffers, by layer and level, at all sizes that frames show."""
        pictures: dict[tuple[int, int, int], TexturePicture] = {}
        offset = 0
        for number, texture in enumerate(self.textures):
            rows, columns = texture.image.shape[1:]
            for across, down in sorted({(0, 0), *self.levels[number]}):
                picture = TexturePicture.place(offset, rows >> down, columns >> across, texture.box)
                pictures[number, across, down] = picture
                offset += picture.height * picture.width
        return pictures

    @cached_property
    def buffers(self) -> TexelBuffers:
        """The pictures, and what frames say about them."""
        texels = sum(picture.height * picture.width for picture in self.pictures.values())
        sums = torch.zeros(self.threads, texels, 4, device=self.device)
        return TexelBuffers(torch.zeros(texels, 4, device=self.device), sums)

    def _choose_looks(self, shift_grid: tuple[int, ...], gain_grid: tuple[int, ...]) -> FrameLooks:
        """Chooses the compiled looks where there is numba and a CPU, and those with torch elsewhere."""
        opacity = self.opacity_settings if self.cells is None else None
        grids = (shift_grid[0], shift_grid[1]), (gain_grid[0], gain_grid[1])
        if self.device.type == "cpu" and can_compile_loops():
            from neural_fields.planar.gauss_newton.compiled_looks import CompiledLooks  # numba takes a second

            return CompiledLooks(self.clip.size, opacity, *grids)
        return TorchLooks(self.clip.size, opacity, *grids, self.device)

    @property
    def steps_per_pass(self) -> int:
        """The number of steps in which a pass looks at all frames."""
        return -(-self.clip.frame_count // self.frames_per_step)

    @torch.no_grad()
    def take_step(self, step: int) -> float:
        """Looks at the frames of a step; the first step of a pass prepares it, the last one finishes it.

        Args:
            step: from 0, counted through all passes.

        Returns:
            The mean squared difference of colors over the frames of the step, before their textures are changed.
        """
        number = step % self.steps_per_pass
        if number == 0:
            self._begin_pass()
        first = number * self.frames_per_step
        frames = list(range(first, min(first + self.frames_per_step, self.clip.frame_count)))
        tables = self._in_threads(lambda t, _: self._read_tables(t), frames)
        equations = self._in_threads(lambda t, thread: self._look_for_maps(tables[t], thread, t), frames)
        self._solve_maps(frames, [equations[t] for t in frames])
        errors = self._in_threads(lambda t, thread: self._look_for_texels(tables[t], thread, t), frames)
        squared = sum(errors[t] for t in frames)
        self.squared_error += squared
        if number == self.steps_per_pass - 1:
            self._finish_pass()
        width, height = self.clip.size
        return squared / (3 * width * height * len(frames))

    def _in_threads(self, work: Callable[[int, int], T], frames: list[int]) -> dict[int, T]:
        """Works on frames, each thread on those that are always its own, so that sums have one order."""

        @torch.no_grad()  # threads do not inherit it
        def run(thread: int) -> dict[int, T]:
            return {t: work(t, thread) for t in frames if t % self.threads == thread}

        if self.threads == 1:
            return run(0)
        found: dict[int, T] = {}
        for part in open_torch_threads(self.threads).map(run, range(self.threads)):
            found |= part
        return found

    # --- a pass ---------------------------------------------------------------------------------------------------

    def _begin_pass(self) -> None:
        """Copies the textures to the buffers at all their sizes, and clears the sums."""
        self.before = self._pack_state() if any(len(seen) for seen in self.seen) else None
        self.buffers.sums.zero_()
        for (number, across, down), picture in self.pictures.items():
            image = self.textures[number].downsample_image(across, down)
            picture.read(self.buffers.texels)[..., :3] = image.permute(1, 2, 0)

    def _read_tables(self, t: int) -> FrameTables:
        """Reads what a look at a frame needs."""
        window = FramePatch(*self.opacity.windows[t].tolist())
        if window.is_empty or len(self.mappings) == 1:
            window = FramePatch(0, 0, 0, 0)
        rows, columns = window.slices
        if self.clip.masks.shares is not None:
            visible, _ = settle_front_to_back(np.asarray(self.clip.masks.shares[:, t, rows, columns]))
        else:
            masks = np.asarray(self.clip.masks.masks[:, t, rows, columns])
            is_free = np.cumsum(masks, 0) <= 1  # of masks in front
            visible = (masks & is_free) * np.uint8(255)
        radius = max(self.settings.min_mask_reach_px, round(self.settings.mask_reach * max(self.clip.size)))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        reach = np.stack([cv2.dilate(own, disc) for own in visible]) if visible.size else visible
        reachable = torch.from_numpy(reach > 0).to(self.device)
        return FrameTables(
            torch.from_numpy(np.array(self.clip.frames[t])).to(self.device),
            [self.pictures[number, *levels[t]] for number, levels in enumerate(self.levels)],
            torch.stack([mapping.homography[t] for mapping in self.mappings]),
            torch.stack([mapping.residual.values[t] for mapping in self.mappings]),
            torch.stack([gain.table.values[t] for gain in self.gains]),
            window,
            self._read_alpha(self.opacity.table.values[t], window) * reachable,
            torch.from_numpy(np.ascontiguousarray(visible)).to(self.device),
            reachable,
        )

    def _read_alpha(self, rows: Float[Tensor, "front _ _"], window: FramePatch) -> Float[Tensor, "front _ _"]:
        """Returns the opacities of the pixels of a window."""
        logits = rows if self.cells is None else self.cells.crop(window).interpolate(rows)
        return _to_alpha(window.crop(logits) if self.cells is None else logits).contiguous()

    def _look_for_maps(self, frame: FrameTables, thread: int, t: int) -> MapEquations:
        found = self.looks.look(frame, self.buffers, thread, collects_maps=True, collects_texels=False)
        self._solve_cells(frame, found.opacities, t)
        assert found.maps is not None
        return found.maps

    def _look_for_texels(self, frame: FrameTables, thread: int, t: int) -> float:
        frame.shifts = torch.stack([mapping.residual.values[t] for mapping in self.mappings])
        frame.gains = torch.stack([gain.table.values[t] for gain in self.gains])
        found = self.looks.look(frame, self.buffers, thread, collects_maps=False, collects_texels=True)
        self._solve_cells(frame, found.opacities, t)
        if self.cells is None and not frame.window.is_empty:
            frame.window.crop(self.opacity.table.values[t]).copy_(_to_logit(frame.alpha))
        return found.squared_error

    def _solve_cells(self, frame: FrameTables, found: OpacityEquations | None, t: int) -> None:
        """Solves for the opacities of a coarser grid than the pixels'; they take effect in the next look."""
        if found is None or self.cells is None:
            return
        cells, settings, rows = self.cells.crop(frame.window), self.opacity_settings, self.opacity.table.values[t]
        left = torch.ones_like(frame.alpha[0])
        for number, alpha in enumerate(frame.alpha):
            inside = frame.visible[number] / 255
            reachable = frame.reachable[number].float()
            planes = [found.curvature[number], found.slope[number], inside, left * (1 - inside), reachable]
            sums = cells.collect_vector(torch.stack(planes))
            before = _to_alpha(rows[number])
            move = (solve_alpha(sums[0], sums[1], sums[2], sums[3], settings) - before).clamp_(
                -settings.max_move, settings.max_move
            )
            solved = before + move * (sums[2:4].sum(0) > 1e-3)
            solved[sums[4] < 1e-3] = 0
            solved[solved < settings.snap] = 0
            solved[solved > 1 - settings.snap] = 1
            rows[number] = torch.where(solved == before, rows[number], _to_logit(solved))
            left = left * (1 - alpha)
        frame.alpha = self._read_alpha(rows, frame.window) * frame.reachable

    def _solve_maps(self, frames: list[int], found: list[MapEquations]) -> None:
        """Solves for the shifts and gains of some frames, and changes them."""
        settings = self.settings
        index = torch.tensor(frames, device=self.device)
        for number, (mapping, gain) in enumerate(zip(self.mappings, self.gains, strict=True)):
            rows = mapping.residual.values[index]
            matrix = torch.stack([one.shift_matrix[number] for one in found], 1)
            right = torch.stack([one.shift_right[number] for one in found])
            away = (rows - mapping.placed[index].view_as(rows)) / self.pixel
            add_smoothness(matrix[:, :, 0::2], right, away, *self.shift_weights)  # xx and yy
            step = solve_vectors(matrix, right, settings.shift_iterations)
            step *= (settings.max_shift_px / step.norm(dim=1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
            if mapping.pinned is not None:
                step[index == mapping.pinned] = 0
            mapping.residual.values[index] = rows + step * self.pixel

            rows = gain.table.values[index]
            matrix = torch.stack([one.gain_matrix[number] for one in found], 1)
            right = torch.stack([one.gain_right[number] for one in found])
            add_smoothness(matrix, right, rows, *self.gain_weights)
            step = solve_scalars(matrix, right, settings.gain_iterations)
            gain.table.values[index] = rows + step.clamp_(-settings.max_log_gain, settings.max_log_gain)

    def _finish_pass(self) -> None:
        """Changes the textures by what all frames say together, and extrapolates the passes so far."""
        sums = self.buffers.sums.sum(0) if self.threads > 1 else self.buffers.sums[0]
        weights = []
        for number, texture in enumerate(self.textures):
            whole = self.pictures[number, 0, 0].read(sums).permute(2, 0, 1).contiguous()
            for (other, across, down), picture in self.pictures.items():
                if other == number and (across or down):
                    # What is said about a sample of a smaller picture is said about its texels in equal parts.
                    part = picture.read(sums).permute(2, 0, 1) / 2 ** (across + down)
                    part = part.repeat_interleave(2**down, 1).repeat_interleave(2**across, 2)
                    whole[:, : part.shape[1], : part.shape[2]] += part
            texture.image.add_(solve_texture_step(whole, texture.image, self.texture_smoothness, self.stiffness))
            weights.append(whole[3].flatten())
        self._move_light_to_textures()
        if self.before is None:
            self.seen = [torch.nonzero(weight > self.settings.min_texel_weight)[:, 0] for weight in weights]
        elif self.squared_error > self.settings.max_rise * self.last_squared_error and self.acceleration.last:
            self._unpack_state(self.acceleration.last[0] + self.acceleration.last[1])  # what was there without it
            self.acceleration.forget()
            self.last_move_px = 0.0
        else:
            state = self.acceleration.accelerate(self.before, self._pack_state())
            self._unpack_state(state)
            self.last_move_px = self._measure_move(self.before, state)
        self.before = None
        self.last_gain = 10 * math.log10(self.last_squared_error / max(self.squared_error, 1e-9))
        self.last_squared_error, self.squared_error = self.squared_error, 0.0

    def _move_light_to_textures(self) -> None:
        """Makes the mean gain of what is seen of a layer 1: the rest is its texture's, and frames look as before.

        Passes, and their extrapolation, could otherwise make textures darker and gains lighter or the other way round,
        and frames would show paint on the canonical picture darker or lighter than it is.
        """
        tables = [gain.table.values for gain in self.gains]
        cells = (tables[0].shape[2], tables[0].shape[3])

        def sum_light(t: int, _thread: int) -> Tensor:
            left, sums = torch.ones(1, *self.opacity.table.shape[2:], device=self.device), []
            for number, table in enumerate(tables):
                is_last = number == len(tables) - 1
                alpha = 1.0 if is_last else _to_alpha(self.opacity.table.values[t, number])
                seen = F.adaptive_avg_pool2d(left * alpha, cells)
                left = left * (1 - alpha)
                sums.append(torch.cat([(seen * table[t]).sum((1, 2)), seen.sum()[None]]))
            return torch.stack(sums)

        sums = self._in_threads(sum_light, list(range(self.clip.frame_count)))
        total = torch.stack([sums[t] for t in range(self.clip.frame_count)]).sum(0)
        for texture, table, light in zip(self.textures, tables, total, strict=True):
            mean = (light[:3] / light[3].clamp_min(1e-6))[:, None, None]
            table.sub_(mean)
            texture.image.mul_(mean.exp())

    def state_tensors(self, is_in_pass: bool) -> dict[str, Tensor]:
        """Returns what the next steps need besides the model.

        Args:
            is_in_pass: whether the last step was not the last one of a pass.
        """
        tensors = {f"seen.{number}": seen for number, seen in enumerate(self.seen)}
        errors = (self.squared_error, self.last_squared_error, self.last_gain, self.last_move_px)
        tensors["errors"] = torch.tensor(errors, dtype=torch.float64)
        if is_in_pass:
            tensors["sums"] = self.buffers.sums
            if self.before is not None:
                tensors["before"] = self.before
        return tensors | self.acceleration.state_tensors()

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state_tensors` returned."""
        # Copies lie in memory as torch places it: sums over tensors that lie otherwise may differ in the last bit.
        tensors = {name: value.to(self.device, copy=True) for name, value in tensors.items()}
        self.seen = [tensors[f"seen.{number}"] for number in range(len(self.textures))]
        if "sums" in tensors:
            self._begin_pass()
            self.buffers.sums.copy_(tensors["sums"])
        self.before = tensors.get("before")
        self.squared_error, self.last_squared_error, self.last_gain, self.last_move_px = tensors["errors"].tolist()
        self.acceleration.load_state_tensors(tensors)

    # --- the state as a vector --------------------------------------------------------------------------------------

    def _pack_state(self) -> Float[Tensor, " n"]:
        """Returns the texels that are seen, the shifts and the gains, in the units of the acceleration."""
        settings, at = self.settings, 0
        scaled = [(mapping.residual.flat, settings.shift_scale / self.pixel) for mapping in self.mappings]
        scaled += [(gain.table.flat, settings.gain_scale) for gain in self.gains]
        length = sum(3 * len(seen) for seen in self.seen) + sum(flat.numel() for flat, _ in scaled)
        state = torch.empty(length, device=self.device)  # filled in place: it is as large as all textures
        for texture, seen in zip(self.textures, self.seen, strict=True):
            for plane in texture.image.detach().flatten(1):
                torch.index_select(plane, 0, seen, out=state[at : at + len(seen)]).mul_(settings.texel_scale)
                at += len(seen)
        for flat, scale in scaled:
            torch.mul(flat.detach().flatten(), scale, out=state[at : at + flat.numel()])
            at += flat.numel()
        return state

    def _measure_move(self, before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> float:
        """Measures by how many pixels points move from one state to another: the root of the mean square."""
        first = sum(3 * len(seen) for seen in self.seen)
        count = sum(mapping.residual.flat.numel() for mapping in self.mappings)
        change = after[first : first + count] - before[first : first + count]
        return float(change.square().mean().mul(2).sqrt()) / self.settings.shift_scale

    def _unpack_state(self, state: Float[Tensor, " n"]) -> None:
        """Sets what `_pack_state` returned."""
        settings, at = self.settings, 0
        for texture, seen in zip(self.textures, self.seen, strict=True):
            count = 3 * len(seen)
            texture.image.view(3, -1)[:, seen] = state[at : at + count].view(3, -1) / settings.texel_scale
            at += count
        scaled = [(mapping.residual.flat, settings.shift_scale / self.pixel) for mapping in self.mappings]
        scaled += [(gain.table.flat, settings.gain_scale) for gain in self.gains]
        for flat, scale in scaled:
            flat.copy_(state[at : at + flat.numel()].view_as(flat) / scale)
            at += flat.numel()


def _to_alpha(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Returns the alphas of logits, as `pixel_opacity.snap_alphas` does."""
    return ((torch.sigmoid(logits) - SNAP_MARGIN) / (1 - 2 * SNAP_MARGIN)).clamp_(0, 1)


def _to_logit(alpha: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Returns the logits of alphas."""
    return torch.logit(SNAP_MARGIN + (1 - 2 * SNAP_MARGIN) * alpha)
