"""Both fields of a scene together, and the pixels that a step draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_fields.data.capture.capture import Capture
from neural_fields.data.synthetic.scene import SyntheticScene, make_walking_scene
from neural_fields.volume.background import BackgroundField, find_scene_bounds
from neural_fields.volume.flow_rays import FlowTable, find_previous_view
from neural_fields.volume.human import PersonModel
from neural_fields.volume.ray_batches import DEFAULTS, CapturePixels
from neural_fields.volume.rays import RaySamples, camera_rays, merge_samples, render_samples
from neural_fields.volume.scene import BACKGROUND, PERSON, Moments, Scene, _unmerge_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def truth() -> SyntheticScene:
    return make_walking_scene(count=6, size=(48, 36), switches=(3,))


@pytest.fixture(scope="module")
def capture(truth: SyntheticScene) -> Capture:
    return truth.capture


@pytest.fixture(scope="module")
def scene(capture: Capture) -> Scene:
    assert capture.motion is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scene(BackgroundField(find_scene_bounds(capture), 2), PersonModel(capture.motion.skeleton, 2)).eval()


def moments_of(capture: Capture) -> Moments:
    return Moments.from_motion(capture.motion, capture.switches)


def test_states_of_moments_begin_at_the_switches(capture: Capture) -> None:
    assert moments_of(capture).state.tolist() == [0, 0, 0, 1, 1, 1]
    posed = moments_of(capture).with_poses(np.tile(np.eye(4), (9, 18, 1, 1)))
    assert posed.state.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_without_the_person_the_background_is_all_there_is(scene: Scene, capture: Capture) -> None:
    moments, rays = moments_of(capture), camera_rays(capture.cameras[0])
    seen = scene.render_rays(rays, moments, parts=frozenset({BACKGROUND}))
    marched, _ = scene.background.march_rays(rays, moments.state[rays.time])
    shown = render_samples(marched).composite_over(scene.background.render_sky(rays, moments.state[rays.time]))
    torch.testing.assert_close(seen.color, shown)
    assert not seen.person_opacity.any() and seen.person_samples is None


def test_the_person_alone_stands_before_the_color_asked_for(scene: Scene, capture: Capture) -> None:
    behind = torch.tensor([0.1, 0.9, 0.4])
    rays = camera_rays(capture.cameras[2], time=2)
    seen = scene.render_person(rays, moments_of(capture), behind)
    empty = seen.opacity == 0
    assert empty.any() and (~empty).any()
    torch.testing.assert_close(seen.color[empty], behind.expand(int(empty.sum()), 3))
    torch.testing.assert_close(seen.person_opacity, seen.opacity, atol=1e-5, rtol=0)


def test_with_both_rays_that_miss_the_person_see_what_they_see_without(scene: Scene, capture: Capture) -> None:
    rays, moments = camera_rays(capture.cameras[1], time=1), moments_of(capture)
    alone = scene.render_person(rays, moments)
    both, room = scene.render_rays(rays, moments), scene.render_rays(rays, moments, parts=frozenset({BACKGROUND}))
    missed = alone.opacity == 0
    torch.testing.assert_close(both.color[missed], room.color[missed])
    assert not torch.allclose(both.color[~missed], room.color[~missed])
    assert (both.person_opacity <= alone.person_opacity + 1e-5).all()  # what stands in front hides


def test_weights_go_back_to_the_samples_they_belong_to() -> None:
    torch.manual_seed(0)
    depth = torch.rand(50, 7).sort(dim=1).values
    inside = torch.rand(50, 7) < 0.6
    one = RaySamples(depth, torch.full_like(depth, 0.1), 5 * torch.rand(50, 7), torch.rand(50, 7, 3), inside)
    place = torch.rand(50, 5).sort(dim=1).values
    other = RaySamples(place, torch.full_like(place, 0.1), 5 * torch.rand(50, 5), torch.rand(50, 5, 3), place > -1)
    merged, from_one = merge_samples(one, other)
    weights = render_samples(merged).weights
    found = _unmerge_weights(torch.where(from_one, weights, 0), from_one, one)
    for ray in range(50):  # the slow way: look every sample up by its distance
        for sample in range(7):
            if not inside[ray, sample]:
                assert found[ray, sample] == 0
                continue
            at = int(((merged.depth[ray] - depth[ray, sample]).abs() + (~from_one[ray]).float()).argmin())
            assert found[ray, sample] == weights[ray, at]


def test_a_picture_is_the_rays_of_its_pixels_whatever_the_chunk(scene: Scene, capture: Capture) -> None:
    moments, camera = moments_of(capture), capture.cameras[4]
    whole = scene.render_view(camera, 4, moments)
    pieces = scene.render_view(camera, 4, moments, chunk=100)
    torch.testing.assert_close(whole.color, pieces.color, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.depth, pieces.depth, atol=1e-4, rtol=1e-4)
    assert whole.color.shape == (36, 48, 3) and whole.person_opacity.shape == (36, 48)


def test_another_pose_moves_the_person_and_not_the_room(scene: Scene, capture: Capture) -> None:
    moments, camera = moments_of(capture), capture.cameras[0]
    assert capture.motion is not None
    shift = np.eye(4)
    shift[:3, 3] = (0, 0, 0.4)
    moved = moments.with_poses(shift @ capture.motion.transforms)
    rays = camera_rays(camera)
    before, after = scene.render_person(rays, moments), scene.render_person(rays, moved)
    rows = torch.arange(36).repeat_interleave(48).float()
    heights = [(rows * seen.opacity).sum() / seen.opacity.sum() for seen in (before, after)]
    assert heights[1] < heights[0] - 2  # z is up, rows go down
    rooms = [scene.render_view(camera, 0, m, parts=frozenset({BACKGROUND})).color for m in (moments, moved)]
    assert torch.equal(*rooms)


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_drawn_pixels_have_the_colors_and_rays_of_their_views(capture: Capture) -> None:
    batch = CapturePixels(capture).draw_any(200, torch.Generator().manual_seed(1))
    for index in range(0, 200, 17):
        view, rest = divmod(int(batch.pixel_indices[index]), 36 * 48)
        row, column = divmod(rest, 48)
        assert np.allclose(batch.color[index].numpy() * 255, capture.frames[view, row, column], atol=1e-3)
        direction = capture.cameras[view].compute_ray_directions(np.array([[column + 0.5, row + 0.5]]))[0]
        assert np.allclose(batch.rays.direction[index].numpy(), direction, atol=1e-5)
        assert int(batch.rays.time[index]) == capture.times[view]


def test_background_pixels_keep_away_from_the_person_and_the_persons_lie_on_it(capture: Capture) -> None:
    pixels, generator = CapturePixels(capture), torch.Generator().manual_seed(0)
    away = pixels.draw_background(500, generator)
    assert len(away.rays) == 500 and not away.person.any()
    near = pixels.draw_person(500, generator)
    assert near.person.float().mean() == pytest.approx(DEFAULTS.person_share, abs=0.12)


def test_the_same_generator_draws_the_same_pixels_and_held_out_views_are_never_drawn(capture: Capture) -> None:
    kept = (0, 2, 3, 5)
    pixels = CapturePixels(capture, kept)
    one, two = (pixels.draw_any(300, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.pixel_indices, two.pixel_indices)
    assert set(one.rays.time.tolist()) == set(kept)


def test_a_scene_without_masks_is_all_background(truth: SyntheticScene) -> None:
    still = Capture(truth.capture.cameras, truth.capture.frames, truth.capture.times)
    pixels = CapturePixels(still)
    assert not pixels.has_person and len(pixels.draw_background(64, torch.Generator()).rays) == 64
    with pytest.raises(ValueError, match="no view"):
        pixels.draw_person(8, torch.Generator())


def test_flow_leads_one_moment_back_even_where_that_view_is_left_out(capture: Capture) -> None:
    assert [find_previous_view(capture, view) for view in range(3)] == [None, 0, 1]
    masks = capture.masks
    assert masks is not None
    table = FlowTable(capture, (0, 2, 5), masks[[0, 2, 5]])
    places = torch.arange(3 * 36 * 48)
    rays, valid = table(places)
    assert not valid[: 36 * 48].any()  # nothing is before the first
    assert valid.any()
    for index, before in ((1, 1), (2, 4)):
        own = valid & (places // (36 * 48) == index)
        assert (rays.time[own] == before).all()
        origin = torch.tensor(capture.cameras[before].position, dtype=torch.float32)
        torch.testing.assert_close(rays.origin[own], origin.expand(int(own.sum()), 3))


def test_only_what_is_asked_for_is_in_the_picture(scene: Scene, capture: Capture) -> None:
    moments, camera = moments_of(capture), capture.cameras[0]
    nothing = scene.render_view(camera, 0, moments, parts=frozenset())
    assert not nothing.color.any() and not nothing.opacity.any()
    person = scene.render_view(camera, 0, moments, parts=frozenset({PERSON}))
    assert person.person_opacity.max() > 0.05 and person.person_opacity[0, 0] == 0
