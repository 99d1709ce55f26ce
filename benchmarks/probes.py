"""Defines probes: small jobs whose results depend on settings of heuristics. `sensitivity.py` runs them repeatedly.

A probe gets an empty folder and prepares the inputs of its job there, once. It returns the job: a function that
measures figures with the current settings. The last word of a figure's name is its unit. Synthetic clips have 12
frames of 128x72 and known truth; those of DAVIS are cut to 10 frames of 160 lines and left out where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes_edits import (
    capture,
    carrying,
    compressed_frames,
    edited_frames,
    exports,
    painted_canonical,
    painted_frames,
    rendering,
    retiming,
    unwrapped,
)
from probes_models import (
    DAVIS,
    Job,
    captured_person,
    charts,
    cuts,
    geometry,
    given_masks,
    mask_refinement,
    motion_segmentation,
    region_tracking,
    report,
    tracking,
    training,
)


@dataclass(frozen=True)
class Probe:
    """Holds a job, and the classes of settings that are moved with it; without names all that it reads are moved."""

    prepare: Callable[[Path], Job]
    classes: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()  # of DAVIS, without which it says nothing


PROBES: dict[str, Probe] = {  # about the quickest first, so that much is known early
    probe.prepare.__name__: probe
    for probe in (
        Probe(cuts),
        Probe(painted_canonical),
        Probe(compressed_frames),
        Probe(retiming),
        Probe(carrying, ("ChartCarryingSettings", "TrackingSettings", "PaintLiftSettings")),
        Probe(tracking),
        Probe(exports),
        Probe(training, ("CoverageSettings", "ExtentSettings", "ImageTextureSettings", "LightingSettings")),
        Probe(painted_frames),
        Probe(captured_person),
        Probe(given_masks, ("GivenMaskSettings",), DAVIS[:1]),
        Probe(report),
        Probe(rendering),
        Probe(geometry),
        Probe(region_tracking),
        Probe(unwrapped, ("UnwrappingSettings", "UnwrappedEditSettings", "FramePaintSettings")),
        Probe(mask_refinement),
        Probe(motion_segmentation),
        Probe(edited_frames, ("FusionSettings", "FramesEditSettings", "FrameMergingSettings")),
        Probe(charts, ("ChartSettings",), DAVIS),
        Probe(capture),
    )
}
