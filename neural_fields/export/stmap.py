"""`unwrap export RUN stmap`: where every pixel of a frame lies on the canonical pictures, and the way back.

The forward map of a frame takes a canonical picture to the frame, the inverse map takes the frame to the canonical
picture. Both are pictures of positions that compositing programs look up (STMap, UV map), in the convention of the
program that is named. Positions are float32 and the files lossless: half floats are off by a pixel at 4K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage
from neural_fields.config_flags import MapProgram, Repeated
from neural_fields.coords import Box
from neural_fields.data.facts import VideoFacts, parse_size
from neural_fields.edit_files import flatten
from neural_fields.edits import Edit, active_edits
from neural_fields.errors import UserError, bad_input
from neural_fields.export.base import Report, Target, chosen_layers
from neural_fields.export.blender import blender_script
from neural_fields.export.comps import Comp, CompLayer, source_frames_in
from neural_fields.export.conventions import CONVENTIONS, Convention, write_light, write_map
from neural_fields.export.inverse_map import invert
from neural_fields.export.nuke import nuke_script
from neural_fields.export.provenance import provenance
from neural_fields.export.readme import readme
from neural_fields.files import atomic_write, require_room, write_json
from neural_fields.output import source_facts
from neural_fields.pictures import png_bytes

PACKED = 0.5  # of the plain size: more than float32 maps and their masks take under ZIP
MUCH = 1_000_000_000  # bytes from which a note says how to write less
FOLDED = 0.01  # of what is seen of a layer, from which a note tells of folds


@dataclass(frozen=True, kw_only=True)
class STMap:
    """Maps from frames to canonical pictures and back for Nuke, Fusion, Blender, After Effects or OpenCV."""

    name: ClassVar[str] = "stmap"

    layer: Repeated = ()
    """The layers to write (default: all). Repeatable."""
    convention: MapProgram = "nuke"
    """The program that the maps are for: each counts positions in its own way."""
    direction: Literal["forward", "inverse", "both"] = "both"
    """forward puts a canonical picture into the frame, inverse lays the frame out as the canonical picture."""
    size: str = "source"
    """Size of the frames that the maps are for: source, 480p, Np or WxH."""
    canonical_size: str = "source"
    """Size of the inverse maps: source (that of the canonical picture), 480p, Np or WxH."""
    every: int = 1
    """Write every so many frames only: 1 is all of them."""

    def __call__(self, target: Target, report: Report) -> Sequence[str]:
        """Writes the maps, the pictures they point into, and what a program needs to put them together.

        Raises:
            UserError: an unknown layer, a size out of range, `every` below 1, OpenEXR is not installed (exit 3), no
                room (4).
        """
        job = self._job(target)
        require_room(target.folder, job.bytes_at_most(self.direction))
        _write_pictures(job)
        written, folds = 0, dict.fromkeys(job.layers, 0.0)
        for done, t in enumerate(job.frames, start=1):
            weights = job.maps.weight(t, job.size)
            for layer in job.layers:
                if self.direction != "inverse":
                    written += _write_forward(job, t, layer, weights[layer])
                if self.direction != "forward":
                    size, folded = _write_inverse(job, t, layer)
                    written, folds[layer] = written + size, folds[layer] + folded / len(job.frames)
            report("mapping frames", done, len(job.frames))
        comp = _comp(job, self.direction)
        _write_texts(target.folder, comp)
        write_json(target.folder / "stmap.json", _facts(job, comp))
        return _notes(job, comp, written, folds)

    def _job(self, target: Target) -> _Job:
        layers = chosen_layers(target.maps, self.layer)
        if self.every < 1:
            raise bad_input(
                f"every {self.every} frames cannot be written",
                where="--every",
                why="1 writes all frames, 2 every second one",
                fix="--every 1",
            )
        facts, numbers = source_facts(target.run)
        pictures = {layer: canonical.pristine(target.run.canonical, target.maps.layers[layer]) for layer in layers}
        edits = active_edits(target.run)
        return _Job(
            target=target,
            convention=CONVENTIONS[self.convention],
            layers=layers,
            frames=range(0, target.maps.frame_count, self.every),
            numbers=numbers,
            facts=facts,
            size=parse_size(self.size, facts.width, facts.height),
            pictures=pictures,
            flat_sizes={layer: self._flat_size(picture) for layer, picture in pictures.items()},
            edits=edits,
            made=provenance(target.run, "stmap", [e for e in edits if _is_still(e)]) if target.metadata else {},
        )

    def _flat_size(self, picture: CanonicalImage) -> tuple[int, int]:
        """The size of the inverse maps of a layer."""
        if self.canonical_size == "source":
            return picture.size
        try:
            return parse_size(self.canonical_size, *picture.size)
        except UserError as error:
            error.where = "--canonical-size"
            raise


@dataclass(frozen=True)
class _Job:
    """What is written, worked out before the first file."""

    target: Target
    convention: Convention
    layers: Sequence[int]
    frames: range  # of the run
    numbers: range  # in the source, of each frame of the run
    facts: VideoFacts
    size: tuple[int, int]
    pictures: dict[int, CanonicalImage]
    flat_sizes: dict[int, tuple[int, int]]
    edits: Sequence[Edit]  # the active ones
    made: dict[str, str]  # what made the files, where they may say it

    @property
    def maps(self) -> Maps:
        return self.target.maps

    @property
    def digits(self) -> int:
        return max(4, len(str(self.numbers[-1])))

    def path(self, kind: str, layer: int, t: int) -> Path:
        """The file of a frame, by its number in the source."""
        name = f"{self.maps.layers[layer]}.{self.numbers[t]:0{self.digits}d}{self.convention.suffix}"
        return self.target.folder / kind / name

    def header(self, layer: int, t: int, direction: str, points_into: tuple[int, int]) -> dict[str, Any]:
        """The attributes of an .exr file; `points_into` is the (width, height) of the picture to look up."""
        rate = self.facts.rate
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

    def bytes_at_most(self, direction: str) -> int:
        """About what the files will take on the disk, and rather more."""
        frame = self.size[0] * self.size[1]
        forward = frame * (16 + (8 if self.maps.has_gain else 0)) if direction != "inverse" else 0
        each = [forward + (16 * w * h if direction != "forward" else 0) for w, h in self.flat_sizes.values()]
        packed = PACKED if self.convention.suffix == ".exr" else 1.0
        pictures = sum(8 * picture.size[0] * picture.size[1] for picture in self.pictures.values())
        return int(packed * len(self.frames) * sum(each)) + pictures


def _write_pictures(job: _Job) -> None:
    """The canonical pictures that the maps point into, and overlays of their size: the edits so far, or transparent."""
    for picture in job.pictures.values():
        edits = [edit for edit in job.edits if _is_still(edit)]
        overlay = flatten(edits, picture.layer, picture.size, picture.box)
        clear = np.zeros((*picture.size[::-1], 4), np.float32)
        for kind, pixels in (("canonical", picture.array()), ("overlay", clear if overlay is None else overlay.rgba)):
            with atomic_write(job.target.folder / kind / f"{picture.layer}.png") as part:
                part.write_bytes(png_bytes(pixels))


def _is_still(edit: Edit) -> bool:
    """Whether an edit is nothing but pictures that lie on their layers all the time."""
    more = any(edit.facts.get(key) for key in ("shapes", "moving", "grades", "hidden"))
    lies = edit.arrangement
    return lies.blend == "normal" and not lies.changes_in_time and not more and edit.facts.get("lit", True)


def _write_forward(job: _Job, t: int, layer: int, weight: Float[np.ndarray, "height width"]) -> int:
    """The map of one frame and layer, and its light; returns the bytes written."""
    picture = job.pictures[layer]
    place = shares(job.maps.uv(t, layer, job.size), picture.box)
    inside = ((place >= 0) & (place <= 1)).all(axis=-1)
    path, header = job.path("forward", layer, t), job.header(layer, t, "forward", picture.size)
    written = write_map(path, job.convention, place, weight * inside, picture.size, header)
    if job.maps.has_gain:
        gain = job.maps.gain(t, layer, job.size)
        written += write_light(job.path("light", layer, t), job.convention, gain, header | {"direction": "light"})
    return written


def _write_inverse(job: _Job, t: int, layer: int) -> tuple[int, float]:
    """The inverse map of one frame and layer; returns the bytes written, and the share of the layer that folds."""
    uv, weight = job.maps.rimmed(t, layer)
    found = invert(uv, weight, job.pictures[layer].box, job.flat_sizes[layer])
    header = job.header(layer, t, "inverse", job.size)
    path = job.path("inverse", layer, t)
    return write_map(path, job.convention, found.place, found.visible, job.size, header), found.folded


def shares(uv: Float[np.ndarray, "height width 2"], box: Box) -> Float[np.ndarray, "height width 2"]:
    """uv as shares of the box's width and height from its top left corner, in double precision."""
    return (uv.astype(np.float64) - [box.u0, box.v0]) / [box.width, box.height]


