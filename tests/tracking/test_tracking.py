"""Points and labels through a model: exact where its maps are exact, better than adding up flow, honest measures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from neural_fields.core import coords
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.masks.layer_masks import LayerMasks, mask_iou
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_translation_clip
from neural_fields.data.synthetic.suite import make_suite_clip
from neural_fields.data.synthetic.true_tracks import compute_true_tracks, find_visible_layers, make_grid_points
from neural_fields.evaluation.tracking_metrics import measure_tracking, measure_uv_error, measure_uv_slip
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.pixel_opacity import PixelOpacity
from neural_fields.planar.appearance.window_opacity import ChartSpans
from neural_fields.planar.appearance.window_opacity import WindowOpacity as WindowedOpacity
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.init.charts import ChartSettings
from neural_fields.planar.init.geometry import GeometrySettings
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.planar.mappings.grid import GridMappingConfig as GridSettings
from neural_fields.planar.mappings.mapping import Mapping
from neural_fields.tracking.labels import chain_labels, lift_labels, propagate_label_map
from neural_fields.tracking.points import chain_flow, compute_uv, solve_near, track_through_model
from neural_fields.training.initialize import initialize_model, plan_model
from tests.support.typed import as_all, as_one

pytestmark = pytest.mark.slow

SIZE = (96, 54)


@cache
def truth(name: str) -> SyntheticClip:
    return make_suite_clip(name, frames=8, size=SIZE)


def true_flow(clip: SyntheticClip) -> FlowField:
    return FlowField(clip.forward_flow, clip.backward_flow, clip.forward_visible, clip.backward_visible)


@cache
def exact_model(name: str) -> PlanarModel:
    """A model that is given the true maps and masks of a clip."""
    clip, labels = truth(name), truth(name).compute_labels()
    masks = np.stack([labels == layer for layer in range(len(clip.surfaces) - 1)])
    given = ClipDataset(clip.frames, LayerMasks(clip.layer_names[:-1], masks), true_flow(clip))
    config = load_planar_config("atlas")
    start = plan_model(config, given)
    model = build_model(config, start.shape)
    initialize_model(model, start, given)
    for mapping, surface in zip(as_all(GridMapping, model.mappings), clip.surfaces, strict=True):
        homography = torch.from_numpy(surface.transforms).float()
        mapping.start_from_geometry(homography, torch.zeros_like(mapping.residual.values))
    return model.eval()


# --- points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotation", "perspective", "occlusion"])
@pytest.mark.parametrize("frame", [0, 5])
def test_points_of_an_exact_model_go_where_they_truly_go(name: str, frame: int) -> None:
    points = make_grid_points(truth(name), frame, 5)
    found, true = track_through_model(exact_model(name), points, frame), compute_true_tracks(truth(name), points, frame)
    assert np.abs(found.positions - true.positions).max() < 0.02
    assert (found.visibility == true.visibility).mean() > 0.98  # pixels on outlines may fall to either side
    assert found.visibility[:, frame].all()


def test_points_may_be_given_in_pixels_of_another_size() -> None:
    points = make_grid_points(truth("rotation"), 3, 9)
    own, double = (
        track_through_model(exact_model("rotation"), points, 3),
        track_through_model(exact_model("rotation"), 2 * points, 3, None, (192, 108)),
    )
    np.testing.assert_allclose(double.positions, 2 * own.positions, atol=1e-3)
    np.testing.assert_array_equal(double.visibility, own.visibility)


def test_a_hidden_point_can_be_followed_on_a_layer_that_is_named() -> None:
    shown = make_suite_clip("occlusion", frames=8, size=SIZE)
    points = make_grid_points(shown, 0, 6)[find_visible_layers(shown, 0, make_grid_points(shown, 0, 6)) == 0]
    layers = np.full(len(points), 2, np.int64)
    found = track_through_model(exact_model("occlusion"), points, 0, layers)
    true = compute_true_tracks(shown, points, 0, layers)
    np.testing.assert_allclose(found.positions, true.positions, atol=0.02)
    assert not found.visibility[:, 0].any()


class Folded(Mapping):
    """Every uv is shown twice: u has its summit in the middle of the frame, which wanders with time."""

    def forward(self, xyt: Tensor) -> Tensor:
        x = xyt[:, 0] - 0.1 * xyt[:, 2]
        return torch.stack([1 - x * x, xyt[:, 1]], -1)

    def param_groups(self) -> list[dict]:
        return []


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_where_a_uv_is_shown_twice_the_place_near_the_start_is_found(side: float) -> None:
    place = torch.tensor([[0.5 * side, 0.2], [0.3 * side, -0.1]])
    uv = Folded()(torch.cat([place, torch.zeros(2, 1)], 1))
    found, error = solve_near(Folded(), uv, place + 0.05, 0.0, 0.02)
    assert torch.allclose(found, place, atol=1e-4) and error.max() < 1e-4


def test_a_uv_that_no_place_shows_keeps_its_error() -> None:
    _, error = solve_near(Folded(), torch.tensor([[1.3, 0.0]]), torch.tensor([[0.2, 0.0]]), 0.0, 0.02)
    assert 0.29 < float(error) < 0.4


def test_uv_at_is_the_models_own() -> None:
    points = np.array([[10.5, 20.5], [70.25, 30.0]])
    xy = coords.normalize_pixels(torch.from_numpy(points), *SIZE)
    expected = truth("rotation").surfaces[1].uv_at(4, xy).numpy()
    np.testing.assert_allclose(compute_uv(exact_model("rotation"), points, 4, 1), expected, atol=1e-5)


def test_chained_true_flow_follows_what_stays_in_sight() -> None:
    shown = truth("rotation")
    points = make_grid_points(shown, 2, 7)
    found, true = chain_flow(true_flow(shown), points, 2), compute_true_tracks(shown, points, 2)
    always = found.visibility.all(1) & true.visibility.all(1)
    assert always.mean() > 0.6
    assert np.median(np.abs(found.positions - true.positions)[always]) < 0.01
    assert not found.visibility[~true.visibility[:, 3], 4:].any()  # what is lost once stays lost


def test_flow_of_another_size_is_scaled() -> None:
    clip = make_translation_clip(4, 64, 36, velocity=(2.0, -1.0))
    found = chain_flow(true_flow(clip), np.array([[40.0, 40.0]]), 0, (128, 72))
    np.testing.assert_allclose(found.positions[0, 3], [52.0, 34.0], atol=1e-3)


# --- from chart to chart --------------------------------------------------------------------------------------------


def long_truth(name: str) -> SyntheticClip:
    return make_suite_clip(name, frames=12, size=SIZE)


@cache
def divided(name: str) -> tuple[SyntheticClip, FlowField, PlanarModel]:
    """A clip whose layers all have three charts of four frames, and the start of their model."""
    clip = long_truth(name)
    labels = clip.compute_labels()
    masks = np.stack([labels == layer for layer in range(len(clip.surfaces) - 1)])
    given = ClipDataset(clip.frames, LayerMasks(clip.layer_names[:-1], masks), true_flow(clip))
    charts = ChartSettings(frames_per_chart=4, explained_psnr_db=99.0, min_gain_db=-99.0, max_loss_db=-99.0)
    start = plan_model(load_planar_config("atlas"), given, settings=GeometrySettings(charts=charts))
    model = build_model(load_planar_config("atlas"), start.shape)
    initialize_model(model, start, given)
    assert all([chart.first for chart in series] == [0, 4, 8] for series in model.list_charts())
    return clip, true_flow(clip), model.eval()


@pytest.mark.parametrize("name", ["rotation", "occlusion"])
@pytest.mark.parametrize("frame", [0, 5, 11])
def test_points_go_over_from_chart_to_chart(name: str, frame: int) -> None:
    clip, flow, model = divided(name)
    points = make_grid_points(clip, frame, 5)
    found, true = track_through_model(model, points, frame, flow=flow), compute_true_tracks(clip, points, frame)
    both = found.visibility & true.visibility
    assert both.sum() > 0.98 * true.visibility.sum()
    assert np.linalg.norm(found.positions - true.positions, axis=-1)[both].max() < 1.5
    assert (found.visibility == true.visibility).mean() > 0.98


def test_without_flow_and_across_a_cut_points_end_where_their_chart_does() -> None:
    clip, flow, model = divided("rotation")
    points = make_grid_points(clip, 5, 9)
    nothing = np.zeros_like(flow.forward_ok)
    for given in (None, replace(flow, forward_ok=nothing, backward_ok=nothing)):
        visible = track_through_model(model, points, 5, flow=given).visibility
        assert visible[:, 4:8].mean() > 0.9
        assert not visible[:, :4].any() and not visible[:, 8:].any()


@pytest.mark.parametrize("frame", [0, 5])
def test_labels_go_over_from_chart_to_chart(frame: int) -> None:
    clip, flow, model = divided("rotation")
    xy = coords.frame_xy(*SIZE).double()
    u = np.stack([clip.surfaces[1].uv_at(t, xy)[..., 0].numpy() for t in range(clip.count)])
    classes = np.where(clip.compute_labels() == 0, 3, np.where(u > u[frame].mean(), 2, 1))
    found = np.stack(list(propagate_label_map(model, classes[frame], frame, flow)))
    assert ((found == classes).mean((1, 2)) > 0.98).all()
    none = np.zeros_like(flow.forward_ok)
    cut = list(propagate_label_map(model, classes[frame], frame, replace(flow, forward_ok=none, backward_ok=none)))
    assert not cut[11].any(), "nothing is known of what comes after a cut"


def segmented(clip: SyntheticClip) -> PlanarModel:
    """Two segments of a clip with one layer, each with a plane of its own that is placed exactly; they share frames."""
    segments = ChartSpans(clip.count, 2, 4)
    names, homography = ("segment1", "background"), torch.from_numpy(clip.surfaces[0].transforms).float()
    homography = torch.cat([homography, homography.new_tensor([0.0, 0.0, 1.0]).expand(clip.count, 1, 3)], 1)
    mappings = [GridMapping(GridSettings(), clip.count, SIZE) for _ in names]
    for number, mapping in enumerate(mappings):
        other = torch.tensor([[1.0, 0.0, 7.0], [0.0, 1.0, -3.0], [0.0, 0.0, 1.0]]) if number else torch.eye(3)
        mapping.start_from_geometry(other @ homography, torch.zeros_like(mapping.residual.values))
    box = clip.boxes[0]
    moved = [box, coords.Box(box.u0 + 7, box.v0 - 3, box.u1 + 7, box.v1 - 3)]
    shape = ModelShape(*SIZE, clip.count, tuple(LayerShape(*pair, 64, 64) for pair in zip(names, moved, strict=True)))
    textures = [ImageTexture(one, 64, 64, 0.01) for one in moved]
    return PlanarModel(
        shape, [*mappings], [*textures], [], WindowedOpacity(segments), load_planar_config("atlas").terms
    ).eval()


@pytest.mark.parametrize("frame", [0, 4, 5, 11])
def test_overlapping_charts_hand_over_in_a_frame_that_both_have(frame: int) -> None:
    clip = make_translation_clip(12, *SIZE, velocity=(1.5, 0.5))
    model = segmented(clip)
    points = make_grid_points(clip, frame, 9)
    found, true = track_through_model(model, points, frame), compute_true_tracks(clip, points, frame)
    assert np.abs(found.positions - true.positions)[true.visibility].max() < 0.05
    assert (found.visibility == true.visibility).mean() > 0.97  # some come to lie on the rim of the frame
    stripes = (np.arange(SIZE[0]) // 12 % 3 + 1)[None].repeat(SIZE[1], 0)
    labels = list(propagate_label_map(model, stripes, frame))
    for t in range(12):
        shift = round(1.5 * (t - frame))
        rows = slice(max(0, round(0.5 * (t - frame))), SIZE[1] + min(0, round(0.5 * (t - frame))))
        inner = slice(max(0, shift), SIZE[0] + min(0, shift))
        assert (labels[t] == np.roll(stripes, shift, 1))[rows, inner].mean() > 0.9, t


# --- labels ---------------------------------------------------------------------------------------------------------


def test_the_outline_of_the_first_frame_is_found_in_all_frames() -> None:
    labels = truth("rotation").compute_labels()
    classes = np.array([3, 1])[labels]  # the object has label 3, the ground 1
    found = np.stack(list(propagate_label_map(exact_model("rotation"), classes[0], 0)))
    assert all(mask_iou(found[t] == 3, classes[t] == 3) > 0.95 for t in range(8))


def test_a_stripe_painted_on_the_object_moves_with_it() -> None:
    shown = truth("rotation")
    xy = coords.frame_xy(*SIZE).double()
    u = [shown.surfaces[0].uv_at(t, xy)[..., 0].numpy() for t in range(8)]
    middle = float(np.mean([shown.boxes[0].u0, shown.boxes[0].u1]))
    striped = [(shown.compute_labels()[t] == 0) & (np.abs(u[t] - middle) < 0.12) for t in range(8)]
    found = list(propagate_label_map(exact_model("rotation"), striped[3].astype(np.int64), 3))
    ious = [mask_iou(found[t] == 1, striped[t]) for t in range(8)]
    assert min(ious) > 0.87  # of eleven pixels across, half a one may round to either side


def test_labels_that_reach_over_an_outline_do_not_spread_behind_the_object() -> None:
    labels = truth("occlusion").compute_labels()
    disc = labels == 0
    wide = cv2.dilate(disc[0].astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.int64)
    found = list(propagate_label_map(exact_model("occlusion"), wide, 0))[7] == 1
    assert mask_iou(found, disc[7]) > 0.97


def test_texels_that_were_not_seen_take_the_nearest_label_of_their_own_layer() -> None:
    sides = np.where(np.arange(SIZE[0]) < SIZE[0] // 2, 1, 2)[None].repeat(SIZE[1], 0)
    seen = truth("occlusion").compute_labels()[0]
    planes = lift_labels(exact_model("occlusion"), sides, 0)
    for layer, plane in enumerate(planes):
        assert set(np.unique(plane.labels)) == set(np.unique(sides[seen == layer]))  # no texel is left without a label
    beyond = np.array([[planes[-1].box.u0 - 1, 0.0], [planes[-1].box.u1 + 1, 0.0]])
    assert planes[-1].sample_labels(beyond).tolist() == [1, 2]


def test_a_layer_that_the_frame_does_not_show_has_label_zero() -> None:
    model = exact_model("rotation")
    logits = as_one(PixelOpacity, model.opacity).table.values
    before = logits.detach().clone()
    with torch.no_grad():
        logits[0] = -10.0  # frame 0 shows the ground alone
        ground, shown = np.ones(SIZE[::-1], np.int64), truth("rotation").compute_labels()[5]
        found = list(propagate_label_map(model, ground, 0))[5]
        logits.copy_(before)
    assert mask_iou(found == 0, shown == 0) > 0.95


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="resize them first"):
        list(propagate_label_map(exact_model("rotation"), np.zeros((5, 5), np.int64), 0))


def test_labels_chained_along_a_true_translation_shift_by_it() -> None:
    clip = make_translation_clip(4, 64, 36, velocity=(2.0, 1.0))
    labels = np.zeros((36, 64), np.int64)
    labels[10:20, 10:30] = 1
    found = list(chain_labels(true_flow(clip), labels, 1))
    for t in range(4):
        np.testing.assert_array_equal(found[t], np.roll(labels, ((t - 1), 2 * (t - 1)), (0, 1)))


# --- measures -------------------------------------------------------------------------------------------------------


def test_scores_count_thresholds_hits_and_false_alarms() -> None:
    true = np.zeros((1, 4, 2))
    off = true + np.array([3.0, 0.0])  # within 4, 8 and 16 px, not within 1 and 2
    queries = np.array([[True, False, False, False]])
    seen = np.array([[True, True, True, False]])
    score = measure_tracking(off, np.array([[True, True, False, True]]), true, seen, queries, (256, 256))
    assert score.delta == score.delta_256 == pytest.approx(0.6)
    assert score.occlusion == pytest.approx(1 / 3)
    assert score.jaccard == pytest.approx(np.mean([0, 0, 1 / 3, 1 / 3, 1 / 3]))
    assert score.median == score.mean == 3
    wide = measure_tracking(off, seen, true, seen, queries, (512, 256))
    assert wide.delta_256 == pytest.approx(0.8) and wide.delta == pytest.approx(0.6)


def test_without_a_visible_point_there_is_no_score() -> None:
    nothing = np.zeros((2, 3), bool)
    score = measure_tracking(np.zeros((2, 3, 2)), nothing, np.zeros((2, 3, 2)), nothing, nothing, SIZE)
    assert np.isnan(score.delta) and score.occlusion == 1 and score.as_dict()["delta"] is None


def test_uv_error_forgives_what_a_transform_can_do_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    truth_uv = generator.uniform(-1, 1, (500, 2))
    turned = truth_uv @ (2 * np.array([[0.8, -0.6], [0.6, 0.8]])) + (0.3, -1)
    sheared = truth_uv @ np.array([[1.2, 0.0], [0.4, 0.7]])
    assert measure_uv_error(turned, truth_uv, "similarity").max() < 1e-9
    assert (
        measure_uv_error(sheared, truth_uv).max()
        < 1e-9
        < 0.1
        < measure_uv_error(sheared, truth_uv, "similarity").mean()
    )
    moved = truth_uv.copy()
    moved[:5] += 0.5
    error = measure_uv_error(moved, truth_uv)
    np.testing.assert_allclose(error[:5], 0.5 * 2**0.5, atol=1e-6)
    assert np.median(error) < 1e-6


def test_slip_forgives_a_smooth_bend_but_not_a_point_that_is_two() -> None:
    generator = np.random.default_rng(1)
    truth_uv = generator.uniform(-1, 1, (4000, 2))
    bent = truth_uv + 0.05 * np.sin(3 * truth_uv[:, ::-1])
    assert measure_uv_slip(bent, truth_uv, 0.125).mean() < 1e-3 < 0.02 < measure_uv_error(bent, truth_uv).mean()
    sliding = np.concatenate([truth_uv, truth_uv + np.array([0.02, 0.0])])  # two frames that disagree by 0.02
    assert measure_uv_slip(sliding, np.concatenate([truth_uv, truth_uv]), 0.125).mean() == pytest.approx(0.01, rel=0.1)
