"""Deformed layers: the frames are those of a clip whose surface was deformed, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from editors.core import history, stack
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_extrapolation import extrapolate_uv
from neural_fields.atlas.uv_maps import Maps, gain_size
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip
from neural_fields.data.synthetic.suite import make_suite_clip
from neural_fields.data.synthetic.surfaces import PlanarSurface
from neural_fields.edits.payloads import flatten_overlays, read_shapes
from neural_fields.edits.record import EditOrigin
from neural_fields.edits.shape import Deformation
from neural_fields.open_runs.base import OpenRun
from neural_fields.rendering.compositor import read_deformations
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.run import Run
from tests.support.map_arrays import save_map

pytestmark = pytest.mark.slow

Displacement = Callable[[np.ndarray], np.ndarray]  # uv to uv units
SIZE, FRAMES = (112, 63), 5


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def known_maps(run: Run, clip: SyntheticClip, unknown: float = 0.3) -> Maps:
    """The true maps of a clip, with nonsense for the uv of objects where they are not seen, as a fit has it."""
    rim, generator = 1, np.random.default_rng(0)
    size, rest = (clip.width, clip.height), np.ones((clip.count, clip.height, clip.width), np.float32)
    weights = []
    for alpha in clip.alpha:
        weights.append(rest * alpha)
        rest = rest * (1 - alpha)
    weights.append(rest)
    weight = np.stack(weights, axis=1)
    run.maps.mkdir(parents=True)
    for number, surface in enumerate(clip.surfaces):
        uv = clip.uv[number].copy()
        if number < len(clip.surfaces) - 1:
            hidden = weight[:, number] < 0.02
            uv[hidden] += unknown * generator.standard_normal((int(hidden.sum()), 2)).astype(np.float32)
        save_map(run.maps, f"uv-{surface.name}", np.pad(uv, ((0, 0), (rim, rim), (rim, rim), (0, 0)), "edge"))
        small = np.stack([cv2.resize(gain, gain_size(size), interpolation=cv2.INTER_AREA) for gain in clip.gain])
        pads = ((0, 0), (rim, rim), (rim, rim), (0, 0))
        save_map(run.maps, f"gain-{surface.name}", np.pad(small, pads, "edge"))
    rimmed = np.pad(weight, ((0, 0), (0, 0), (rim, rim), (rim, rim)), "edge")
    save_map(run.maps, "weight", np.round(255 * rimmed).astype(np.uint8))
    facts = {
        "layers": clip.layer_names, "boxes": [box.as_tuple() for box in clip.boxes], "size": size,
        "frame_count": clip.count, "has_gain": True,
    }  # fmt: skip
    (run.maps / "maps.json").write_text(json.dumps(facts))
    return Maps.open(run.maps)


def pictures(clip: SyntheticClip) -> dict[str, CanonicalImage]:
    found = {}
    for surface in clip.surfaces:
        rgb = torch.from_numpy(surface.texture).permute(2, 0, 1).float()
        alpha = torch.ones_like(rgb[:1])
        if surface.outline_distance is not None:
            alpha[0] = torch.from_numpy((surface.outline_distance < 0).astype(np.float32))
        rgba = torch.cat([rgb, alpha]).movedim(0, -1).contiguous().numpy()
        found[surface.name] = CanonicalImage(rgba, surface.box, surface.name)
    return found


def wide(box: Box, share: float = 1.0) -> Box:
    """A box with a margin of a share of its sides."""
    x, y = share * box.width, share * box.height
    return Box(box.u0 - x, box.v0 - y, box.u1 + x, box.v1 + y)


def deformed(clip: SyntheticClip, d: Displacement, layer: int = 0) -> SyntheticClip:
    """The clip with a surface deformed: what is painted on it, and its outline."""
    surface = clip.surfaces[layer]
    box, scale = wide(surface.box), 3
    size = (surface.texture.shape[1] * scale, surface.texture.shape[0] * scale)
    uv = coords.texel_centers(box, *size)
    source = uv.double() - torch.from_numpy(d(uv.reshape(-1, 2).double().numpy())).view(*uv.shape)

    def moved(image: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(np.ascontiguousarray(image)).double().permute(2, 0, 1)[None]
        return coords.sample_canonical(planes, surface.box, source[None])[0].permute(1, 2, 0).float().numpy()

    assert surface.outline_distance is not None
    new = PlanarSurface(
        surface.name,
        moved(surface.texture),
        box,
        moved(surface.outline_distance[..., None])[..., 0],
        surface.transforms,
        surface.warp,
    )
    return replace(clip, surfaces=(*clip.surfaces[:layer], new, *clip.surfaces[layer + 1 :]))


def center_of(clip: SyntheticClip) -> tuple[np.ndarray, float]:
    box = clip.surfaces[0].box
    return np.array([box.u0 + box.u1, box.v0 + box.v1]) / 2, box.width / 3.4


def faded(uv: np.ndarray, center: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """One within a distance, zero beyond another."""
    part = np.clip((np.linalg.norm(uv - center, axis=-1) - inner) / (outer - inner), 0, 1)
    return (1 - part**2 * (3 - 2 * part))[..., None]


def translated(clip: SyntheticClip) -> Displacement:
    """Most of its own size to the side."""
    center, radius = center_of(clip)
    return lambda uv: np.array([1.2 * radius, 0.3 * radius]) * faded(uv, center, 3.2 * radius, 7 * radius)


def grown(clip: SyntheticClip) -> Displacement:
    center, radius = center_of(clip)
    return lambda uv: (uv - center) * (1 - 1 / 1.45) * faded(uv, center, 3 * radius, 9 * radius)


def shrunk(clip: SyntheticClip) -> Displacement:
    center, radius = center_of(clip)
    return lambda uv: (uv - center) * (1 - 1 / 0.7) * faded(uv, center, 2 * radius, 7 * radius)


def bent(clip: SyntheticClip) -> Displacement:
    center, radius = center_of(clip)

    def displacement(uv: np.ndarray) -> np.ndarray:
        x, y = ((uv - center) / radius).T
        return (
            radius
            * np.stack([0.25 * np.sin(1.5 * y), 0.3 * x * x - 0.2], -1)
            * faded(uv, center, 2 * radius, 6 * radius)
        )

    return displacement


def shape_of(clip: SyntheticClip, d: Displacement, side: int = 160, layer: int = 0) -> Deformation:
    box = wide(clip.surfaces[layer].box, 1.2)
    uv = coords.texel_centers(box, side, side).double().numpy()
    field = np.moveaxis(d(uv.reshape(-1, 2)).reshape(side, side, 2), -1, 0).astype(np.float32)
    field[:, [0, -1]] = field[:, :, [0, -1]] = 0
    return Deformation(field, box)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def decibels(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((one.astype(float) - other)[where] ** 2).mean()))


def check(renderer: WarpPass, clip: SyntheticClip, truth: SyntheticClip, least: float) -> None:
    """Renders three frames and compares them with the truth: where it changed, its silhouette, and everywhere else."""
    for t in (0, clip.count - 1):
        shown, reach = renderer.render_frame(t, clip.frames[t]), renderer.affected_mask(t, (clip.width, clip.height))
        changed = np.abs(truth.frames[t].astype(int) - clip.frames[t]).max(-1) > 3
        assert np.array_equal(shown[~reach], clip.frames[t][~reach])
        assert (changed & ~reach).sum() <= 0.01 * changed.sum()
        assert decibels(shown, truth.frames[t], changed | reach) >= least
        weights = renderer.deform_frame(t, clip.frames[t])[1]
        assert iou(weights[0] >= 0.5, truth.masks[0][t]) >= 0.95
        assert np.abs(weights.sum(axis=0) - 1).max() < 1e-4


@pytest.mark.parametrize("kind", [translated, grown, shrunk, bent])
def test_a_deformed_object_looks_as_if_its_surface_had_been_deformed(run: Run, kind: Callable) -> None:
    clip = make_demo_clip(FRAMES, *SIZE)
    shapes = {"foreground": (shape_of(clip, kind(clip)),)}
    check(WarpPass(known_maps(run, clip), pictures(clip), {}, shapes), clip, deformed(clip, kind(clip)), least=28.0)


@pytest.mark.parametrize("name", ["perspective", "wave"])
def test_so_it_does_where_the_surface_leans_or_wriggles(run: Run, name: str) -> None:
    clip = make_suite_clip(name, FRAMES, SIZE)
    shapes = {"foreground": (shape_of(clip, bent(clip)),)}
    check(WarpPass(known_maps(run, clip), pictures(clip), {}, shapes), clip, deformed(clip, bent(clip)), least=28.0)


def test_paint_is_deformed_with_the_object(run: Run) -> None:
    clip = make_demo_clip(FRAMES, *SIZE)
    surface, overlay = clip.surfaces[0], np.zeros((*clip.surfaces[0].texture.shape[:2], 4), np.float32)
    rows, columns = (slice(round(0.35 * side), round(0.65 * side)) for side in overlay.shape[:2])
    overlay[rows, columns] = (1, 0.1, 0.2, 1)
    texture = surface.texture.copy()
    texture[rows, columns] = (1, 0.1, 0.2)
    painted = replace(clip, surfaces=(replace(surface, texture=texture), clip.surfaces[1]))
    overlays, shapes = {"foreground": Overlay(overlay, surface.box)}, {"foreground": (shape_of(clip, grown(clip)),)}
    renderer, truth = WarpPass(known_maps(run, clip), pictures(clip), overlays, shapes), deformed(painted, grown(clip))
    for t in (0, FRAMES - 1):
        shown = renderer.render_frame(t, clip.frames[t])
        assert decibels(shown, truth.frames[t], renderer.affected_mask(t, SIZE)) >= 26


def test_a_later_shape_deforms_what_an_earlier_one_shows(run: Run) -> None:
    clip = make_demo_clip(FRAMES, *SIZE)
    first, second = translated(clip), grown(clip)

    def both(uv: np.ndarray) -> np.ndarray:
        return second(uv) + first(uv - second(uv))

    shapes = {"foreground": (shape_of(clip, first), shape_of(clip, second))}
    renderer, truth = WarpPass(known_maps(run, clip), pictures(clip), {}, shapes), deformed(clip, both)
    shown, reach = renderer.render_frame(3, clip.frames[3]), renderer.affected_mask(3, SIZE)
    assert decibels(shown, truth.frames[3], reach) >= 25


@pytest.mark.parametrize("shift", [0.0, 4e-4])  # of uv: not at all, and a hundredth of a pixel
def test_a_shape_that_moves_nothing_gives_the_source_itself(run: Run, shift: float) -> None:
    clip = make_demo_clip(2, 64, 36)
    still = Deformation(np.full((2, 8, 8), shift, np.float32), Box(-1.0, -1.0, 1.0, 1.0))
    renderer = WarpPass(known_maps(run, clip), pictures(clip), {}, {"foreground": (still,)})
    frame = clip.frames[1]
    assert renderer.render_frame(1, frame) is frame


def test_an_object_comes_out_from_behind_another(run: Run) -> None:
    clip = make_suite_clip("occlusion", 12, (112, 63))
    box, t = clip.surfaces[1].box, 8
    center = np.array([box.u0 + box.u1, box.v0 + box.v1]) / 2

    def away(uv: np.ndarray) -> np.ndarray:
        return np.array([0.22, 0.06]) * faded(uv, center, 0.9, 2.0)

    maps, (front, before) = known_maps(run, clip), clip.alpha[:, t]
    assert (front * before).sum() > 0.2 * before.sum()  # a good part of it is hidden
    renderer = WarpPass(maps, pictures(clip), {}, {"back": (shape_of(clip, away, layer=1),)})
    shown, truth = renderer.render_frame(t, clip.frames[t]), deformed(clip, away, layer=1).frames[t]
    assert np.array_equal(shown[front >= 1], clip.frames[t][front >= 1])
    changed = np.abs(truth.astype(int) - clip.frames[t]).max(-1) > 3
    assert decibels(shown, truth, changed) >= 24


# --- where a layer is not seen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_map_goes_on_beyond_what_is_seen_whatever_is_stored_there(seed: int) -> None:
    generator = np.random.default_rng(seed)
    centers = coords.pixel_centers(96, 64).numpy()
    turn = np.array([[0.02, 0.004], [-0.005, 0.018]]) + 0.002 * generator.standard_normal((2, 2))
    bend = generator.uniform(-2e-5, 2e-5, 2)
    truth = centers @ turn.T + bend * (centers[..., :1] - 48) ** 2
    seen = ((centers - [48, 32]) ** 2).sum(-1) < 14**2
    given = np.where(seen[..., None], truth, generator.standard_normal(truth.shape)).astype(np.float32)
    found = extrapolate_uv(given, seen)
    assert found is not None
    np.testing.assert_allclose(found.uv[seen], given[seen], atol=1e-5)
    near = ((centers - [48, 32]) ** 2).sum(-1) < 24**2
    assert np.abs(found.uv - truth)[near].max() < 0.02  # a pixel
    points = generator.uniform([-20, -20], [116, 84], (200, 2))
    back, off = found.solve_positions(found.sample_uv(points), points + generator.uniform(-8, 8, points.shape))
    assert off.max() < 0.01 and np.abs(back - points).max() < 0.05


def test_a_layer_that_is_hardly_seen_has_no_map() -> None:
    uv = coords.frame_xy(32, 18).numpy()
    line = np.zeros((18, 32), bool)
    assert extrapolate_uv(uv, line) is None
    line[5] = True
    assert extrapolate_uv(uv, line) is None


# --- on disk ---------------------------------------------------------------------------------------------------------


def shape(value: float = 0.1) -> Deformation:
    field = np.full((2, 6, 9), value, np.float32)
    return Deformation(field * np.arange(9, dtype=np.float32), Box(-0.5, -0.25, 0.5, 0.25))


def test_an_edit_keeps_its_shape_beside_its_overlays(run: Run) -> None:
    overlay = Overlay(np.ones((4, 8, 4), np.float32), Box(-1.0, -0.5, 1.0, 0.5))
    plain = stack.add_edit(run, "paint", {"foreground": overlay}, EditOrigin(editor="image"))
    shapes = {"foreground": shape(), "back ground": shape(0.2)}
    both = stack.add_edit(run, "both", {"foreground": overlay}, shapes=shapes)
    alone = stack.add_edit(run, "alone", {}, shapes={"foreground": shape(0.3)})
    assert list(alone.record.shapes) == ["foreground"] and not alone.record.overlays
    assert both.layers == ("foreground", "back ground") and alone.layers == ("foreground",)
    back = read_shapes(both, "back ground")[0]
    assert back.box == shape().box and np.array_equal(back.field, shape(0.2).field)
    found = read_deformations(OpenRun(run, {}).active_edits())
    assert [float(part.field[0, 0, 1]) for part in found["foreground"]] == pytest.approx([0.1, 0.3])
    assert (
        flatten_overlays([alone], "foreground") is None
        and flatten_overlays([plain, both, alone], "foreground") is not None
    )
    history.undo(run)
    assert len(read_deformations(OpenRun(run, {}).active_edits())["foreground"]) == 1


def test_an_edit_without_anything_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="changes no layer"):
        stack.add_edit(run, "nothing", {}, shapes={})


@pytest.mark.parametrize("harm", ["bit", "gone", "escape", "size", "not finite", "list", "newer"])
def test_a_damaged_shape_is_reported_by_name(run: Run, harm: str) -> None:
    edit = stack.add_edit(run, "a", {}, shapes={"foreground": shape(np.nan if harm == "not finite" else 0.1)})
    facts, file = edit.folder / "edit.json", edit.folder / "foreground.safetensors"
    text = facts.read_text()
    if harm == "bit":
        data = bytearray(file.read_bytes())
        data[-7] ^= 4
        file.write_bytes(data)
    elif harm == "gone":
        file.unlink()
    elif harm == "escape":
        facts.write_text(text.replace('"foreground.safetensors"', '"../secret.safetensors"'))
    elif harm == "newer":
        facts.write_text(text.replace('"schema": 1', '"schema": 5'))
    elif harm != "not finite":
        described = json.loads(text)
        described["shapes"] = (
            [] if harm == "list" else {"foreground": {**described["shapes"]["foreground"], "size": [9, 7]}}
        )
        facts.write_text(json.dumps(described))
    with pytest.raises(UserError) as caught:
        read_deformations(OpenRun(run, {}).active_edits())
    assert caught.value.code == ExitCode.DAMAGED_RUN and "0001-a" in str(caught.value)
