"""`unwrap export RUN stmap`: the position of every pixel of a frame on the canonical pictures, and the inverse.

The forward map of a frame warps a canonical picture to the frame, the inverse map warps the frame to the canonical
picture. Both are pictures of positions that compositing programs look up (STMap, UV map), in the convention of the
program that is named. Positions are float32 and the files lossless: half floats are off by a pixel at 4K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.inverse_uv_raster import invert_map
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.files import atomic_write, require_disk_space, write_json
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.video.io import resized_frames
from neural_fields.data.video.metadata import VideoMetadata, parse_size
from neural_fields.edits.read_stack import Edit
from neural_fields.export.base import Target
from neural_fields.export.exporter_options import STMapOptions
from neural_fields.export.maps.blender import build_blender_script
from neural_fields.export.maps.comps import CompDescription, CompLayer, locate_source
from neural_fields.export.maps.conventions import CONVENTIONS, MapConvention, write_light, write_map
from neural_fields.export.maps.nuke import build_nuke_script
from neural_fields.export.maps.overlays import draw_layer_overlay
from neural_fields.export.maps.readme import readme_text
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.rendering.edge_guide import FrameEdges


@dataclass(frozen=True, kw_only=True)
class STMapExporter(STMapOptions):
    """Write maps from frames to canonical pictures and back, for Nuke, Fusion, Blender, After Effects or OpenCV."""

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Writes the maps, the pictures that they point into, and scripts for the program.

        Raises:
            UserError: an unknown layer, a size out of range, `every` below 1, or OpenEXR is not installed (exit 3), or
                no room (exit 4).
        """
        job = self._plan_job(target)
        require_disk_space(target.folder, job.estimate_bytes(self.direction))

        # The canonical pictures, and the overlays: the active edits, or transparent.
        stills, notes = [edit for edit in job.edits if _is_still(edit)], list[str]()
        overlay_sizes: dict[int, tuple[int, int]] = {}
        for layer, picture in job.pictures.items():
            asked = None if self.canonical_size == "source" else job.flat_sizes[layer]
            overlay = draw_layer_overlay(target.run, stills, picture.layer, job.size, asked)
            overlay_sizes[layer] = overlay.size
            notes += overlay.notes
            for kind, rgba in (("canonical", picture.rgba), ("overlay", overlay.rgba)):
                with atomic_write(target.folder / kind / f"{picture.layer}.png") as part:
                    part.write_bytes(encode_png(rgba))

        source = resized_frames(job.metadata, target.run.frames[:: self.every], job.size)
        written, folds = 0, dict.fromkeys(job.layers, 0.0)
        for done, t in enumerate(job.frames, start=1):
            if self.direction != "inverse":
                weights = FrameEdges(t, next(source)).read_weights(job.maps)
            for layer in job.layers:
                picture, flat_size = job.pictures[layer], job.flat_sizes[layer]
                if self.direction != "inverse":
                    place = uv_to_shares(job.maps.read_uv(t, layer, job.size), picture.box)
                    inside = ((place >= 0) & (place <= 1)).all(axis=-1)
                    path, header = job.map_path("forward", layer, t), job.exr_header(layer, t, "forward", picture.size)
                    mask = weights[layer] * inside
                    written += write_map(path, job.convention, place, mask, picture.size, header)
                    if job.maps.has_gain:
                        path, gain = job.map_path("light", layer, t), job.maps.read_gain(t, layer, job.size)
                        written += write_light(path, job.convention, gain, header | {"direction": "light"})
                if self.direction != "forward":
                    found = invert_map(*job.maps.read_rimmed(t, layer), picture.box, flat_size)
                    path, header = job.map_path("inverse", layer, t), job.exr_header(layer, t, "inverse", job.size)
                    written += write_map(path, job.convention, found.positions, found.visibility, job.size, header)
                    folds[layer] += found.folded_share / len(job.frames)
            report(Progress("mapping frames", done, len(job.frames)))

        comp = CompDescription(
            convention=job.convention,
            layers=tuple(
                CompLayer(job.maps.layers[layer], job.pictures[layer].size, overlay_sizes[layer], job.flat_sizes[layer])
                for layer in job.layers
            ),
            size=job.size,
            frames=tuple(job.numbers[t] for t in job.frames),
            first_number=target.first_number,
            last_number=job.numbers[-1],
            digits=job.digits,
            rate=job.metadata.rate,
            pixel_aspect=float(job.metadata.pixel_aspect),
            # The path of the source says something about the machine.
            source=locate_source(job.metadata, target.folder) if target.metadata else None,
            forward=self.direction != "inverse",
            inverse=self.direction != "forward",
            light=job.maps.has_gain and self.direction != "inverse",
        )
        _write_texts(job, comp)

        names = ", ".join(entry.name for entry in comp.layers)
        size = f"{written / 1e6:.1f} MB"
        notes.append(f"maps of {len(comp.frames)} frames ({names}) take {size}; README.txt says how to use them")
        if written > 1_000_000_000:
            notes.append("--every 2, one --layer or one --direction writes less")
        for layer, share in folds.items():
            if share > 0.01:
                name = job.maps.layers[layer]
                notes.append(f"{share:.0%} of the layer {name} is in folds of its map: its inverse has A = 0 there")
        if others := [edit.folder.name for edit in job.edits if not _is_still(edit)]:
            notes.append(f"the overlays do not show {', '.join(others)}: more than still paint; unwrap render does")
        if job.metadata.variable_rate:
            notes.append("the frame rate of the source varies: the maps are numbered by frame, whatever its time")
        return notes

    def _plan_job(self, target: Target) -> _STMapJob:
        """Checks the settings, and works out what will be written."""
        layers = target.run.select_layers(self.layer)
        if self.every < 1:
            raise bad_input(
                f"every {self.every} frames cannot be written",
                where="--every",
                why="1 writes all frames, 2 every second one",
                fix="--every 1",
            )
        metadata, numbers = target.run.metadata, target.frame_numbers
        pictures = {layer: target.run.canonical(target.run.layers[layer]) for layer in layers}
        edits = target.run.active_edits()
        size = parse_size(self.size, metadata.width, metadata.height)
        flat_sizes = {layer: picture.size for layer, picture in pictures.items()}
        if self.canonical_size != "source":
            try:
                flat_sizes = {
                    layer: parse_size(self.canonical_size, *picture.size) for layer, picture in pictures.items()
                }
            except UserError as error:
                error.where = "--canonical-size"
                raise
        return _STMapJob(
            target=target,
            convention=CONVENTIONS[self.convention],
            layers=layers,
            frames=range(0, target.run.maps.frame_count, self.every),
            numbers=numbers,
            metadata=metadata,
            size=size,
            pictures=pictures,
            flat_sizes=flat_sizes,
            edits=edits,
            made=build_provenance(target.run, "stmap", [e for e in edits if _is_still(e)]) if target.metadata else {},
        )


