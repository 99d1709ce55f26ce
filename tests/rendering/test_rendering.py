"""What an edit does to the frames of a clip, in closed form: where it appears, in which color, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.threads import available_cores
from neural_fields.data.synthetic.planar_clips import PaintedMark, make_translation_clip
from neural_fields.planar.appearance.grid_gain import GridGain
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.pixel_opacity import PixelOpacity
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.rendering import render_planar
from neural_fields.rendering.edge_guide import EdgeSettings, FrameEdges
from neural_fields.rendering.overlay_pass import OverlayPass, OverlaySettings
from neural_fields.runs.run import Run
from neural_fields.training.bake import bake_maps
from tests.support.typed import as_all, as_one

WIDTH, HEIGHT, FRAMES = 48, 32, 5
NAMES = ("foreground", "background")
RED = (230 / 255, 25 / 255, 51 / 255)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def shifted_maps(run: Run, velocity: tuple[float, float], box: Box, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Maps:
    """Maps of one layer that moves by `velocity` pixels a frame."""
    model = build_model(PlanarConfig(), ModelShape(*size, FRAMES, (LayerShape("background", box, 8, 8),)))
    for t in range(FRAMES):
        as_one(GridMapping, model.mappings[0]).homography[t, :2, 2] = -t * torch.tensor(velocity) * 2 / max(size)
    return bake_maps(run, model.eval(), 1)


def two_layers(seed: int = 0) -> PlanarModel:
    """Layers that overlap softly, turn against each other, and are lit differently."""
    layers = tuple(LayerShape(name, Box(-1.4, -1.2, 1.4, 1.2), 60, 50) for name in NAMES)
    model = build_model(PlanarConfig(), ModelShape(WIDTH, HEIGHT, FRAMES, layers))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, mapping in enumerate(as_all(GridMapping, model.mappings)):
            for t in range(FRAMES):
                mapping.homography[t, :2] += torch.tensor([[0.05 * t, 0.1, 0.03], [-0.1, 0.02, -0.06]]) * (1 - number)
        x = coords.frame_xy(WIDTH, HEIGHT)[..., 0]
        as_one(PixelOpacity, model.opacity).table.values.copy_((8 * x).expand(FRAMES, 1, HEIGHT, WIDTH))
        for gain in as_all(GridGain, model.gains):
            gain.table.flat.copy_(0.1 * torch.randn(gain.table.flat.shape, generator=generator))
        for texture in as_all(ImageTexture, model.textures):
            coarse = torch.rand(1, 3, 6, 7, generator=generator)
            texture.image.copy_(torch.nn.functional.interpolate(coarse, texture.image.shape[1:], mode="bilinear")[0])
    return model.eval()


def pictures(model: PlanarModel) -> dict[str, CanonicalImage]:
    """The canonical picture of every layer."""
    found = {}
    for shape, texture in zip(model.shape.layers, as_all(ImageTexture, model.textures), strict=True):
        rgba = torch.cat([texture.image.detach(), torch.ones_like(texture.image[:1])]).movedim(0, -1)
        found[shape.name] = CanonicalImage(rgba.contiguous().numpy(), shape.box, shape.name)
    return found


def blank(name: str, box: Box) -> CanonicalImage:
    return CanonicalImage(np.full((8, 8, 4), 0.5, np.float32), box, name)


def filled(box: Box, size: tuple[int, int], part: tuple[slice, slice], rgba: tuple[float, ...]) -> Overlay:
    """An overlay that is transparent but for a part (rows, columns)."""
    picture = np.zeros((size[1], size[0], 4), np.float32)
    picture[part] = rgba
    return Overlay(picture, box)


def noise(size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


# --- nothing but the edit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 32), (32, 32), (32, 48)])
def test_one_painted_texel_under_an_identity_mapping_changes_one_pixel_to_that_color(
    run: Run, size: tuple[int, int]
) -> None:
    box = coords.frame_box(*size)
    maps = shifted_maps(run, (0, 0), box, size)
    source = noise(size)
    for row, column in [(0, 0), (11, 17), (size[1] - 1, size[0] - 1)]:
        overlay = filled(box, size, (slice(row, row + 1), slice(column, column + 1)), (*RED, 1))
        shown = OverlayPass(maps, {"background": blank("background", box)}, {"background": overlay}).render_frame(
            0, source
        )
        expected = source.copy()
        expected[row, column] = np.rint(255 * np.array(RED))
        assert np.array_equal(shown, expected)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT), (107, 71)])
def test_pixels_without_an_edit_under_them_are_the_sources_bit_for_bit(run: Run, size: tuple[int, int]) -> None:
    model = two_layers()
    maps = bake_maps(run, model, 1)
    overlay = filled(Box(-1.4, -1.2, 1.4, 1.2), (60, 50), (slice(20, 26), slice(24, 33)), (*RED, 0.7))
    renderer = OverlayPass(maps, pictures(model), {"foreground": overlay})
    for t in range(FRAMES):
        texels = coords.uv_to_texels(torch.from_numpy(maps.read_uv(t, 0, size)), overlay.box, 60, 50).numpy()
        # A bilinear lookup reaches less than one texel beyond the painted ones' centers.
        outside = (texels < [23.49, 19.49]).any(-1) | (texels > [33.51, 26.51]).any(-1)
        shown, source = renderer.render_frame(t, noise(size, t)), noise(size, t)
        assert np.array_equal(shown[outside], source[outside])
        assert (shown != source).any(-1)[~outside].mean() > 0.3


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT), (107, 71), (50, 32), (31, 21)])
def test_an_edit_of_the_whole_layer_leaves_no_pixel_out_not_even_at_the_edges(run: Run, size: tuple[int, int]) -> None:
    box = Box(-3.0, -2.0, 3.0, 2.0)
    overlay = filled(box, (90, 60), (slice(None), slice(None)), (*RED, 1))
    renderer = OverlayPass(
        shifted_maps(run, (2.5, -1.5), box), {"background": blank("background", box)}, {"background": overlay}
    )
    for t in range(FRAMES):
        assert (renderer.render_frame(t, noise(size, t)) == np.rint(255 * np.array(RED))).all()


def test_a_frame_that_does_not_show_the_edit_is_the_very_source_frame(run: Run) -> None:
    maps = shifted_maps(run, (20, 0), Box(-3.0, -1.0, 1.0, 1.0))
    # Painted at the right edge of frame 0, which has left the picture from frame 1 on... to the right.
    overlay = filled(Box(-3.0, -1.0, 1.0, 1.0), (96, 48), (slice(20, 25), slice(90, 94)), (*RED, 1))
    renderer = OverlayPass(maps, {"background": blank("background", overlay.box)}, {"background": overlay})
    source = noise()
    assert renderer.render_frame(0, source) is not source
    assert all(renderer.render_frame(t, source) is source for t in range(1, FRAMES))


def test_without_overlays_every_frame_is_the_very_source_frame(run: Run) -> None:
    maps = shifted_maps(run, (0, 0), Box(-1.0, -1.0, 1.0, 1.0))
    renderer = OverlayPass(maps, {"background": blank("background", Box(-1.0, -1.0, 1.0, 1.0))}, {})
    source = noise()
    assert [shown is source for shown in renderer.render_frames([(0, source), (1, source)])] == [True, True]


def test_rendering_leaves_the_source_frame_as_it_was(run: Run) -> None:
    box = coords.frame_box(WIDTH, HEIGHT)
    overlay = filled(box, (WIDTH, HEIGHT), (slice(4, 20), slice(4, 30)), (*RED, 1))
    source = noise()
    before = source.copy()
    renderer = OverlayPass(
        shifted_maps(run, (1, 0), box), {"background": blank("background", box)}, {"background": overlay}
    )
    renderer.render_frame(0, source)
    assert np.array_equal(source, before)


# --- where it appears -----------------------------------------------------------------------------------------------


def test_an_edited_texel_appears_in_every_frame_where_the_motion_puts_it(run: Run) -> None:
    box = coords.frame_box(WIDTH, HEIGHT)
    maps = shifted_maps(run, (3, 2), box)
    overlay = filled(box, (WIDTH, HEIGHT), (slice(9, 10), slice(14, 15)), (*RED, 1))
    renderer = OverlayPass(maps, {"background": blank("background", box)}, {"background": overlay})
    for t in range(FRAMES):
        source = noise(seed=t)
        expected = source.copy()
        expected[9 + 2 * t, 14 + 3 * t] = np.rint(255 * np.array(RED))
        # float32 coordinates leave less than a thousandth of the color in the neighbors.
        assert np.abs(renderer.render_frame(t, source).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(64, 36), (36, 64), (40, 40)])
def test_a_mark_moves_with_the_true_motion_to_a_few_hundredths_of_a_pixel(
    run: Run, size: tuple[int, int], scale: int
) -> None:
    clip = make_translation_clip(FRAMES, *size, velocity=(1.3, -0.7))
    maps = shifted_maps(run, (1.3, -0.7), clip.boxes[0], size)
    box, density = clip.boxes[0], max(size)  # two texels a pixel
    texels = (round(box.width * density), round(box.height * density))
    corner = coords.uv_to_texels(torch.zeros(1, 2), box, *texels)[0].round().int().tolist()
    part = (slice(corner[1] - 5, corner[1] + 5), slice(corner[0] - 5, corner[0] + 5))
    overlay = filled(box, texels, part, (1, 1, 1, 1))
    renderer = OverlayPass(maps, {"background": blank("background", box)}, {"background": overlay})
    uv = [corner[0] / texels[0] * box.width + box.u0, corner[1] / texels[1] * box.height + box.v0]
    positions = scale * clip.compute_mark_positions("background", uv)
    black = np.zeros((scale * size[1], scale * size[0], 3), np.uint8)
    centers = coords.pixel_centers(scale * size[0], scale * size[1]).numpy()
    for t in range(FRAMES):
        light = renderer.render_frame(t, black).mean(-1, keepdims=True)
        center = (centers * light).sum((0, 1)) / light.sum()
        assert np.abs(center - positions[t]).max() < 0.05 * scale


def test_a_rendered_edit_is_what_a_camera_would_have_seen(run: Run) -> None:
    clip = make_translation_clip(FRAMES, 64, 36, velocity=(1.5, 0.5))
    maps = shifted_maps(run, (1.5, 0.5), clip.boxes[0], (64, 36))
    box = clip.boxes[0]
    texels = (round(box.width * 64), round(box.height * 64))
    part = (slice(30, 50), slice(60, 90))
    overlay = filled(box, texels, part, (*RED, 1))
    step = (box.width / texels[0], box.height / texels[1])
    painted = Box(box.u0 + 60 * step[0], box.v0 + 30 * step[1], box.u0 + 90 * step[0], box.v0 + 50 * step[1])
    picture = np.broadcast_to(np.array([*RED, 1], np.float32), (4, 6, 4)).copy()
    truth = clip.render_edited([PaintedMark(picture, painted, "background")])
    renderer = OverlayPass(maps, {"background": blank("background", box)}, {"background": overlay})
    shown = np.stack(list(renderer.render_frames(enumerate(clip.frames))))
    error = ((shown.astype(float) - truth) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 34
    inside = (truth == truth.reshape(-1, 3)[np.argmax((truth == np.rint(255 * np.array(RED))).all(-1))]).all(-1)
    assert inside.sum() > 300 and np.abs(shown[inside].astype(int) - truth[inside]).mean() < 1


def test_an_edit_stays_put_at_every_output_size(run: Run) -> None:
    box = coords.frame_box(WIDTH, HEIGHT)
    maps = shifted_maps(run, (2, 1), box)
    overlay = filled(box, (4 * WIDTH, 4 * HEIGHT), (slice(40, 72), slice(40, 80)), (1, 1, 1, 1))
    renderer = OverlayPass(maps, {"background": blank("background", box)}, {"background": overlay})
    for width, height in [(48, 32), (96, 64), (31, 21), (480, 320), (50, 32)]:
        light = renderer.render_frame(2, np.zeros((height, width, 3), np.uint8)).mean(-1, keepdims=True)
        center = (coords.pixel_centers(width, height).numpy() * light).sum((0, 1)) / light.sum()
        # Texels 40-80 across and 40-72 down, four to a pixel, moved by two frames of (2, 1) pixels.
        expected = np.array([60 / 4 + 4, 56 / 4 + 2]) * [width / WIDTH, height / HEIGHT]
        assert np.abs(center - expected).max() < 0.1 * max(1, width / WIDTH)
        covered = light.sum() / 255 / (width * height) * (WIDTH * HEIGHT)
        assert covered == pytest.approx(80, rel=0.06)  # 10 x 8 pixels at the size of the fit


# --- in which color ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_opacity_of_the_edit_blends_with_the_source(run: Run, alpha: float) -> None:
    box = coords.frame_box(WIDTH, HEIGHT)
    part = (slice(8, 20), slice(10, 30))
    overlay = filled(box, (WIDTH, HEIGHT), part, (*RED, alpha))
    renderer = OverlayPass(
        shifted_maps(run, (0, 0), box), {"background": blank("background", box)}, {"background": overlay}
    )
    source = noise()
    expected = (1 - alpha) * source[part] + alpha * 255 * np.array(RED)
    assert np.abs(renderer.render_frame(3, source)[part] - expected).max() <= 0.51


def test_the_layers_light_multiplies_the_edit(run: Run) -> None:
    box = coords.frame_box(WIDTH, HEIGHT)
    model = build_model(PlanarConfig(), ModelShape(WIDTH, HEIGHT, FRAMES, (LayerShape("background", box, 8, 8),)))
    with torch.no_grad():
        as_one(GridGain, model.gains[0]).table.values.copy_(torch.tensor([0.5, 0.8, 1.25]).log().view(1, 3, 1, 1))
    part = (slice(8, 20), slice(10, 30))
    overlay = filled(box, (WIDTH, HEIGHT), part, (0.8, 0.6, 0.4, 1))
    renderer = OverlayPass(
        bake_maps(run, model.eval(), 1), {"background": blank("background", box)}, {"background": overlay}
    )
    shown = renderer.render_frame(1, noise())
    assert np.abs(shown[part] - 255 * np.array([0.4, 0.48, 0.5])).max() <= 1


def test_a_color_beyond_white_or_black_is_cut_and_does_not_wrap(run: Run) -> None:
    box = coords.frame_box(WIDTH, HEIGHT)
    model = build_model(PlanarConfig(), ModelShape(WIDTH, HEIGHT, FRAMES, (LayerShape("background", box, 8, 8),)))
    with torch.no_grad():
        as_one(GridGain, model.gains[0]).table.values.fill_(1.0)
    overlay = filled(box, (WIDTH, HEIGHT), (slice(None), slice(None)), (0.9, 0.9, 0.9, 1))
    renderer = OverlayPass(
        bake_maps(run, model.eval(), 1), {"background": blank("background", box)}, {"background": overlay}
    )
    assert (renderer.render_frame(0, noise()) == 255).all()


def bilinear(image: np.ndarray, x: float, y: float, border: bool) -> np.ndarray:
    """One lookup at texel coordinates (the center of texel (i, j) is (j + 0.5, i + 0.5)), spelt out."""
    height, width = image.shape[:2]
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    total = np.zeros(image.shape[2])
    for i in (top, top + 1):
        for j in (left, left + 1):
            share = (1 - abs(x - 0.5 - j)) * (1 - abs(y - 0.5 - i))
            if border:
                total += share * image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
            elif 0 <= i < height and 0 <= j < width:
                total += share * image[i, j]
    return total


def slow_frame(model: PlanarModel, overlays: dict[str, Overlay], t: int, source: np.ndarray) -> np.ndarray:
    """The formula of the module, pixel by pixel, from the model itself at the size of `source`."""
    images = pictures(model)
    colors = {name: image.rgba[..., :3] for name, image in images.items()}
    with torch.no_grad():
        samples = model.sample_frame(t, (source.shape[1], source.shape[0]))
    assert samples.uv is not None and samples.gain is not None
    weight, gain = samples.weight.numpy(), samples.gain.numpy()
    places = [
        coords.uv_to_texels(samples.uv[:, i], images[name].box, *images[name].size).tolist()
        for i, name in enumerate(NAMES)
    ]
    painted, painted_places = {}, {}
    for i, name in enumerate(NAMES):
        if name in overlays:
            overlay = overlays[name]
            rgb, alpha = overlay.rgba[..., :3], overlay.rgba[..., 3:]
            painted[name] = np.concatenate([rgb * alpha, alpha], -1)
            painted_places[name] = coords.uv_to_texels(samples.uv[:, i], overlay.box, *overlay.size).tolist()
    result = source / 255
    for n in range(len(weight)):
        pixel = source.reshape(-1, 3)[n] / 255
        lit = []
        for i, name in enumerate(NAMES):
            x, y = places[i][n]
            lit.append(bilinear(colors[name], x, y, border=True) * gain[n, i])
        missed = pixel - weight[n] @ np.array(lit)
        for i, name in enumerate(NAMES):
            if name not in overlays:
                continue
            x, y = painted_places[name][n]
            found = bilinear(painted[name], x, y, border=False)
            observed = lit[i] + missed
            result.reshape(-1, 3)[n] += weight[n, i] * (found[:3] * gain[n, i] - found[3] * observed)
    return 255 * result.clip(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("edited", "times"), [(NAMES, 1), (NAMES[:1], 1), (NAMES[1:], 1), (NAMES, 2)])
def test_edits_on_overlapping_layers_equal_a_slow_obvious_reference(
    run: Run, edited: tuple[str, ...], times: int
) -> None:
    model = two_layers()
    box = Box(-1.2, -1.0, 1.3, 1.1)
    generator = np.random.default_rng(9)
    overlays = {}
    for name in edited:
        rgba = generator.random((7, 8, 4)).astype(np.float32).repeat(8, 0).repeat(8, 1)
        rgba[..., 3] = np.where(rgba[..., 3] < 0.4, 0, rgba[..., 3])
        overlays[name] = Overlay(rgba * (rgba[..., 3:] > 0), box)
    source = noise((times * WIDTH, times * HEIGHT), seed=2) // 2 + 60
    plain = FrameEdges(2, source, EdgeSettings(least_scale=99.0))  # the reference enlarges weights as they are
    shown = OverlayPass(bake_maps(run, model, 1), pictures(model), overlays).render_frame(2, source, plain)
    difference = np.abs(shown - slow_frame(model, overlays, 2, source))
    # 8-bit weights, sharp borders between texels, and "alone from 99.6 %" are the only departures.
    assert np.percentile(difference, 99) <= 5 and difference.mean() < 0.6


def test_painting_both_layers_in_their_own_color_changes_nothing_but_rounding(run: Run) -> None:
    model = two_layers()
    images = pictures(model)
    overlays = {name: Overlay(image.rgba, image.box) for name, image in images.items()}
    with torch.no_grad():
        samples = model.sample_frame(1, (WIDTH, HEIGHT))
        assert samples.gain is not None
        lit = (samples.color * samples.gain * samples.weight[..., None]).sum(1)
    source = (lit.clamp(0, 1).view(HEIGHT, WIDTH, 3) * 255).round().to(torch.uint8).numpy()
    unclipped = (lit.view(HEIGHT, WIDTH, 3) < 1).all(-1).numpy()
    shown = OverlayPass(bake_maps(run, model, 1), images, overlays).render_frame(1, source)
    difference = np.abs(shown.astype(int) - source)[unclipped]
    assert difference.max() <= 6 and difference.mean() < 0.5


@pytest.mark.parametrize("edited", [NAMES, NAMES[:1]])
def test_a_frame_of_many_bands_is_the_frame_of_one(run: Run, edited: tuple[str, ...]) -> None:
    model = two_layers()
    maps, box = bake_maps(run, model, 1), Box(-1.4, -1.2, 1.4, 1.2)
    overlays = {name: filled(box, (60, 50), (slice(15, 35), slice(10, 50)), (*RED, 0.7)) for name in edited}
    source = noise((107, 71))
    whole = OverlayPass(maps, pictures(model), overlays).render_frame(1, source)
    assert not np.array_equal(whole, source)
    for rows in (1, 5, 17):
        settings = OverlaySettings(band_rows=rows)
        renderer = OverlayPass(maps, pictures(model), overlays, settings=settings)
        assert np.array_equal(renderer.render_frame(1, source), whole)


def test_an_edit_on_a_hidden_part_of_a_layer_is_not_seen(run: Run) -> None:
    model = two_layers()
    with torch.no_grad():
        as_one(PixelOpacity, model.opacity).table.flat.fill_(20)  # the foreground covers everything
    box = Box(-1.4, -1.2, 1.4, 1.2)
    overlay = filled(box, (60, 50), (slice(10, 40), slice(10, 50)), (*RED, 1))
    source = noise()
    assert (
        OverlayPass(bake_maps(run, model, 1), pictures(model), {"background": overlay}).render_frame(0, source)
        is source
    )


def test_opencv_has_its_threads_back_after_a_rendering_that_fails() -> None:
    before = cv2.getNumThreads()
    with pytest.raises(KeyError), render_planar._share_cores():
        assert cv2.getNumThreads() <= max(1, available_cores() // 2)
        raise KeyError("a frame")
    assert cv2.getNumThreads() == before