def _comp(job: _Job, direction: str) -> Comp:
    layers = tuple(
        CompLayer(job.maps.layers[layer], job.pictures[layer].size, job.flat_sizes[layer]) for layer in job.layers
    )
    return Comp(
        convention=job.convention,
        layers=layers,
        size=job.size,
        frames=tuple(job.numbers[t] for t in job.frames),
        digits=job.digits,
        rate=job.facts.rate,
        pixel_aspect=float(job.facts.pixel_aspect),
        # Where the source lies says something of the machine.
        source=source_frames_in(job.facts, job.target.folder) if job.target.metadata else None,
        forward=direction != "inverse",
        inverse=direction != "forward",
        light=job.maps.has_gain and direction != "inverse",
    )


def _write_texts(folder: Path, comp: Comp) -> None:
    texts = {"README.txt": readme(comp)}
    if comp.forward and comp.convention.program == "Nuke":
        texts["comp.nk"] = nuke_script(comp)
    if comp.forward and comp.convention.program == "Blender":
        texts["comp_blender.py"] = blender_script(comp)
    for name, text in texts.items():
        with atomic_write(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def _facts(job: _Job, comp: Comp) -> dict[str, Any]:
    """What stmap.json says."""
    return {
        "version": 1,
        "for": job.convention.program,
        "origin": job.convention.origin,
        "unit": job.convention.unit,
        "frame_size": list(job.size),
        "frames": list(comp.frames),
        "rate": str(job.facts.rate),
        "layers": [
            {
                "name": entry.name,
                "box": list(job.pictures[layer].box.as_tuple()),
                "canonical": {"file": f"canonical/{entry.name}.png", "size": list(entry.size)},
                "overlay": f"overlay/{entry.name}.png",
                **{kind: comp.files(kind, entry) for kind in comp.kinds},
                **({"inverse_size": list(entry.flat_size)} if comp.inverse else {}),
            }
            for layer, entry in zip(job.layers, comp.layers, strict=True)
        ],
        **job.made,
    }


def _notes(job: _Job, comp: Comp, written: int, folds: dict[int, float]) -> list[str]:
    names = ", ".join(entry.name for entry in comp.layers)
    notes = [
        f"maps of {len(comp.frames)} frames ({names}) take {written / 1e6:.1f} MB; README.txt says how to use them"
    ]
    if written > MUCH:
        notes.append("--every 2, one --layer or one --direction writes less")
    for layer, share in folds.items():
        if share > FOLDED:
            name = job.maps.layers[layer]
            notes.append(f"{share:.0%} of the layer {name} lies in folds of its map: its inverse has A = 0 there")
    others = [edit.folder.name for edit in job.edits if not _is_still(edit)]
    if others:
        notes.append(f"the overlays do not show {', '.join(others)}: more than still paint; unwrap render does")
    if job.facts.variable_rate:
        notes.append("the frame rate of the source varies: the maps are numbered by frame, whatever its time")
    return notes
