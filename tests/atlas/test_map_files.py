"""Files of baked maps: what is written comes back, a frame at a time, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_fields.atlas.map_files import MapFile, write_map_file
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.imaging.resampling import warp_part

ROWS, COLUMNS, STEP = 14, 23, 0.01


def write(path: Path, frames: np.ndarray, knots: np.ndarray | None = None) -> MapFile:
    planes = frames.shape[3], *frames.shape[1:3]
    grid = (0, 0) if knots is None else (knots.shape[1] - 2, knots.shape[2] - 2)
    with write_map_file(path, len(frames), planes, STEP, grid) as write_frame:
        for t, values in enumerate(frames):
            write_frame(values, None if knots is None else knots[t])
    return MapFile(path)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("roughness", [0.02, 1.0, 5000.0])
def test_numbers_come_back_within_half_a_step_however_rough_they_are(
    tmp_path: Path, channels: int, roughness: float
) -> None:
    slope = np.mgrid[:ROWS, :COLUMNS].sum(0)[..., None]
    rough = np.random.default_rng(0).standard_normal((3, ROWS, COLUMNS, channels))
    frames = (slope - 7 + roughness * rough).astype(np.float32)
    file = write(tmp_path / "uv.bin", frames)
    for t in (2, 0, 1, 1):
        assert np.abs(file[t] - frames[t]).max() < 0.51 * STEP + 1e-6 * roughness


def test_bytes_come_back_as_they_are_and_numbers_that_are_none_do_no_harm(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).integers(0, 256, (2, 3, ROWS, COLUMNS), np.uint8)
    with write_map_file(tmp_path / "weight.bin", 2, (3, ROWS, COLUMNS)) as write_frame:
        for frame in weights:
            write_frame(frame)
    assert all((MapFile(tmp_path / "weight.bin")[t] == weights[t]).all() for t in range(2))

    frames = np.ones((1, ROWS, COLUMNS, 2), np.float32)
    frames[0, 3, 4], frames[0, 5, 6] = np.nan, np.inf
    found = write(tmp_path / "uv.bin", frames)[0]
    known = np.isfinite(frames[0])
    assert np.allclose(found[known], 1, atol=STEP) and np.isfinite(found).all() and not found[3, 4].any()


def test_a_map_that_is_bilinear_between_knots_takes_no_more_than_these(tmp_path: Path) -> None:
    knots = np.random.default_rng(0).standard_normal((2, 5, 6, 2)).astype(np.float32)
    size = COLUMNS - 2, ROWS - 2
    part = slice(-1, ROWS - 1), slice(-1, COLUMNS - 1)
    frames = np.stack([warp_part(at_knots, (0, 0), (4, 3), size, part) for at_knots in knots])

    frames[1, 4:7, 5:9] += 0.7  # a dent in the second frame
    file = write(tmp_path / "uv.bin", frames, knots)
    first, second = np.diff(file.table)
    assert first == knots[0].nbytes < second
    assert (file[0] == frames[0]).all() and np.abs(file[1] - frames[1]).max() < 0.51 * STEP


@pytest.mark.parametrize("place", [40, -3])
def test_a_damaged_block_is_named_with_its_frame(tmp_path: Path, place: int) -> None:
    frames = np.random.default_rng(0).standard_normal((2, ROWS, COLUMNS, 2)).astype(np.float32)
    write(tmp_path / "uv.bin", frames)
    start = MapFile(tmp_path / "uv.bin").table[1]
    content = bytearray((tmp_path / "uv.bin").read_bytes())
    half = (2 * (ROWS - 1) * (COLUMNS - 1) + 1) // 2
    content[start + half + place if place > 0 else place] ^= 255
    (tmp_path / "uv.bin").write_bytes(content)
    file = MapFile(tmp_path / "uv.bin")
    assert np.abs(file[0] - frames[0]).max() < STEP
    with pytest.raises(UserError, match="maps cannot be read") as caught:
        file[1]
    assert caught.value.code == ExitCode.DAMAGED_RUN and "frame 1 of uv.bin" in caught.value.why
