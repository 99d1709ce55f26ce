"""Editing a person in space: every loss, camera and pose has a closed form; then the whole editor with tiny models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from editors.diffusion.backend.noise_schedule import NoiseSchedule
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.backend.zero123_loader import load_view_networks
from editors.diffusion.common.score_distillation import make_sds_score
from editors.volume.base import VolumeSource, tune_part
from editors.volume.body_parts import TRUNK, body_outline, find_body_parts
from editors.volume.distillation import (
    WHOLE_BODY,
    AdamSettings,
    DiffusionTeacher,
    PersonObjective,
    PersonSubject,
    RandomStreams,
    optimize_parameters,
)
from editors.volume.dynvideo_e import DynVideoE
from editors.volume.poses import Pose, PoseSampler, interpolate_poses
from editors.volume.reference_view import (
    Reference,
    ReferenceTargets,
    ReferenceWeights,
    read_reference,
    reference_loss,
    weighted_correlation,
)
from editors.volume.remove_replace import RemovePart, ReplacePart
from editors.volume.views import DEFAULTS, Orbit, estimate_up_direction, frame_points, random_direction
from editors.volume.zero123 import CameraMove, NovelViewModel, compute_camera_move
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.skeleton import compute_local_pose
from neural_fields.volume.color_edit import add_paints
from neural_fields.volume.rays import camera_rays
from neural_fields.volume.scene import BACKGROUND, PERSON, SceneRendering
from tests.support import tiny_scene as tiny

pytestmark = pytest.mark.slow

UP = np.array([0.0, 0.0, 1.0])
EVERYTHING = ReferenceWeights(1.0, 1.0, 1.0)


@pytest.fixture
def source() -> VolumeSource:
    return tiny.tiny_source()


def pose_of(source: VolumeSource, time: int = 0) -> Pose:
    return Pose("source", source.require_person().transforms[time], time)


def field_of(source: VolumeSource) -> tiny.Field:
    """The balls of the person, which stand in for a trained field."""
    assert isinstance(source.scene, tiny.TinyScene)
    return source.scene.person.field


def hidden_values(source: VolumeSource) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in source.scene.state_dict().items()}


# Cameras


def test_up_is_at_right_angles_to_level_cameras_and_the_picture_top_where_they_leave_it_open() -> None:
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    cameras = []
    for _ in range(6):
        forward = random.standard_normal(3) * (1, 1, 0.4)
        pose = compute_look_at_pose(np.zeros(3), turn @ forward, turn @ UP)
        cameras.append(Camera(8, 8, (8.0, 8.0), (4.0, 4.0), pose))
    assert np.degrees(np.arccos(min(1.0, estimate_up_direction(cameras) @ turn @ UP))) < 2
    np.testing.assert_allclose(estimate_up_direction(cameras[:1]), -cameras[0].pose[:3, 1], atol=1e-9)


def test_an_orbit_tells_places_and_finds_them_again_and_azimuth_grows_to_a_cameras_right() -> None:
    orbit = Orbit(np.array([1.0, 2.0, 3.0]), 0.5, np.array([0.6, 0.0, 0.8]))
    random = np.random.default_rng(0)
    for _ in range(20):
        azimuth, elevation = random_direction(random)
        distance = float(random.uniform(1, 5))
        found = orbit.direction_of(orbit.place_at(azimuth, elevation, distance))
        np.testing.assert_allclose(found, (azimuth, elevation, distance), atol=1e-9)
        camera = orbit.place_camera(azimuth, elevation, 16, distance)
        moved = orbit.place_at(azimuth + 0.1, elevation, distance) - camera.position
        lifted = orbit.place_at(azimuth, elevation + 0.1, distance) - camera.position
        assert moved @ camera.pose[:3, 0] > 0.9 * np.linalg.norm(moved)
        assert -lifted @ camera.pose[:3, 1] > 0.9 * np.linalg.norm(lifted)


def test_a_ball_touches_the_edges_of_the_picture_that_an_orbit_takes_of_it() -> None:
    orbit = Orbit(np.array([0.3, -1.0, 2.0]), 0.7, UP)
    camera = orbit.place_camera(0.8, 0.4, 64)
    for axis in (0, 1):
        # The ray through the middle of an edge is a tangent of the ball.
        pixel = np.array([[64.0, 32.0]]) if axis == 0 else np.array([[32.0, 64.0]])
        away = orbit.center - camera.position
        direction = camera.compute_ray_directions(pixel)[0]
        assert np.linalg.norm(away - (away @ direction) * direction) == pytest.approx(0.7, rel=1e-6)


def test_a_camera_frames_points_in_the_middle_as_large_as_they_can_be_from_where_it_stands() -> None:
    random = np.random.default_rng(1)
    for _ in range(10):
        points, place = random.standard_normal((20, 3)) * 0.3, np.array([3.0, *random.standard_normal(2)])
        camera = frame_points(points, place, UP, 32)
        pixels, _, inside = camera.project_points(points)
        assert inside.all()
        np.testing.assert_array_equal(camera.position, place)
        np.testing.assert_allclose(np.ptp(pixels, axis=0).max(), DEFAULTS.filled_share * 32, rtol=1e-6)
        np.testing.assert_allclose((pixels.min(axis=0) + pixels.max(axis=0)) / 2, 16, atol=1e-6)
    with pytest.raises(ValueError, match="in front"):
        frame_points(points + np.array([3.0, 0.0, 0.0]), np.array([3.0, 0, 0]), UP, 32)


# Parts and poses


def test_limbs_are_chains_that_end_in_nothing_and_the_rest_is_the_trunk() -> None:
    found = {part: {tiny.NAMES[joint] for joint in joints} for part, joints in find_body_parts(tiny.SKELETON).items()}
    assert found == {
        "head": {"head"},
        "left_hand": {"left_arm", "left_hand"},
        "right_hand": {"right_arm", "right_hand"},
        "left_foot": {"left_foot"},
        "right_foot": {"right_foot"},
        TRUNK: {"hip", "chest"},
        "bag": {"bag"},
    }


def test_the_zoomed_view_of_a_part_shows_that_part_large(source: VolumeSource) -> None:
    subject, pose = PersonSubject(source, source.require_person()), pose_of(source, 3)
    with torch.no_grad():
        field_of(source).color.fill_(-20)  # black, but for one part at a time
    for part, joints in find_body_parts(tiny.SKELETON).items():
        shown = torch.zeros(len(tiny.NAMES), 3)
        shown[list(joints)] = 40.0
        orbit = subject.make_orbit(pose)
        place = orbit.place_at(-math.pi / 2, 0.1, orbit.distance)  # from the front, where no part hides another
        with torch.no_grad():
            field_of(source).color.copy_(shown - 20)
            small, large = (
                subject.render_picture(
                    frame_points(subject.body_outline(pose, chosen), place, UP, 32),
                    pose,
                    0.0,
                    RandomStreams(0, torch.device("cpu")),
                )
                for chosen in (None, joints)
            )
        *_, inside = frame_points(subject.body_outline(pose, joints), place, UP, 32).project_points(
            source.require_person().compute_joint_positions(3)[list(joints)]
        )
        assert inside.all(), part
        assert large.mean() > (1.5 if part == TRUNK else 4) * small.mean(), part
        assert small.mean() > 0, part


def test_an_outline_holds_the_joints_in_every_pose(source: VolumeSource) -> None:
    for time in range(5):
        points, joints = (
            body_outline(tiny.SKELETON, source.require_person().transforms[time]),
            source.require_person().compute_joint_positions(time),
        )
        assert (points.min(axis=0) < joints.min(axis=0)).all() and (points.max(axis=0) > joints.max(axis=0)).all()


def test_poses_come_in_the_shares_that_are_asked_for(source: VolumeSource) -> None:
    motion, random = source.require_person(), np.random.default_rng(0)
    sampler = PoseSampler(motion, (0.5, 0.3, 0.2), reference=2)
    drawn = [sampler(random) for _ in range(600)]
    shares = [sum(pose.kind == kind for pose in drawn) / 600 for kind in ("reference", "source", "random")]
    np.testing.assert_allclose(shares, (0.5, 0.3, 0.2), atol=0.06)
    for pose in drawn[:200]:
        same = [np.array_equal(pose.transforms, transforms) for transforms in motion.transforms]
        assert (
            same
            == {
                "reference": [time == 2 for time in range(5)],
                "source": [time == pose.time for time in range(5)],
                "random": [False] * 5,
            }[pose.kind]
        )
    assert {pose.time for pose in drawn if pose.kind == "source"} == set(range(5))


def test_a_random_pose_lies_between_two_of_the_video_and_keeps_bones_and_place(source: VolumeSource) -> None:
    motion, random = source.require_person(), np.random.default_rng(0)
    np.testing.assert_allclose(
        interpolate_poses(motion, 1, 4, 0.0, random, noise_radians=0.0), motion.transforms[1], atol=1e-9
    )
    there = compute_local_pose(tiny.SKELETON, interpolate_poses(motion, 1, 4, 1.0, random, noise_radians=0.0))[0]
    wanted = compute_local_pose(tiny.SKELETON, motion.transforms[4])[0]
    np.testing.assert_allclose(there[1:9], wanted[1:9], atol=1e-9)
    half = compute_local_pose(tiny.SKELETON, interpolate_poses(motion, 0, 4, 0.5, random, noise_radians=0.0))[0]
    np.testing.assert_allclose(half[3], np.eye(3), atol=1e-9)  # from -0.6 to 0.6 radians
    shaken = interpolate_poses(motion, 1, 4, 0.3, random)
    turns, shifts = compute_local_pose(tiny.SKELETON, shaken)
    np.testing.assert_allclose(shaken[0], motion.transforms[1][0], atol=1e-9)
    np.testing.assert_allclose(shifts[1:], 0, atol=1e-9)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (10, 1, 1)), atol=1e-9)


# The reference


def test_a_correlation_does_not_know_scale_and_shift_and_counts_by_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other, weight = torch.rand(3, 200, generator=generator)
    plain = weighted_correlation(one, other, torch.ones(200))
    assert plain.item() == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-5)
    torch.testing.assert_close(
        weighted_correlation(5 * one + 3, 0.1 * other - 7, torch.ones(200)), plain, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        weighted_correlation(-one, other, weight), -weighted_correlation(one, other, weight), atol=1e-5, rtol=0
    )
    assert weighted_correlation(2 * one - 1, one, weight).item() == pytest.approx(1, abs=1e-5)
    half = torch.cat([torch.ones(100), torch.zeros(100)])
    torch.testing.assert_close(
        weighted_correlation(one, other, half), weighted_correlation(one[:100], other[:100], half[:100])
    )


def test_the_reference_loss_is_zero_at_the_reference_and_knows_depth_but_for_scale_and_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    color, mask, depth = torch.rand(50, 3, generator=generator), torch.ones(50), 1 + torch.rand(50, generator=generator)
    seen = SceneRendering(color, mask, depth, mask)
    loss = reference_loss(seen, ReferenceTargets(color, mask, 3 / depth - 0.2), EVERYTHING, True)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    upside_down = reference_loss(seen, ReferenceTargets(color, mask, depth), EVERYTHING, True)
    assert 0.9 < upside_down.item() <= 1
    assert reference_loss(seen, ReferenceTargets(color, mask, depth), EVERYTHING, False).item() == 0


def reference_from(source: VolumeSource, view: int, shape: bool) -> Reference:
    """What a scene of other colors, and of another size if wanted, shows in a view."""
    other = tiny.TinyScene()
    with torch.no_grad():
        other.person.field.color.copy_(torch.linspace(-2, 2, 30).view(10, 3))
        other.person.field.radius.fill_(0.17 if shape else 0.14)
        seen = other.render_person(camera_rays(source.cameras[view], time=source.times[view]), source.moments)
    camera = source.cameras[view]
    grid = (camera.height, camera.width)
    mask, near = seen.opacity.view(grid).numpy(), (2 / seen.depth.clamp_min(1)).view(grid).numpy()
    return Reference(camera, source.times[view], seen.color.view(*grid, 3).numpy(), mask, near)


@pytest.mark.parametrize("shape", [False, True])
def test_reconstruction_reaches_the_reference(source: VolumeSource, shape: bool) -> None:
    reference, subject = reference_from(source, 1, shape), PersonSubject(source, source.require_person())
    lesson = PersonObjective(
        subject, PoseSampler(source.require_person(), (1.0, 0.0, 0.0), reference.time), 16,
        ReferenceWeights(1000.0, 100.0, 0.0), reference=reference, shape=shape,
    )  # fmt: skip
    chance = RandomStreams(0, source.device)
    with tune_part(source.scene, PERSON, shape) as chosen:
        optimize_parameters(chosen, lambda done: lesson.compute_loss(done, chance), AdamSettings(50, 0.15, 0.006))
        rays = camera_rays(reference.camera, time=reference.time)
        with torch.no_grad():
            seen = source.scene.render_person(rays, source.moments)
        wanted = torch.from_numpy(reference.color).view(-1, 3)
        assert (seen.color - wanted).abs()[reference.mask.ravel() > 0.5].mean() < 0.03
        if shape:
            assert field_of(source).radius.item() == pytest.approx(0.17, abs=0.01)


def test_the_square_picture_of_a_reference_is_what_a_camera_of_the_orbit_sees(source: VolumeSource) -> None:
    subject, pose = PersonSubject(source, source.require_person()), pose_of(source, 2)
    orbit = subject.make_orbit(pose)
    camera = orbit.place_camera(0.4, 0.2, 64)
    chance = RandomStreams(0, source.device)
    with torch.no_grad():
        seen = subject.render_picture(camera, pose, 0.0, chance)[0].permute(1, 2, 0).numpy()
        white = subject.render_picture(camera, pose, 1.0, RandomStreams(0, source.device))
    mask = np.ascontiguousarray(1 - (white[0].permute(1, 2, 0).numpy() - seen)[..., 0])
    found = Reference(camera, 2, np.ascontiguousarray(seen), mask).resample_square(orbit, 64)
    torch.testing.assert_close(found, white, atol=1e-3, rtol=0)


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(np.round(array * 255).astype(np.uint8)).save(path)
    return path


def test_a_reference_is_cut_out_by_its_transparency_or_by_a_mask(source: VolumeSource, tmp_path: Path) -> None:
    true = reference_from(source, 0, False)
    straight = np.where(true.mask[..., None] > 0.5, true.color, 0.3)
    solid = (true.mask > 0.5).astype(np.float32)
    cut = save(tmp_path / "cut.png", np.concatenate([straight, solid[..., None]], axis=2))
    whole = save(tmp_path / "whole.png", straight)
    mask = save(tmp_path / "mask.png", np.repeat(solid[..., None], 3, axis=2))
    by_alpha, by_mask = read_reference(source, cut, 0), read_reference(source, whole, 0, mask)
    known = replace(source, masks=np.stack([solid > 0.5] * 4))
    for found in (by_alpha, by_mask, read_reference(known, whole, 0)):
        np.testing.assert_array_equal(found.mask, solid)
        np.testing.assert_allclose(found.color, straight * solid[..., None], atol=1 / 255)
    with pytest.raises(UserError, match="nothing says where"):
        read_reference(source, whole, 0)
    with pytest.raises(UserError, match="no view 9"):
        read_reference(source, cut, 9)
    dark = save(tmp_path / "dark.png", np.zeros((36, 48, 3)))
    with pytest.raises(UserError, match="nobody is seen"):
        read_reference(source, whole, 0, dark)


# Distillation


def teacher_of(mean: tuple[float, float, float], size: int = 16) -> DiffusionTeacher:
    """A model whose pictures are all of one color, but for some noise; its latents are pixels."""
    levels = NoiseSchedule.from_config(
        {"prediction_type": "sample"}, torch.cumprod(1 - torch.linspace(0.001, 0.1, 100), 0)
    )
    color = 2 * torch.tensor(mean)[:, None, None] - 1

    def outputs(latents: Tensor, time: int) -> tuple[Tensor, Tensor]:
        a, s = levels.signal[time].item(), levels.noise[time].item()
        said = color + a * 0.3**2 / (a**2 * 0.3**2 + s**2) * (latents - a * color)
        return said, said

    score = make_sds_score(outputs, levels, 1.0)
    return DiffusionTeacher(lambda picture: 2 * picture - 1, levels, score, size, 3 * size**2, 0.025)


def lesson_of(source: VolumeSource, **more: Any) -> PersonObjective:
    poses = PoseSampler(source.require_person(), (0.0, 0.5, 0.5))
    return PersonObjective(PersonSubject(source, source.require_person()), poses, 16, EVERYTHING, **more)


def test_distillation_through_views_paints_the_person_as_the_model_wants_from_all_sides(source: VolumeSource) -> None:
    before = hidden_values(source)
    wanted = (0.8, 0.3, 0.1)
    lesson = lesson_of(source, words={WHOLE_BODY: teacher_of(wanted)})
    chance = RandomStreams(0, source.device)
    with tune_part(source.scene, PERSON) as chosen:
        optimize_parameters(chosen, lambda done: lesson.compute_loss(done, chance), AdamSettings(70, 0.15))
        for azimuth in range(8):
            pose = pose_of(source, azimuth % 5)
            camera = lesson.subject.make_orbit(pose).place_camera(azimuth * math.pi / 4, 0.2, 32)
            with torch.no_grad():
                dark, light = (
                    lesson.subject.render_picture(camera, pose, gray, RandomStreams(1, source.device))
                    for gray in (0.0, 1.0)
                )
            solid = (light - dark)[0, 0] < 0.01
            assert (dark[0, :, solid].mean(dim=1) - torch.tensor(wanted)).abs().max() < 0.05
        assert set(chosen.copy_weights()) == {"person.field.paint.grid.params"}
    after = hidden_values(source)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_part_is_taught_by_its_own_words(source: VolumeSource) -> None:
    parts = {"head": find_body_parts(tiny.SKELETON)["head"]}
    words = {WHOLE_BODY: teacher_of((0.1, 0.1, 0.9)), "head": teacher_of((0.9, 0.1, 0.1))}
    lesson = lesson_of(source, words=words, parts=parts, zoom=0.5)
    chance = RandomStreams(0, source.device)
    with tune_part(source.scene, PERSON) as chosen:
        optimize_parameters(chosen, lambda done: lesson.compute_loss(done, chance), AdamSettings(60, 0.15))
        with torch.no_grad():
            rest = torch.tensor(tiny.REST, dtype=torch.float32)[None]
            colors = field_of(source).colors(rest, torch.ones(1, 10, dtype=torch.bool))
        head, foot = colors[0, 2], colors[0, 7]
        assert head[0] > 0.7 and head[2] < 0.3 and foot[2] > 0.7 and foot[0] < 0.3


def test_colors_are_edited_without_a_change_of_any_outline(source: VolumeSource) -> None:
    rays = camera_rays(source.cameras[0])
    with torch.no_grad():
        before = source.scene.render_rays(rays, source.moments)
    lesson = lesson_of(source, words={WHOLE_BODY: teacher_of((0.0, 1.0, 0.0))})
    chance = RandomStreams(0, source.device)
    with tune_part(source.scene, PERSON) as chosen:
        optimize_parameters(chosen, lambda done: lesson.compute_loss(done, chance), AdamSettings(10, 0.1))
        with torch.no_grad():
            after = source.scene.render_rays(rays, source.moments)
    assert torch.equal(before.person_opacity, after.person_opacity) and torch.equal(before.depth, after.depth)
    nobody = before.person_opacity < 1e-6
    assert nobody.any() and torch.allclose(before.color[nobody], after.color[nobody], atol=1e-5)
    assert (before.color - after.color).abs().max() > 0.1


def test_a_step_says_nothing_where_only_the_reference_speaks_and_another_pose_is_drawn(source: VolumeSource) -> None:
    lesson = lesson_of(source)
    with tune_part(source.scene, PERSON):
        assert lesson.compute_loss(0.0, RandomStreams(0, source.device)) is None


# Zero-1-to-3


def test_moves_of_known_orbits_have_their_angles_and_distance() -> None:
    center, turn = np.array([1.0, -2.0, 0.5]), np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    orbit = Orbit(center, 0.5, turn @ UP)

    def at(azimuth: float, elevation: float, distance: float) -> np.ndarray:
        a, e = math.radians(azimuth), math.radians(elevation)
        return center + turn @ (
            distance * np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        )

    reference = at(170, 10, 2)
    for place, polar, azimuth, distance in (
        (at(170, 10, 2), 0, 0, 0),
        (at(260, 10, 2), 0, 90, 0),  # counter-clockwise from above: to the camera's right
        (at(-170, 10, 2), 0, 20, 0),  # the short way round
        (at(170, 40, 2), -30, 0, 0),  # higher: the angle against up shrinks
        (at(80, -20, 2.5), 30, -90, 0.5),
    ):
        move = compute_camera_move(orbit, reference, place)
        found = (math.degrees(move.polar), math.degrees(move.azimuth), move.distance)
        np.testing.assert_allclose(found, (polar, azimuth, distance), atol=1e-9)
    code = CameraMove(0.1, math.pi / 2, 0.3).encode()
    torch.testing.assert_close(code, torch.tensor([0.1, 1.0, 0.0, 0.3]), atol=1e-6, rtol=0)


def view_folder(models: Any, folder: Path, layer: str = "cc_projection") -> Path:
    """A tiny random model in the layout that converters give Zero-1-to-3."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    models.unet(inputs=8).save_pretrained(folder / "unet")
    models.vae().save_pretrained(folder / "vae")
    models.scheduler().save_pretrained(folder / "scheduler")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8,
        projection_dim=models.WIDTH,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    linear = torch.nn.Linear(models.WIDTH + 4, models.WIDTH)
    (folder / layer).mkdir()
    names = {"cc_projection": "projection", "clip_camera_projection": "proj"}[layer]
    tensors = {f"{names}.{name}": value.detach().contiguous() for name, value in linear.state_dict().items()}
    save_file(tensors, folder / layer / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text(
        f'{{"_class_name": "Zero1to3StableDiffusionPipeline", "{layer}": ["pipeline_zero1to3", "CCProjection"], '
        '"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}'
    )
    return folder


@pytest.fixture(scope="module")
def view_model(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return view_folder(tiny_models, tmp_path_factory.mktemp("views") / "model")


@pytest.fixture(scope="module")
def text_model(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("text") / "model")


def test_the_denoiser_is_told_the_reference_and_the_move_and_nothing_without_guidance(view_model: Path) -> None:
    networks = load_view_networks(WeightsSource(str(view_model), "cpu"))
    reference = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    views, move = NovelViewModel(networks, reference), CameraMove(0.2, -0.4, 0.1)
    model, latents = networks.model, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    small = torch.nn.functional.interpolate(reference, (32, 32), mode="bilinear", antialias=True)
    assert networks.projection is not None
    with torch.no_grad():
        mode = model.vae.encode(2 * small - 1).latent_dist.mode()
        token = networks.projection(torch.cat([views.embedding, move.encode()[None]], dim=1))[:, None]
        without, told = views.run_denoiser(latents, 300, move)
        unet = cast("nn.Module", model.unet)
        wanted = unet(torch.cat([latents, mode], dim=1), 300, encoder_hidden_states=token).sample
        blank = unet(torch.cat([latents, 0 * mode], dim=1), 300, encoder_hidden_states=0 * token).sample
    torch.testing.assert_close(told, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(without, blank, atol=1e-4, rtol=1e-4)


def test_both_layouts_are_read_without_the_code_that_they_name(
    view_model: Path, tiny_models: ModuleType, tmp_path: Path
) -> None:
    other = view_folder(tiny_models, tmp_path / "other", layer="clip_camera_projection")
    one, two = (load_view_networks(WeightsSource(str(folder), "cpu")).projection for folder in (view_model, other))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_another_kind_of_model_is_refused(view_model: Path, text_model: Path) -> None:
    with pytest.raises(UserError, match="Zero-1-to-3") as caught:
        load_view_networks(WeightsSource(str(text_model), "cpu"))
    assert caught.value.code == ExitCode.BAD_INPUT and "--view-model" in caught.value.fix


# Paint


def test_a_paint_of_zeros_changes_nothing_and_others_open_where_their_names_say(source: VolumeSource) -> None:
    rays = camera_rays(source.cameras[0])
    with torch.no_grad():
        before = source.scene.render_rays(rays, source.moments).color
        add_paints(source.scene, ["person.field.color"])
        assert field_of(source).paint is None and source.scene.background.paint is None
        add_paints(source.scene, ["person.field.paint.grid.params"])
        paint = field_of(source).paint
        assert paint is not None and source.scene.background.paint is None
        assert torch.equal(source.scene.render_rays(rays, source.moments).color, before)
        paint.grid.params.fill_(0.5)
        values = paint(torch.rand(9, 3))
    torch.testing.assert_close(values, (0.5 * paint.shares.sum()).expand(9, 3))
    assert not any("shares" in name for name in source.scene.state_dict())


def test_an_edit_goes_on_from_the_paint_that_is_there_and_leaves_it(source: VolumeSource) -> None:
    name = "person.field.paint.grid.params"
    add_paints(source.scene, [name])
    paint = field_of(source).paint
    assert paint is not None
    with torch.no_grad():
        paint.grid.params.fill_(0.25)
    with tune_part(source.scene, PERSON) as chosen:
        assert (chosen.copy_weights()[name] == 0.25).all()
        with torch.no_grad():
            chosen.paint[name].zero_()
    assert (source.scene.state_dict()[name] == 0.25).all()
    assert all(parameter.requires_grad for parameter in source.scene.parameters())


# The editors


def test_the_whole_editor_runs_on_a_prompt_a_reference_and_a_view_model(
    source: VolumeSource, view_model: Path, text_model: Path, tmp_path: Path
) -> None:
    true, before = reference_from(source, 2, True), hidden_values(source)
    assert true.nearness is not None
    alpha = (true.mask > 0.5).astype(np.float32)[..., None]
    reference = save(tmp_path / "reference.png", np.concatenate([true.color, alpha], axis=2))
    depth = save(tmp_path / "depth.png", np.repeat(true.nearness[..., None] / true.nearness.max(), 3, axis=2))
    settings: dict[str, Any] = {
        "reference": reference,
        "reference_view": 2,
        "view_model": str(view_model),
        "device": "cpu",
        "steps": 3,
    }
    words: dict[str, Any] = {"prompt": "a red coat", "model": str(text_model), "part_prompt": "{part} of {prompt}"}
    for more in ({}, words, words | {"shape": True, "reference_depth": depth}):
        editor = DynVideoE(**settings, **more)
        result = editor.edit(source, report_nothing)
        assert result.parts == (PERSON,)
        names = {"person.field.paint.grid.params"}
        names |= {"person.field.color", "person.field.radius"} if "shape" in more else set()
        assert set(result.weights) == names
        assert all(np.isfinite(value).all() and value.any() for value in result.weights.values())
        after = hidden_values(source)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_makes_the_same_edit(source: VolumeSource, text_model: Path) -> None:
    settings: dict[str, Any] = {"prompt": "a red coat", "model": str(text_model), "device": "cpu", "steps": 2}
    one, two, other = (DynVideoE(**settings, seed=seed).edit(source, report_nothing).weights for seed in (1, 1, 2))
    name = "person.field.paint.grid.params"
    assert np.array_equal(one[name], two[name]) and not np.array_equal(one[name], other[name])


def test_what_is_taken_away_shows_what_is_behind(source: VolumeSource) -> None:
    result = RemovePart().edit(source, report_nothing)
    assert result.effects.hidden == (PERSON,) and not result.weights
    rays = camera_rays(source.cameras[0])
    with torch.no_grad():
        left = source.scene.render_rays(rays, source.moments, parts=source.scene.parts - set(result.effects.hidden))
        sky = source.scene.background(rays.direction)
    assert torch.equal(left.color, sky)
    assert RemovePart(part="background").edit(source, report_nothing).effects.hidden == (BACKGROUND,)
    with pytest.raises(UserError, match="no person"):
        RemovePart().edit(replace(source, motion=None), report_nothing)


def test_a_part_is_replaced_by_that_of_another_scene_and_the_other_part_stays(
    source: VolumeSource, tmp_path: Path
) -> None:
    other = tiny.TinyScene()
    with torch.no_grad():
        other.person.field.color.fill_(2.0)
        other.background.color.fill_(-1.0)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    result = ReplacePart(weights=tmp_path / "other.safetensors").edit(source, report_nothing)
    assert set(result.weights) == {name for name in source.scene.state_dict() if name.startswith("person.")}
    assert np.array_equal(result.weights["person.field.color"], other.person.field.color.detach().numpy())
    save_file({"person.field.color": torch.zeros(3, 3)}, tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        ReplacePart(weights=tmp_path / "small.safetensors").edit(source, report_nothing)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "nothing says"),
        ({"prompt": "a coat"}, "needs --model"),
        ({"model": "m", "reference": Path("r.png")}, "needs --prompt"),
        ({"view_model": "m"}, "view-model"),
        ({"zoom": 1.5}, "zoom"),
        ({"times": (0.9, 0.1)}, "times"),
        ({"source_poses": 0.7, "random_poses": 0.7}, "source-poses"),
        ({"steps": 0}, "steps"),
        ({"rgb_weight": -1.0}, "rgb-weight"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_flag_to_try(settings: dict[str, Any], word: str) -> None:
    known = (
        {"prompt": "a coat", "model": "m"} if word not in ("nothing says", "needs --model", "needs --prompt") else {}
    )
    with pytest.raises(UserError, match=word) as caught:
        DynVideoE(**(known | settings))
    assert caught.value.code == ExitCode.USAGE and caught.value.fix.startswith("--")
