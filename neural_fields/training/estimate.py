"""What a training will take: time, memory, space on the disk. Said before it starts, and refused where it is not there.

The figures were measured on two cores (docs/benchmarks.md, `python benchmarks/estimate.py`); another processor is
compared by the time that it takes for optical flow of two small frames. What `--seconds` allows is divided by the same
figures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from neural_fields.atlas.source_detail import DEFAULTS as DETAIL
from neural_fields.atlas.source_detail import choose_detail_frames
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import nearest_existing_folder, require_disk_space
from neural_fields.core.threads import thread_count
from neural_fields.data.video.metadata import VideoMetadata, parse_frames, parse_size
from neural_fields.planar.appearance.pixel_opacity import PixelOpacityConfig
from neural_fields.planar.config import PlanarConfig, count_steps, frames_per_step
from neural_fields.planar.mappings.grid import GridMappingConfig
from neural_fields.training.flow_size import choose_flow_size
from neural_fields.training.options import TrainOptions


@dataclass(frozen=True)
class CostSettings:
    """Holds what a training costs, and how a time budget is divided. This is the one place of these figures.

    Seconds are processor seconds: more cores make it shorter. "mpf" is a million pixels of all frames together, at the
    size of the training unless another is named.
    """

    start_s: float = 5.0  # imports, compiled functions, and what does not depend on the clip
    read_s_per_mpf: float = 0.02  # decoding, at the size of the source
    flow_s_per_mpf: float = 0.35  # at the size of the flow; DIS
    # Finding moving objects, by frames and at the size of the search, in a clip with several; one with none takes less.
    find_s_per_frame: float = 0.08
    find_s_per_mpf: float = 2.5
    find_side_px: int = 240  # shorter side of the frames at that size, at most
    soften_s_per_mpf: float = 0.3  # soft edges of what was found
    refine_s_per_frame: float = 0.03  # masks of the user, a layer; those with many loose parts take three times as long
    geometry_s_per_mpf: float = 0.65  # at the size of the flow, a layer
    texture_s_per_mpf: float = 0.08  # the first opacities, textures and gains, a layer
    visit_s_per_mpf: float = 0.2  # of a step along gradients to each of its frames, a layer
    solve_s_per_mpf: float = 0.09  # the same of a step that solves for tables
    bake_s_per_mpf: float = 0.09  # maps and canonical pictures, a layer
    # Detail of canonical pictures: of each frame that is looked at, at the size of the training, a layer; and of one
    # frame at the size that the pictures are made for.
    look_s_per_mpf: float = 0.25
    detail_s_per_mp: float = 4.0
    report_s: float = 2.0  # the report looks at some frames only, ...
    report_s_per_mpf: float = 0.12  # ... but follows points through all of them
    core_gain: float = 0.6  # of the work of one core, that each further one does, ...
    most_cores: int = 4  # ... up to so many
    speed_s: float = 0.009  # optical flow of the two frames of `measure_slowness`, on the processor of these figures

    # The division of --seconds.
    max_setup_share: float = 0.8  # of the time, that all but the steps may take: with more a smaller size is chosen
    sizes: tuple[str, ...] = ("480p", "360p", "240p", "180p", "120p")  # of the training, the best one first
    max_mask_share: float = 0.3  # of the time, after which no further moving objects are looked for
    max_warm_up_share: float = 1 / 3  # of the time, for the warm-up of mappings that are networks
    max_reserve_share: float = 0.5  # of the time, that is kept at most for what comes after the steps
    min_step_share: float = 0.1  # of the time, for the steps, however little of it is left
    min_wait_s: float = 1.5  # until there are pictures of all frames: with less, those of some only delay them
    min_rest_s: float = 8.0  # of steps that are left: with less, first pictures would only delay the last ones
    min_long_rest_s: float = 60.0  # of steps that are left: with less, first pictures are not replaced by better ones
    few_steps: int = 20  # with fewer a note says that the time was too short

    base_mib: float = 750.0  # memory whatever the clip
    frame_mib_per_mp: float = 600.0  # memory that grows with the pixels of a frame
    solve_mib: float = 80.0  # more for steps that solve for tables, ...
    solve_mib_per_mpf: float = 18.0  # ... which grows with the clip
    texel_bytes: float = 120.0  # while detail is put into a canonical picture, ...
    texels_per_pixel: float = 5.0  # ... which has so many texels for each pixel of a frame of its size
    front_mib_per_mpf: float = 40.0  # opacities with their moments, and what finds masks, a layer
    max_grown_mpf: float = 25.0  # up to which memory grows: opacities of longer clips have a coarser grid
    least_memory_share: float = 0.6  # of the estimate; with less free memory than that a training does not begin

    # Bytes on the disk for each pixel of all frames.
    frame_bytes: float = 3.0  # decoded frames
    flow_bytes: float = 9.5  # both directions, at full size
    map_bytes: float = 0.5  # uv, weight and gain of a grid mapping, a layer
    other_map_bytes: float = 1.6  # the same of other mappings
    layer_bytes: float = 4.2  # a checkpoint with its moments, without front layers, ...
    front_bytes: float = 3.4  # ... and for each layer in front ...
    opacity_bytes: float = 12.0  # with its opacities, up to `max_grown_mpf`
    checkpoints: int = 3  # at once, while one is being written
    finished_share: float = 1 / 3  # of a checkpoint that is left of one that solved for tables: it has no moments


DEFAULTS = CostSettings()


@dataclass(frozen=True)
class TrainingEstimate:
    """Holds what a training is expected to take.

    Attributes:
        frames: number of frames.
        size: (width, height) of the training in pixels.
        steps: number of steps.
        stage_seconds: time of each stage on this machine, in order. Steps of networks are left out: how long they take
            is known only after the first of them.
        seconds: time on this machine, within a factor of two; None where it is known only after the first steps.
        setup_seconds: the part of it that is not for steps: decoding, flow, masks, geometry, maps, report.
        peak_mib: memory.
        disk_mib: space on the disk while it runs.
        kept_mib: space of the finished run, which has no cache.
    """

    frames: int
    size: tuple[int, int]
    steps: int
    stage_seconds: Mapping[str, float]
    seconds: float | None
    setup_seconds: float
    peak_mib: float
    disk_mib: float
    kept_mib: float

    def advise_on_budget(self, seconds: float, settings: CostSettings = DEFAULTS) -> str:
        """Returns a sentence for a time budget that leaves hardly any time for steps; empty for others.

        Args:
            seconds: the budget.
            settings: how much of it may pass without steps.
        """
        if self.setup_seconds <= settings.max_setup_share * seconds:
            return ""
        return (
            f"--seconds {seconds:g} leaves few steps: what comes before and after them takes about "
            f"{self.setup_seconds:.0f} s here. A smaller --size, fewer --frames or masks of your own take less"
        )

    def find_step_seconds(
        self, seconds: float | None, elapsed: float, settings: CostSettings = DEFAULTS
    ) -> float | None:
        """Returns the part of a time budget that is left for the steps; maps, pictures and report come after them.

        Args:
            seconds: the budget; without one the steps have none either.
            elapsed: seconds of it that have passed.
            settings: the most that is kept for what comes after.
        """
        if seconds is None:
            return None
        after = sum(self.stage_seconds[stage] for stage in ("baking", "report"))
        left = seconds - elapsed - min(after, seconds * settings.max_reserve_share)
        return max(settings.min_step_share * seconds, left)

    @property
    def sentence(self) -> str:
        """The estimate in a line."""
        took = ""
        if self.seconds is not None:
            minutes = self.seconds / 60
            took = f"about {max(1, round(minutes))} min" if minutes >= 1 else f"about {self.seconds:.0f} s"
            took += ", "
        room = f"{self.peak_mib / 1024:.1f} GiB of memory, {_format_mib(self.disk_mib)} on the disk"
        what = f"{self.frames} frames of {self.size[0]}x{self.size[1]}, {self.steps} steps"
        return f"{what}: {took}{room} ({_format_mib(self.kept_mib)} at the end)"


def _format_mib(size: float) -> str:
    return f"{size / 1024:.1f} GiB" if size >= 1024 else f"{size:.0f} MiB"


def estimate_training(
    metadata: VideoMetadata, options: TrainOptions, config: PlanarConfig, settings: CostSettings = DEFAULTS
) -> TrainingEstimate:
    """Estimates what a training will take, from the length and size of the clip.

    Args:
        metadata: of the source.
        options: of the training, with a size.
        config: of the model.
        settings: costs.
    """
    frames = parse_frames(options.frames, metadata.numbers) if options.frames else metadata.numbers
    width, height = parse_size(options.size, metadata.width, metadata.height)
    steps = count_steps(config.training, options.quality, len(frames), width * height)
    frame_mp, mpf = width * height / 1e6, len(frames) * width * height / 1e6
    source_size = metadata.width, metadata.height
    flow_size = choose_flow_size((width, height), source_size, config, may_grow=options.seconds is None)
    flow_share = flow_size[0] * flow_size[1] / (width * height)
    front = 0 if options.masks == ("none",) else 1 if options.finds_masks else len(options.masks)
    layers = 1 + front
    is_solved = config.training.solver == "gauss_newton"
    has_geometry = config.mapping.flow_side is not None
    needs_flow = has_geometry or config.terms.uses_flow or options.finds_masks

    mask_s = settings.refine_s_per_frame * front * len(frames)
    if options.finds_masks:
        shrink = min(1.0, settings.find_side_px / min(width, height))
        mask_s = settings.find_s_per_frame * len(frames)
        mask_s += (settings.find_s_per_mpf * shrink**2 + settings.soften_s_per_mpf) * mpf
    canonical_size = "source" if options.canonical_size == "auto" else options.canonical_size
    wide, tall = parse_size(canonical_size, metadata.width, metadata.height)
    looked_at = len(choose_detail_frames(len(frames), source_size))
    detail_s = settings.look_s_per_mpf * looked_at * frame_mp * layers + settings.detail_s_per_mp * wide * tall / 1e6
    stages = {
        "reading": settings.start_s + settings.read_s_per_mpf * len(frames) * metadata.width * metadata.height / 1e6,
        "flow": settings.flow_s_per_mpf * flow_share * mpf * needs_flow,
        "masks": mask_s,
        "geometry": settings.geometry_s_per_mpf * flow_share * mpf * layers * has_geometry,
        "textures": settings.texture_s_per_mpf * mpf * layers,
        "training": 0.0,
        "baking": settings.bake_s_per_mpf * mpf * layers + detail_s,
        "report": settings.report_s + settings.report_s_per_mpf * mpf,
    }
    slowness = measure_slowness(settings) / (1 + settings.core_gain * (min(thread_count(), settings.most_cores) - 1))
    stages = {name: round(slowness * seconds, 1) for name, seconds in stages.items()}
    setup, seconds = sum(stages.values()), None
    # The time of the steps is known for models whose steps visit whole frames without networks.
    if config.training.batch == "frames" and isinstance(config.opacity, PixelOpacityConfig):
        visits_mpf = steps * frames_per_step(config.training, len(frames), width * height) * frame_mp
        visit_s = settings.solve_s_per_mpf if is_solved else settings.visit_s_per_mpf
        needed = slowness * visit_s * visits_mpf * layers
        if options.seconds is not None:
            needed = min(needed, max(settings.min_step_share * options.seconds, options.seconds - setup))
        stages["training"] = round(needed, 1)
        seconds = round(sum(stages.values()), 1)

    pixels = 1e6 * mpf
    flow_frame_bytes = settings.frame_bytes * flow_share if flow_size[0] > width else 0.0
    cache = pixels * (settings.frame_bytes + flow_frame_bytes + settings.flow_bytes * flow_share + front)
    checkpoint = pixels * (settings.layer_bytes + settings.front_bytes * front)
    checkpoint += 1e6 * settings.opacity_bytes * min(front * mpf, settings.max_grown_mpf)
    is_grid = isinstance(config.mapping, GridMappingConfig)
    maps = pixels * (settings.map_bytes if is_grid else settings.other_map_bytes) * layers
    peak = settings.base_mib + settings.frame_mib_per_mp * frame_mp
    peak += settings.front_mib_per_mpf * min(front * mpf, settings.max_grown_mpf)
    if is_solved:
        peak += settings.solve_mib + settings.solve_mib_per_mpf * min(mpf, settings.max_grown_mpf)
    picture_bytes = settings.texel_bytes * min(DETAIL.most_texels, settings.texels_per_pixel * wide * tall)
    peak += (picture_bytes + 3 * looked_at * source_size[0] * source_size[1]) / 2**20
    return TrainingEstimate(
        frames=len(frames),
        size=(width, height),
        steps=steps,
        stage_seconds=stages,
        seconds=seconds,
        setup_seconds=round(setup, 1),
        peak_mib=round(peak, 1),
        disk_mib=round((cache + maps + settings.checkpoints * checkpoint) / 2**20, 1),
        kept_mib=round((maps + checkpoint * (settings.finished_share if is_solved else 1)) / 2**20, 1),
    )


def choose_size(
    metadata: VideoMetadata, options: TrainOptions, config: PlanarConfig, settings: CostSettings = DEFAULTS
) -> str:
    """Chooses the size of a training whose options leave it open: the largest that leaves a time budget for steps.

    Args:
        metadata: of the source.
        options: of the training.
        config: of the model.
        settings: costs, sizes, and the division of a time budget.

    Returns:
        A `--size` text; without a time budget the first of the sizes, and the last one where none fits the budget.
    """
    if options.seconds is None:
        return settings.sizes[0]
    for size in settings.sizes:
        estimate = estimate_training(metadata, replace(options, size=size), config, settings)
        if estimate.setup_seconds <= settings.max_setup_share * options.seconds:
            return size
    return settings.sizes[-1]


def require_room(estimate: TrainingEstimate, run: Path, settings: CostSettings = DEFAULTS) -> None:
    """Refuses a training for which the disk or the memory is too small.

    Args:
        estimate: what it takes.
        run: the folder of the run, which need not exist.
        settings: how much memory is needed.

    Raises:
        UserError: not enough space (exit 4).
    """
    require_disk_space(nearest_existing_folder(run), int(estimate.disk_mib * 2**20))
    free = measure_free_memory()
    if free is not None and free < settings.least_memory_share * estimate.peak_mib:
        raise UserError(
            ExitCode.NO_ROOM,
            "not enough memory for this training",
            where=str(run),
            why=f"about {estimate.peak_mib:.0f} MiB are needed, {free:.0f} MiB are free",
            fix="close other programs, or use a smaller --size",
        )


def measure_free_memory() -> float | None:
    """Returns the memory that is free for this process in MiB, as Linux says it; None elsewhere."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:  # a container may have less
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [] if limit == "max" else [(int(limit) - int(used)) / 2**20]
    except (OSError, ValueError):
        pass
    return min(found, default=None)


@cache
def measure_slowness(settings: CostSettings = DEFAULTS) -> float:
    """Measures how much slower than the one of the figures this processor is, by the flow of two small frames.

    Returns:
        1 for the same speed, 2 for half of it; between 1/4 and 4, so that a busy moment does not spoil an estimate.
    """
    noise = np.random.default_rng(0).integers(0, 255, (45, 80), np.uint8)
    first = cv2.resize(noise, (320, 180), interpolation=cv2.INTER_CUBIC)
    second = np.roll(first, 2, axis=1)
    took = []
    for _ in range(5):
        begun = time.process_time()
        cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
            first, second, np.zeros((180, 320, 2), np.float32)
        )
        took.append(time.process_time() - begun)
    return float(np.clip(min(took) / settings.speed_s, 0.25, 4))
