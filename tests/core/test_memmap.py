"""Arrays in files give their memory back and keep their content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_fields.core import memmap


def resident(array: np.memmap) -> int:
    """KiB of a mapped array that lie in memory, from the process's own table."""
    start = array.__array_interface__["data"][0]
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and not line.endswith("kB"):
            low, high = (int(end, 16) for end in line.split(" ")[0].split("-"))
            inside = low <= start < high
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1])
    return 0


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="this system does not list what is resident")
def test_a_mapped_array_is_resident_until_it_is_let_go(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4_000_000, dtype=np.uint8))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    total = int(array.sum())
    assert resident(array) > 3000
    memmap.release_memory(array)
    assert resident(array) < 500
    assert int(array.sum()) == total


def test_large_zeros_lie_in_a_file_and_keep_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memmap, "FILE_BACKED_FROM_BYTES", 1000)
    array = memmap.allocate_zeros((50, 40), bool)
    assert isinstance(array, np.memmap) and not array.any()
    array[3, 5] = True
    memmap.release_memory(array)
    assert array.sum() == 1 and array[3, 5]
    assert not isinstance(memmap.allocate_zeros((5, 4), bool), np.memmap)


def test_ordinary_and_private_arrays_are_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[0] = 7
    memmap.release_memory(private)
    memmap.release_memory(np.ones(3))
    assert private[0] == 7


def test_entries_come_in_turn() -> None:
    assert [int(entry) for entry in memmap.iterate_releasing(np.arange(70))] == list(range(70))