@dataclass(frozen=True)
class _STMapJob:
    """The files of one export, worked out before the first is written."""

    target: Target
    convention: MapConvention
    layers: Sequence[int]
    frames: range  # of the run
    numbers: range  # of each frame of the run, in the files
    metadata: VideoMetadata
    size: tuple[int, int]
    pictures: dict[int, CanonicalImage]
    flat_sizes: dict[int, tuple[int, int]]
    edits: Sequence[Edit]  # the active ones
    made: dict[str, str]  # what made the files, where they may say it

    @property
    def maps(self) -> Maps:
        """The baked maps of the run."""
        return self.target.run.maps

    @property
    def digits(self) -> int:
        """Digits of a frame number in a file name."""
        return max(4, len(str(self.numbers[-1])))

    def map_path(self, kind: str, layer: int, t: int) -> Path:
        """Returns the file of a frame, by its number.

        Args:
            kind: folder of the maps, such as "forward".
            layer: number of the layer, front to back.
            t: place of the frame in the run.
        """
        name = f"{self.maps.layers[layer]}.{self.numbers[t]:0{self.digits}d}{self.convention.suffix}"
        return self.target.folder / kind / name

    def exr_header(self, layer: int, t: int, direction: str, points_into: tuple[int, int]) -> dict[str, Any]:
        """Returns the attributes of an .exr file.

        Args:
            layer: number in the maps.
            t: number of the frame in the run.
            direction: of the map.
            points_into: (width, height) of the picture that the positions point into.
        """
        rate = self.metadata.rate
        return {
            "uvOrigin": self.convention.origin,
            "uvUnit": self.convention.unit,
            "direction": direction,
            "layer": self.maps.layers[layer],
            "frame": self.numbers[t],
            "pictureWidth": points_into[0],
            "pictureHeight": points_into[1],
            "framesPerSecond": (rate.numerator, rate.denominator),
            **self.made,
        }

    def estimate_bytes(self, direction: str) -> int:
        """Estimates the size of the files on disk in bytes, rather too high than too low."""
        frame = self.size[0] * self.size[1]
        forward = frame * (16 + (8 if self.maps.has_gain else 0)) if direction != "inverse" else 0
        each = [forward + (16 * w * h if direction != "forward" else 0) for w, h in self.flat_sizes.values()]
        packed = 0.5 if self.convention.suffix == ".exr" else 1.0  # more than float32 maps and masks take under ZIP
        pictures = sum(8 * picture.size[0] * picture.size[1] for picture in self.pictures.values())
        return int(packed * len(self.frames) * sum(each)) + pictures


