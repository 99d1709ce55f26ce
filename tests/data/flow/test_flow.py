"""Flow: closed forms, the cache, the user's files and the user's weights."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress
from neural_fields.data.flow.compute import (
    FlowField,
    compute_flow,
    consistency_mask,
    read_flo,
    resize_vectors,
    write_flo,
)
from neural_fields.data.flow.raft import rename_raft_state

SHARED = Path(__file__).resolve().parents[4] / "shared"
CHAIRS = SHARED / "data" / "flow-gt-chairs"
RAFT_SMALL = SHARED / "weights" / "raft" / "raft-small.pth"


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth random RGB: every place is told from its neighbors, nothing aliases."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return (smooth * 255).astype(np.uint8)


def moving(width: int, height: int, dx: int, dy: int, count: int = 3) -> np.ndarray:
    """A clip whose content moves by (dx, dy) pixels a frame."""
    pad = 4 * max(abs(dx), abs(dy), 1) * count
    wide = texture(width + 2 * pad, height + 2 * pad)
    return np.stack(
        [wide[pad - t * dy : pad - t * dy + height, pad - t * dx : pad - t * dx + width] for t in range(count)]
    )


def inner(array: np.ndarray, margin: int = 12) -> np.ndarray:
    return np.asarray(array, np.float32)[:, margin:-margin, margin:-margin]


def constant(value: tuple[float, float], pairs: int = 1, size: tuple[int, int] = (8, 6)) -> FlowField:
    forward = np.zeros((pairs, size[1], size[0], 2), np.float32) + np.array(value, np.float32)
    ok = np.ones(forward.shape[:3], bool)
    return FlowField(forward, -forward, ok, ok)


@pytest.mark.parametrize("width, height", [(128, 72), (96, 96), (72, 128)])
def test_dis_recovers_a_translation_at_every_aspect(tmp_path: Path, width: int, height: int) -> None:
    flow = compute_flow(moving(width, height, 3, -2), tmp_path)
    assert flow.size == (width, height) and flow.forward.shape == (2, height, width, 2)
    assert np.abs(inner(flow.forward) - [3, -2]).mean() < 0.1
    assert np.abs(inner(flow.backward) - [-3, 2]).mean() < 0.1
    assert inner(flow.forward_ok).mean() > 0.98 and inner(flow.backward_ok).mean() > 0.98


def test_what_leaves_the_frame_is_not_ok(tmp_path: Path) -> None:
    flow = compute_flow(moving(96, 72, 6, 0), tmp_path)
    assert not flow.forward_ok[:, 20:-20, -4:].any() and not flow.backward_ok[:, 20:-20, :4].any()


def test_transposing_the_clip_transposes_its_flow(tmp_path: Path) -> None:
    frames = moving(96, 64, 2, 1)
    straight = compute_flow(frames, tmp_path).forward
    turned = compute_flow(frames.transpose(0, 2, 1, 3), tmp_path).forward
    back = np.asarray(turned, np.float32).transpose(0, 2, 1, 3)[..., ::-1]
    assert np.abs(inner(back) - inner(straight)).mean() < 0.05


def test_flow_at_another_size_is_in_the_pixels_of_that_size(tmp_path: Path) -> None:
    flow = compute_flow(moving(192, 96, 6, -4), tmp_path, size=(96, 72))
    assert flow.size == (96, 72)
    assert np.abs(inner(flow.forward) - [3, -3]).mean() < 0.15


def test_resizing_scales_dx_by_the_width_ratio_and_dy_by_the_height_ratio() -> None:
    wide = resize_vectors(constant((4.0, 6.0)).forward[0], (16, 3))
    assert wide.shape == (3, 16, 2) and np.allclose(wide, [8.0, 3.0])


def test_invalid_vectors_do_not_leak_into_their_neighbors_on_resize() -> None:
    vectors = np.ones((8, 8, 2), np.float32)
    vectors[:, 0] = 1e6
    ok = np.ones((8, 8), bool)
    ok[:, 0] = False
    assert np.allclose(resize_vectors(vectors, (4, 4), ok), 0.5)


def test_consistency_refuses_flow_that_does_not_come_back() -> None:
    there = np.full((20, 20, 2), 2.0, np.float32)
    wrong = -there.copy()
    wrong[10:, :] = 5.0
    mask = consistency_mask(there, wrong)
    assert mask[:6, :15].all() and not mask[10:, :].any()


def test_consistent_pixels_are_those_of_the_plain_formula() -> None:
    random = np.random.default_rng(3)
    flow, reverse = (cv2.GaussianBlur(random.normal(0, 9, (40, 60, 2)).astype(np.float32), (0, 0), 4) for _ in range(2))
    reverse -= 0.8 * flow
    flow[5:9, 5:9] = np.nan
    found = consistency_mask(flow, reverse)
    y, x = np.mgrid[:40, :60].astype(np.float32)
    to = np.stack([x, y], -1) + np.nan_to_num(flow, nan=1e3)
    back = cv2.remap(reverse, to[..., 0], to[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    plain = ((flow + back) ** 2).sum(-1) < 0.01 * ((flow**2).sum(-1) + (back**2).sum(-1)) + 0.5
    plain &= ((to >= -0.5) & (to <= (59.5, 39.5))).all(-1)
    assert 0.2 < found.mean() < 0.9 and not found[5:9, 5:9].any() and (found != plain).mean() < 0.005


def test_cached_flow_is_opened_again_and_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    frames = moving(64, 48, 1, 0)
    calls: list[tuple[int, int]] = []
    first = compute_flow(frames, tmp_path, report=lambda progress: calls.append((progress.done, progress.total)))
    values = np.array(first.forward)
    assert calls == [(1, 2), (2, 2)] and isinstance(first.forward, np.memmap) and first.forward.dtype == np.float16
    compute_flow(frames, tmp_path, report=lambda progress: calls.append((progress.done, progress.total)))
    assert len(calls) == 2
    next(tmp_path.glob("*/backward.npy")).write_bytes(b"cut short")
    again = compute_flow(frames, tmp_path)
    assert np.array_equal(again.forward, values) and len(list(tmp_path.iterdir())) == 1


def test_other_frames_and_other_sizes_have_other_cache_entries(tmp_path: Path) -> None:
    frames = moving(64, 48, 1, 0)
    compute_flow(frames, tmp_path)
    compute_flow(frames[::-1], tmp_path)
    compute_flow(frames, tmp_path, size=(32, 24))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failure_half_way_leaves_no_cache_entry(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_flow(moving(64, 48, 1, 0), tmp_path, report=stop)
    assert list(tmp_path.iterdir()) == []


def test_one_frame_has_no_flow(tmp_path: Path) -> None:
    assert compute_flow(moving(64, 48, 1, 0, count=1), tmp_path).forward.shape == (0, 48, 64, 2)


def test_flo_files_are_read_as_written(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).normal(size=(5, 7, 2)).astype(np.float32)
    write_flo(tmp_path / "a.flo", flow)
    assert np.array_equal(read_flo(tmp_path / "a.flo"), flow)
    (tmp_path / "b.flo").write_bytes((tmp_path / "a.flo").read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged"):
        read_flo(tmp_path / "b.flo")


def user_flow(folder: Path, pairs: int = 2, kind: str = "flo") -> Path:
    for name, sign in (("forward", 1), ("backward", -1)):
        (folder / name).mkdir(parents=True)
        for pair in range(pairs):
            value = np.full((48, 64, 2), (sign * 2, sign), np.float32)
            if kind == "flo":
                write_flo(folder / name / f"{pair}.flo", value)
            else:
                np.save(folder / name / f"{pair}.npy", value)
    return folder


@pytest.mark.parametrize("kind", ["flo", "npy"])
def test_flow_files_are_taken_as_they_are_and_scaled_to_the_size(tmp_path: Path, kind: str) -> None:
    folder = user_flow(tmp_path / "user", kind=kind)
    frames = moving(64, 48, 0, 0)
    assert np.array_equal(compute_flow(frames, tmp_path / "cache", str(folder)).forward[1, 0, 0], [2, 1])
    half = compute_flow(frames, tmp_path / "cache", str(folder), size=(32, 24))
    assert np.allclose(half.forward, [1, 0.5]) and np.allclose(half.backward, [-1, -0.5])


def test_unknown_flow_in_a_file_becomes_a_mask(tmp_path: Path) -> None:
    folder = user_flow(tmp_path / "user")
    value = read_flo(folder / "forward" / "0.flo")
    value[10:14, 20:24] = 1.7e9
    write_flo(folder / "forward" / "0.flo", value)
    flow = compute_flow(moving(64, 48, 0, 0), tmp_path / "cache", str(folder))
    assert not flow.forward_ok[0, 10:14, 20:24].any() and np.abs(flow.forward).max() <= 2


def test_forward_files_alone_get_their_backward_flow_from_dis(tmp_path: Path) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    for pair in range(2):
        write_flo(folder / f"{pair}.flo", np.full((48, 64, 2), (2.0, 1.0)))
    flow = compute_flow(moving(64, 48, 2, 1), tmp_path / "cache", str(folder))
    assert np.abs(inner(flow.backward) - (-2, -1)).mean() < 0.1 and inner(flow.forward_ok).mean() > 0.95


def test_nan_in_a_flow_file_names_the_file_and_the_frames(tmp_path: Path) -> None:
    folder = user_flow(tmp_path / "user")
    value = read_flo(folder / "backward" / "1.flo")
    value[3, 4, 0] = np.nan
    write_flo(folder / "backward" / "1.flo", value)
    with pytest.raises(UserError) as caught:
        compute_flow(moving(64, 48, 2, 1), tmp_path / "cache", str(folder))
    assert "1.flo" in caught.value.what and "1 to 2" in caught.value.what and "row 3, column 4" in caught.value.where
    assert caught.value.code == ExitCode.BAD_INPUT and list((tmp_path / "cache").iterdir()) == []


def test_flow_files_that_do_not_fit_the_clip_are_refused(tmp_path: Path) -> None:
    folder = user_flow(tmp_path / "user")
    with pytest.raises(UserError, match="2 forward flow files, the clip has 3 pairs"):
        compute_flow(moving(64, 48, 1, 0, count=4), tmp_path / "cache", str(folder))
    with pytest.raises(UserError, match="64x48, the frames are 64x64"):
        compute_flow(moving(64, 64, 1, 0), tmp_path / "cache", str(folder))


@pytest.mark.slow
def test_unknown_methods_and_unreadable_weights_are_refused(tmp_path: Path) -> None:
    frames = moving(64, 48, 1, 0)
    with pytest.raises(UserError, match="no flow method or file called rafft"):
        compute_flow(frames, tmp_path, "rafft")
    with pytest.raises(UserError, match="no file"):
        compute_flow(frames, tmp_path, str(tmp_path / "no.pth"))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pth"):
        compute_flow(frames, tmp_path, str(tmp_path / "text.pth"))
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit RAFT"):
        compute_flow(frames, tmp_path / "cache", str(tmp_path / "other.pth"))


def test_weights_that_would_run_code_are_not_opened(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "objects.pth")
    with pytest.raises(UserError) as caught:
        compute_flow(moving(64, 48, 1, 0), tmp_path, str(tmp_path / "objects.pth"))
    assert caught.value.code == ExitCode.UNSAFE_FILE


@pytest.mark.slow
def test_raft_without_a_network_connection_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        compute_flow(moving(64, 48, 1, 0), tmp_path, "raft")
    assert "PATH.pth" in caught.value.fix and "--flow dis" in caught.value.fix


RAFT_NAMES = (
    ("motion_encoder.conv.0.", "encoder.conv."),
    ("encoder.convnormrelu.0.", "encoder.conv1."),
    ("encoder.convnormrelu.1.", "encoder.norm1."),
    ("_encoder.conv.", "_encoder.conv2."),
    ("feature_encoder", "fnet"),
    ("context_encoder", "cnet"),
    ("recurrent_block.convgru", "gru.convgru"),
    ("mask_predictor.convrelu.0", "update_block.mask.0"),
    ("mask_predictor.conv", "update_block.mask.2"),
)


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the original RAFT-large code for a torchvision state dict, written out the other way round."""
    out = {}
    for name, value in state.items():
        name = re.sub(r"convnormrelu(\d)\.0\.", r"conv\1.", name)
        name = re.sub(r"convnormrelu(\d)\.1\.", r"norm\1.", name)
        for new, old in RAFT_NAMES:
            name = name.replace(new, old)
        name = re.sub(r"motion_encoder\.conv(c|f)(?:orr|low)(\d)\.0\.", r"encoder.conv\1\2.", name)
        name = re.sub(r"gru\.convgru(\d)\.conv([zrq])\.", r"gru.conv\g<2>\1.", name)
        out[f"module.{name}"] = value
        twin = re.match(r"(cnet\.layer\d\.0)\.downsample\.1\.(.*)", name)
        if twin is not None:
            out[f"module.{twin[1]}.norm3.{twin[2]}"] = value
    return out


