"""The region that `--roi` names, as the front layer of a clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neural_fields.config import Config, GridMapping
from neural_fields.data.clip import Clip
from neural_fields.data.facts import Video
from neural_fields.data.masks import LayerMasks
from neural_fields.data.region import LAYER, Region, corners_xy, missing_region, parse_region
from neural_fields.errors import bad_input
from neural_fields.fit_options import FitOptions, Progress, Reporter
from neural_fields.planar.following import follow

MOSTLY = 0.6  # of the region: what is recognised less than that on most frames was not followed well


def region_of(options: FitOptions, config: Config, source: Video) -> Region | None:
    """The region that was asked for, checked against the video; None where the fit is not of one region.

    Raises:
        UserError: a region that cannot be taken, a preset that needs one and has none, or one that cannot have one.
    """
    facts, frames = source.facts, range(*source.frame_range)
    if options.roi is None:
        if config.region:
            raise missing_region(facts.width, facts.height, frames)
        return None
    if not isinstance(config.mapping, GridMapping):
        raise bad_input(
            f"preset {options.config} cannot follow a region",
            where="--roi",
            why="only mapping kind grid keeps the coordinates of a frame",
            fix=f'--config roi --roi "{options.roi}"',
        )
    return parse_region(options.roi, facts.width, facts.height, frames)


def with_region(clip: Clip, region: Region, source: Video, report: Reporter) -> tuple[Clip, list[str]]:
    """The clip with the region as its front layer, followed through all frames, and what the user should know.

    Raises:
        UserError: a mask layer has the region's name.
    """
    if LAYER in clip.masks.names:
        raise bad_input(
            f'a mask layer cannot be called "{LAYER}" beside a region', where="--masks", fix="--masks object=PATH"
        )
    facts = source.facts
    corners = corners_xy(region, facts.width, facts.height, clip.size)
    frame = range(*source.frame_range).index(region.frame)
    found = follow(
        clip.frames, clip.flow, corners, frame, lambda done, total: report(Progress("following", done, total))
    )
    masks = np.concatenate([found.seen[None], clip.masks.masks])
    out = replace(clip, masks=LayerMasks((LAYER, *clip.masks.names), masks), regions={LAYER: found.track})
    gone = [k for k, seen in zip(range(*source.frame_range), found.seen, strict=True) if not seen.any()]
    notes = [f"the region is not seen on {_listed(gone)}"] if gone else []
    if np.median(found.shares) < MOSTLY:
        notes.append(
            f"less than {MOSTLY:.0%} of the region is recognised on most frames: draw it on a frame on which nothing "
            "is in front of it, and on one plane"
        )
    return out, notes


def _listed(frames: list[int]) -> str:
    """Frames for people, stretches as one."""
    starts = [k for n, k in enumerate(frames) if n == 0 or frames[n - 1] not in (k - 1,)]
    parts = []
    for n, start in enumerate(starts):
        last = max(k for k in frames if k >= start and (n + 1 == len(starts) or k < starts[n + 1]))
        parts.append(f"{start}" if last == start else f"{start} to {last}")
    more = f" and {len(parts) - 4} more stretches" if len(parts) > 4 else ""
    return f"frame{'s' * (len(frames) > 1)} {', '.join(parts[:4])}{more}"
