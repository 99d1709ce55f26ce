"""Rays and sums along them against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.volume.rays import (
    RaySamples,
    ViewRays,
    camera_rays,
    contract_space,
    edges_around_samples,
    merge_samples,
    render_samples,
    sample_pdf,
)

CAMERA = Camera(
    8, 6, (7.0, 7.5), (4.1, 2.9), compute_look_at_pose(np.array([1.0, -2, 3]), np.zeros(3), np.array([0.0, 0, 1]))
)


def marched(seed: int, rays: int = 5, samples: int = 7) -> RaySamples:
    made = torch.Generator().manual_seed(seed)
    edges = torch.rand(rays, samples + 1, generator=made).sort(dim=1).values * 4
    density = torch.rand(rays, samples, generator=made) * 3
    color = torch.rand(rays, samples, 3, generator=made)
    inside = torch.rand(rays, samples, generator=made) < 0.8
    return RaySamples((edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1), density, color, inside)


def slab(near: float, far: float, density: float, samples: int) -> RaySamples:
    edges = torch.linspace(near, far, samples + 1)[None]
    color = torch.tensor([0.2, 0.5, 0.9]).expand(1, samples, 3)
    full = torch.full((1, samples), density)
    return RaySamples((edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1), full, color, torch.ones(1, samples) > 0)


@pytest.mark.parametrize("density", [0.1, 1.0, 8.0])
def test_a_slab_of_constant_density_has_its_closed_form(density: float) -> None:
    near, length = 2.0, 1.5
    shown = render_samples(slab(near, near + length, density, 3000))
    opacity = 1 - math.exp(-density * length)
    depth = near + 1 / density - length * math.exp(-density * length) / opacity
    assert shown.opacity.item() == pytest.approx(opacity, abs=1e-5)
    assert shown.depth.item() == pytest.approx(depth, abs=1e-3)
    torch.testing.assert_close(shown.color[0], torch.tensor([0.2, 0.5, 0.9]) * opacity, atol=1e-4, rtol=0)
    coarse = render_samples(slab(near, near + length, density, 2))
    torch.testing.assert_close(coarse.opacity, shown.opacity, atol=1e-5, rtol=0)


@given(st.integers(0, 1000))
def test_weights_add_up_to_the_opacity_and_never_to_more_than_one(seed: int) -> None:
    shown = render_samples(marched(seed))
    assert shown.weights.min() >= 0
    assert shown.opacity.max() <= 1
    torch.testing.assert_close(shown.weights.sum(dim=1), shown.opacity)


def test_what_is_solid_hides_what_is_behind() -> None:
    field = marched(3)
    wall = torch.where(torch.arange(7) == 2, 1e9, field.density)
    shown = render_samples(RaySamples(field.depth, field.interval + 0.1, wall, field.color, torch.ones(5, 7) > 0))
    assert shown.weights[:, 3:].max() == 0
    torch.testing.assert_close(shown.opacity, torch.ones(5))
    torch.testing.assert_close(shown.composite_over(torch.ones(3)), shown.color)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_merged_fields_are_sorted_and_absorb_what_both_absorb(one: int, two: int) -> None:
    first, second = marched(one), marched(two, samples=4)
    both, from_first = merge_samples(first, second)
    depth = torch.where(both.inside, both.depth, torch.inf)
    assert (depth.diff(dim=1).nan_to_num(0) >= 0).all()
    assert (from_first.sum(dim=1) == 7).all()
    passed = [1 - render_samples(field).opacity for field in (first, second)]
    torch.testing.assert_close(1 - render_samples(both).opacity, passed[0] * passed[1])
    own = both.color[from_first].view(5, 7, 3).sum(dim=1)
    torch.testing.assert_close(own, first.color.sum(dim=1))


@pytest.mark.parametrize("padding", [True, False])
def test_merging_an_empty_field_changes_nothing(padding: bool) -> None:
    field, other = marched(1), marched(2)
    density = other.density if padding else torch.zeros_like(other.density)
    inside = torch.zeros_like(other.inside) if padding else other.inside
    empty = RaySamples(other.depth, other.interval, density, other.color, inside)
    for pair in ((field, empty), (empty, field)):
        shown, alone = render_samples(merge_samples(*pair)[0]), render_samples(field)
        for name in ("color", "opacity", "depth"):
            torch.testing.assert_close(getattr(shown, name), getattr(alone, name))


def test_gradients_reach_density_color_and_depth() -> None:
    field = marched(4)
    density, color = field.density.double().requires_grad_(), field.color.double().requires_grad_()

    def picture(density: Tensor, color: Tensor) -> tuple[Tensor, ...]:
        part = RaySamples(field.depth.double(), field.interval.double(), density, color, torch.ones(5, 7) > 0)
        shown = render_samples(merge_samples(part, part)[0])
        return shown.color, shown.opacity, shown.depth

    assert torch.autograd.gradcheck(picture, (density, color))


def test_places_are_as_dense_as_the_histogram_is_high() -> None:
    edges, weights = torch.tensor([[0.0, 1, 3, 4]]), torch.tensor([[1.0, 0, 3]])
    middle = sample_pdf(edges, weights, 8)
    torch.testing.assert_close(middle[0], torch.tensor([0.25, 0.75, *(3 + (torch.arange(6) + 0.5) / 6)]))
    moved = sample_pdf(edges.expand(400, 4), weights.expand(400, 3), 8, torch.Generator().manual_seed(0))
    assert (moved.diff(dim=1) >= 0).all()
    shares = torch.histogram(moved, torch.tensor([0.0, 1, 3, 4])).hist / moved.numel()
    torch.testing.assert_close(shares, torch.tensor([0.25, 0, 0.75]), atol=1e-6, rtol=0)
    even = sample_pdf(edges, torch.zeros(1, 3), 3)
    torch.testing.assert_close(even, torch.tensor([[0.5, 2, 3.5]]))


def test_stretches_have_their_place_inside_and_stay_within_bounds() -> None:
    places = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    edges = edges_around_samples(places, 0.0, 1.0)
    assert edges.min() >= 0
    assert edges.max() <= 1
    assert ((edges[:, :-1] <= places) & (places <= edges[:, 1:])).all()


def uncontract(points: torch.Tensor) -> torch.Tensor:
    """The inverse of `contract_space`, inside the ball of radius 2."""
    length = points.norm(dim=-1, keepdim=True).clamp_min(1)
    return points / (length * (2 - length).clamp_min(1e-10))


def test_contraction_keeps_the_unit_ball_and_takes_infinity_to_radius_two() -> None:
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    inner = directions * torch.linspace(0, 1, 50)[:, None]
    torch.testing.assert_close(contract_space(inner), inner)
    torch.testing.assert_close(contract_space(directions * 1e9).norm(dim=1), torch.full((50,), 2.0))
    torch.testing.assert_close(
        contract_space(directions * 1.001), contract_space(directions * 0.999), atol=3e-3, rtol=0
    )
    outer = directions * torch.linspace(0.1, 30, 50)[:, None]
    torch.testing.assert_close(uncontract(contract_space(outer)), outer, atol=1e-4, rtol=1e-4)
    slope = torch.autograd.functional.jacobian(contract_space, torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(slope, torch.eye(3))


def test_pixels_look_where_their_camera_says() -> None:
    rays = camera_rays(CAMERA, time=4)
    assert len(rays) == 48
    assert (rays.time == 4).all()
    torch.testing.assert_close(rays.direction.norm(dim=1), torch.ones(48))
    places = rays.points_at(torch.full((48, 1), 2.5))[:, 0]
    pixels = CAMERA.project_points(places.numpy())[0]
    np.testing.assert_allclose(pixels[[0, 9]], [(0.5, 0.5), (1.5, 1.5)], atol=1e-4)


def test_rays_of_many_views_are_those_of_each_camera() -> None:
    turned = compute_look_at_pose(np.array([0.0, 2, 1]), np.ones(3), np.array([0.0, 0, 1]))
    bent = Camera(8, 6, (9.0, 9.0), (4.0, 3.0), turned, distortion=(-0.2, 0.1, 0.0, 0.0))
    cameras = (CAMERA, CAMERA.with_pose(turned), bent)
    rays = ViewRays(cameras, (5, 6, 6))
    for view, camera in enumerate(cameras):
        found, wanted = rays(torch.full((48,), view), torch.arange(48)), camera_rays(camera, time=(5, 6, 6)[view])
        torch.testing.assert_close(found.origin, wanted.origin)
        torch.testing.assert_close(found.direction, wanted.direction)
        assert (found.time == wanted.time).all()