@pytest.mark.slow
def test_the_original_names_of_raft_large_become_torchvisions() -> None:
    from torchvision.models.optical_flow import raft_large

    state = raft_large().state_dict()
    original = original_names(state)
    assert "module.update_block.gru.convq2.weight" in original and "module.cnet.layer2.0.norm3.weight" in original
    renamed = rename_raft_state(original)
    assert set(renamed) == set(state) and all(torch.equal(renamed[name], state[name]) for name in state)
    assert set(rename_raft_state(state)) == set(state)


@pytest.mark.skipif(not CHAIRS.is_dir(), reason="needs ../shared/data/flow-gt-chairs")
def test_dis_is_near_the_truth_on_most_of_a_flying_chairs_pair(tmp_path: Path) -> None:
    pair = np.stack([cv2.imread(str(CHAIRS / f"0000000-img{index}.ppm"))[..., ::-1] for index in (0, 1)])
    flow = compute_flow(pair, tmp_path)
    gap = np.linalg.norm(flow.forward[0] - read_flo(CHAIRS / "0000000-gt.flo"), axis=-1)
    # Chairs jump by tens of pixels, which DIS loses: the mask must know where.
    assert np.median(gap) < 0.6 and gap.mean() < 10 and gap[flow.forward_ok[0]].mean() < 0.5 * gap.mean()


@pytest.mark.slow
@pytest.mark.skipif(not (CHAIRS.is_dir() and RAFT_SMALL.is_file()), reason="needs ../shared weights and data")
def test_raft_small_with_the_original_names_has_its_known_error_on_a_flying_chairs_pair(tmp_path: Path) -> None:
    pair = np.stack([cv2.imread(str(CHAIRS / f"0000000-img{index}.ppm"))[..., ::-1] for index in (0, 1)])
    flow = compute_flow(pair, tmp_path, str(RAFT_SMALL))
    gap = np.linalg.norm(flow.forward[0] - read_flo(CHAIRS / "0000000-gt.flo"), axis=-1)
    assert gap.mean() == pytest.approx(2.59, abs=0.05)