def _is_still(edit: Edit) -> bool:
    """Tells whether an edit consists only of pictures that lie on their layers all the time."""
    record, arrangement = edit.record, edit.arrangement
    is_plain = arrangement.blend == "normal" and not arrangement.changes_in_time and record.lit
    return is_plain and not (record.shapes or record.animated or record.grades or record.removal)


def uv_to_shares(uv: Float[np.ndarray, "height width 2"], box: Box) -> Float[np.ndarray, "height width 2"]:
    """Converts uv to shares of the box's width and height from its top left corner, in double precision."""
    return (uv.astype(np.float64) - [box.u0, box.v0]) / [box.width, box.height]


def _write_texts(job: _STMapJob, comp: CompDescription) -> None:
    """Writes the README, the script of the program, and stmap.json."""
    folder = job.target.folder
    texts = {"README.txt": readme_text(comp)}
    if comp.forward and comp.convention.program == "Nuke":
        texts["comp.nk"] = build_nuke_script(comp)
    if comp.forward and comp.convention.program == "Blender":
        texts["comp_blender.py"] = build_blender_script(comp)
    for name, text in texts.items():
        with atomic_write(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    layers = [
        {
            "name": entry.name,
            "box": list(job.pictures[layer].box.as_tuple()),
            "canonical": {"file": f"canonical/{entry.name}.png", "size": list(entry.size)},
            "overlay": f"overlay/{entry.name}.png",
            "overlay_size": list(entry.overlay_size),
            **{kind: comp.file_pattern(kind, entry) for kind in comp.map_kinds},
            **({"inverse_size": list(entry.unwrapped_size)} if comp.inverse else {}),
        }
        for layer, entry in zip(job.layers, comp.layers, strict=True)
    ]
    described = {
        "version": 1,
        "for": job.convention.program,
        "origin": job.convention.origin,
        "unit": job.convention.unit,
        "frame_size": list(job.size),
        "frames": list(comp.frames),
        "rate": str(job.metadata.rate),
        "layers": layers,
        **job.made,
    }
    write_json(folder / "stmap.json", described)
