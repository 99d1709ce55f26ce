"""Canonical images: the still pictures a video is turned into, and the overlays that change them.

In a run `canonical/<layer>.png` is made to be painted on, `canonical/<layer>.json` holds its metadata, and
`canonical/pristine/` keeps every version the tool has written, so that a painted picture can be compared with exactly
the one it started from. A picture that somebody painted over is never written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neural_fields.core import coords
from neural_fields.core.coords import Box
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write, read_json, write_json
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import Picture, encode_png, read_picture


@dataclass(frozen=True)
class Overlay:
    """A change of one canonical image.

    Attributes:
        rgba: float32 [h, w, 4], straight alpha, in [0, 1]; black where alpha is zero. Premultiply before resampling.
        box: the part of the canonical plane it covers. Its size in pixels is free.
        notes: what the user should know about how it was made.
    """

    rgba: Float[np.ndarray, "height width 4"]
    box: Box
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgba.shape[1], self.rgba.shape[0]


@dataclass(frozen=True)
class CanonicalImage:
    """One layer as a still picture: float32 [4, h, w] in [0, 1], straight alpha that says where the video shows it.

    Example:
        >>> image = CanonicalImage(torch.ones(4, 2, 3), Box(-1, -1, 1, 1), "background")
        >>> image.sample(torch.zeros(1, 2)).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    rgba: Float[Tensor, "4 height width"]
    box: Box
    layer: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgba.shape[2], self.rgba.shape[1]

    def to_array(self) -> Float[np.ndarray, "height width 4"]:
        """Returns the picture as a numpy array, channels last."""
        return self.rgba.permute(1, 2, 0).contiguous().cpu().numpy()

    def sample_rgba(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 4"]:
        """Samples straight colors and alpha bilinearly at any uv. Outside the box alpha is zero."""
        alpha = self.rgba[3:]
        flat = uv.reshape(1, 1, -1, 2).to(self.rgba)
        image = torch.cat([self.rgba[:3] * alpha, alpha])[None]
        found = coords.sample_canonical(image, self.box, flat, padding="zeros")[0, :, 0].T
        color = torch.where(found[:, 3:] > 1e-6, found[:, :3] / found[:, 3:].clamp(min=1e-6), 0.0)
        return torch.cat([color, found[:, 3:]], dim=1).reshape(*uv.shape[:-1], 4)

    def composite_overlay(self, overlay: Overlay) -> CanonicalImage:
        """Composites an overlay over this picture, at this picture's size."""
        on_top = torch.from_numpy(resample_overlay(overlay, self.size, self.box)).to(self.rgba).permute(2, 0, 1)
        below = torch.cat([self.rgba[:3] * self.rgba[3:], self.rgba[3:]])
        mixed = torch.cat([on_top[:3] * on_top[3:], on_top[3:]]) + below * (1 - on_top[3:])
        color = torch.where(mixed[3:] > 1e-6, mixed[:3] / mixed[3:].clamp(min=1e-6), self.rgba[:3])
        return CanonicalImage(torch.cat([color, mixed[3:]]), self.box, self.layer)


@dataclass(frozen=True)
class ExportedCanonical:
    """Where a canonical image was written, and what to tell the user."""

    path: Path
    notes: tuple[str, ...] = ()


def export_canonical(
    folder: Path, image: CanonicalImage, frames_seen: Int[Tensor, "height width"] | None = None
) -> ExportedCanonical:
    """Writes one layer into `run.canonical`: the picture to paint on, its metadata, and a pristine copy.

    A picture there that is not one of ours, byte for byte, belongs to the user: it stays, and the new one goes to
    `<layer>.new.png` (`<layer>.new2.png` and so on).

    Args:
        folder: `run.canonical`.
        image: the layer.
        frames_seen: in how many frames each texel is seen.
    """
    data = encode_png(image.to_array())
    digest = hashlib.sha256(data).hexdigest()
    sidecar = folder / f"{image.layer}.json"
    version: dict[str, Any] = {"sha256": digest, "box": list(image.box.as_tuple()), "size": list(image.size)}
    versions = [old for old in _read_versions(sidecar) if old["sha256"] != digest] + [version]
    counts: dict[str, Any] | None = None
    if frames_seen is not None:
        seen = frames_seen[frames_seen > 0]
        counts = {"share": round(float((frames_seen > 0).float().mean()), 6), "min": 0, "median": 0, "max": 0}
        if seen.numel():
            counts |= {"min": int(seen.min()), "median": int(seen.median()), "max": int(seen.max())}
    metadata = {
        "version": 1,  # of this format
        "layer": image.layer,
        "box": version["box"],
        "size": version["size"],
        "alpha": "coverage, straight",
        "frames_seen": counts,
        "sha256": digest,
        "versions": versions,
    }
    # The pristine copy first and the metadata before the picture: a stop in between never makes our picture a stranger.
    with atomic_write(folder / "pristine" / _pristine_name(image.layer, digest)) as part:
        part.write_bytes(data)
    write_json(sidecar, metadata)
    ours = {old["sha256"] for old in versions}
    for ending in chain(("", ".new"), (f".new{n}" for n in count(2))):
        path = folder / f"{image.layer}{ending}.png"
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() in ours:
            break
    with atomic_write(path) as part:
        part.write_bytes(data)
    if path.name == f"{image.layer}.png":
        return ExportedCanonical(path)
    return ExportedCanonical(path, (f"{image.layer}.png was painted on, so it stays; the new picture is {path.name}",))


def list_layers(folder: Path) -> list[str]:
    """Lists the layers exported into `run.canonical`."""
    return sorted(path.stem for path in folder.glob("*.json"))


def read_pristine(folder: Path, layer: str) -> CanonicalImage:
    """Reads the newest picture of a layer as the tool wrote it.

    Raises:
        UserError: unknown layer (exit 3, lists the layers), damaged file (exit 5).
    """
    return _read_pristine_version(folder, layer, _known_versions(folder, layer)[-1])


def find_base_version(folder: Path, layer: str, painted: Picture) -> CanonicalImage:
    """Finds the version of a layer that a painted picture started from: the one that most of its texels still equal.

    Training that goes on exports the layer again; a picture painted before has to be compared with the older version.

    Args:
        folder: `run.canonical`.
        layer: the layer's name.
        painted: the picture.

    Raises:
        UserError: as `read_pristine`.
    """
    versions = _known_versions(folder, layer)
    newest = _read_pristine_version(folder, layer, versions[-1])
    if len(versions) == 1:
        return newest
    candidates = [newest] + [_read_pristine_version(folder, layer, version) for version in reversed(versions[:-1])]
    same_size = [image for image in candidates if image.size == painted.size]
    return min(same_size, key=lambda image: _median_difference(image, painted)) if same_size else newest


def resample_overlay(overlay: Overlay, size: tuple[int, int], box: Box) -> Float[np.ndarray, "height width 4"]:
    """Resamples an overlay to `size` texels over a box; transparent where it does not reach.

    Args:
        overlay: any overlay of the same canonical plane.
        size: (width, height) of the result in texels.
        box: that the result covers.

    Returns:
        RGBA in [0, 1], straight alpha.
    """
    if overlay.box == box:
        if overlay.size == size:
            return overlay.rgba
        return unpremultiply(resize_image(premultiply(overlay.rgba), size))
    rgba = premultiply(overlay.rgba)
    finer = (box.width / size[0]) / (overlay.box.width / overlay.size[0])  # texels of the overlay to one of the result
    if finer > 4.0:  # averaged before it is sampled, so that no texel is missed
        halved = 2.0 ** np.floor(np.log2(finer / 2))
        smaller = (max(1, round(overlay.size[0] / halved)), max(1, round(overlay.size[1] / halved)))
        rgba = np.ascontiguousarray(resize_image(rgba, smaller))
    image = torch.from_numpy(rgba).permute(2, 0, 1)[None]
    uv = coords.texel_centers(box, *size)[None]
    found = coords.sample_canonical(image, overlay.box, uv, padding="zeros")[0]
    return unpremultiply(found.permute(1, 2, 0).numpy())


def is_number_list(value: Any, count: int) -> bool:
    """Tells whether a value read from JSON is a list of `count` numbers."""
    return isinstance(value, list) and len(value) == count and all(isinstance(item, int | float) for item in value)


def _median_difference(image: CanonicalImage, painted: Picture) -> float:
    step = max(1, max(image.size) // 256)  # a few ten thousand texels tell versions apart
    base, other = image.to_array()[::step, ::step], painted.rgba[::step, ::step]
    seen = base[..., 3] > 0.5
    return float(np.median(np.abs(base - other)[..., :3][seen])) if seen.any() else 0.0


def _pristine_name(layer: str, digest: str) -> str:
    return f"{layer}-{digest[:12]}.png"


def _read_pristine_version(folder: Path, layer: str, version: Mapping[str, Any]) -> CanonicalImage:
    """Reads an exported picture, and refuses one of another size than its metadata says."""
    path = folder / "pristine" / _pristine_name(layer, version["sha256"])
    width, height = version["size"]
    try:
        picture = read_picture(path)
    except UserError as problem:
        raise _damaged_error(path, problem.what) from problem
    if picture.size != (width, height):
        texels = f"{picture.size[0]}x{picture.size[1]} texels"
        raise _damaged_error(path, f"it has {texels}, its metadata says {width}x{height}")
    box = Box(*map(float, version["box"]))
    return CanonicalImage(torch.from_numpy(picture.rgba).permute(2, 0, 1).contiguous(), box, layer)


def _known_versions(folder: Path, layer: str) -> list[dict[str, Any]]:
    """Returns the exported versions of a layer, the newest last; refuses a layer that has none."""
    names = list_layers(folder)
    if layer not in names:
        raise bad_input(
            f"there is no layer {layer!r}",
            where=str(folder),
            why=f"the layers are: {', '.join(names)}" if names else "no layer has been exported yet",
            fix=f"--layer {names[0]}" if names else "unwrap train to the end first",
        )
    versions = _read_versions(folder / f"{layer}.json")
    if not versions:
        raise _damaged_error(folder / f"{layer}.json", "it lists no exported picture")
    return versions


def _read_versions(sidecar: Path) -> list[dict[str, Any]]:
    """Reads the versions that a sidecar lists, none where there is no sidecar; checks what the code relies on."""
    if not sidecar.exists():
        return []
    metadata = read_json(sidecar)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("layer"), str):
        raise _damaged_error(sidecar, "its metadata is incomplete")
    versions = metadata.get("versions", [])
    for entry in (metadata, *versions):
        is_known = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        if not (is_known and is_number_list(entry.get("box"), 4) and is_number_list(entry.get("size"), 2)):
            raise _damaged_error(sidecar, "its metadata is incomplete")
    return list(versions)


def _damaged_error(path: Path, why: str) -> UserError:
    return UserError(
        ExitCode.DAMAGED_RUN,
        f"{path.name} is damaged",
        where=str(path),
        why=why,
        fix=f"remove {path}; unwrap train with the same --out then writes it again",
    )
