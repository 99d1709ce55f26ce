"""Files: whatever happens to a write, the old or the new file is on the disk, and no litter stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_fields.core import files
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import atomic_write, read_json, require_disk_space, write_json
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_volume_without_enough_room_is_refused_before_writing(tmp_path) -> None:
    require_disk_space(tmp_path / "not" / "there", 1)
    with pytest.raises(UserError, match="is full") as caught:
        require_disk_space(tmp_path / "not" / "there", 1 << 60)
    assert caught.value.code == ExitCode.NO_ROOM and str(1 << 60) in caught.value.why
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, error) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises((type(error), UserError)) as caught, atomic_write(path) as part:
        assert part.parent == path.parent and part.suffix == ".png"
        part.write_bytes(b"half")
        raise error
    assert isinstance(caught.value, UserError) == isinstance(error, OSError)
    assert names(tmp_path) == ["picture.png"] and path.read_bytes() == b"old"


def test_an_unreadable_source_is_not_taken_for_an_unwritable_target(tmp_path) -> None:
    with pytest.raises(PermissionError), atomic_write(tmp_path / "out" / "a.png"):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "elsewhere" / "source.png"))


def test_writing_into_a_file_as_if_it_were_a_folder_is_a_user_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "file" / "deep" / "a.json"):
        pass


def test_json_comes_back_with_what_json_cannot_say_as_null(tmp_path) -> None:
    value = {"psnr": np.float32(2.5), "bad": float("inf"), "path": Path("a/b"), "rows": (1, [True]), 3: "ü\udcff"}
    write_json(tmp_path / "new" / "a.json", value)
    read = read_json(tmp_path / "new" / "a.json")
    assert read == {"psnr": 2.5, "bad": None, "path": "a/b", "rows": [1, [True]], "3": "ü\udcff"}


@pytest.mark.parametrize("data", [None, b"", b"{", b"\xff", b"[" * 100_000])
def test_unusable_json_is_a_damaged_run(tmp_path, data) -> None:
    if data is not None:
        (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.code == ExitCode.DAMAGED_RUN and caught.value.where.endswith("a.json")


def test_only_litter_of_dead_processes_of_this_machine_is_cleared_away(tmp_path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, other = files.hash_host_name(), "0" * 8
    keep = [f".unwrap-part-{host}-{os.getppid()}-{other}.mp4", f".unwrap-part-{other}-{dead.pid}-{other}.mp4", ".part"]
    gone = [f".unwrap-part-{host}-{pid}-{other}.mp4" for pid in (dead.pid, os.getpid())]
    run = Run.create(tmp_path / "run")
    run.renders.mkdir()
    for name in keep + gone:
        (run.renders / name).write_bytes(b"")
    with atomic_write(run.renders / "a.mp4") as part, lock_run(run):
        part.write_bytes(b"video")
    assert names(run.renders) == sorted([*keep, "a.mp4"])
