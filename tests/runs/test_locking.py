"""One writer at a time: a second one is told who holds the run, and a killed one holds nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.runs.checkpoints import load_latest_checkpoint, save_checkpoint
from neural_fields.runs.locking import is_training, lock_run, lock_training
from neural_fields.runs.run import Run, write_run_yaml

HOLD = """
import sys, time
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run
with lock_run(Run.open(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a run.yaml and a checkpoint of step 2."""
    run = Run.create(tmp_path / "run")
    write_run_yaml(run, {"preset": "atlas"})
    save_checkpoint(run, 2, {"table": np.zeros(3)}, {}, {})
    return run


def test_a_second_writer_is_told_who_holds_the_run_until_that_one_is_killed(run) -> None:
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught, lock_run(run):
            pass
        found = load_latest_checkpoint(run, "numpy")
        assert found is not None and found.step == 2, "reading goes on"
        holder.kill()
    assert caught.value.code == ExitCode.LOCKED
    assert f"process {holder.pid} on {os.uname().nodename} since 2" in caught.value.why
    with lock_run(run) as note:
        assert note == ""


def test_one_process_cannot_write_twice_at_once(run) -> None:
    with lock_run(run):
        with pytest.raises(UserError, match="in use"), lock_run(run):
            pass
        with pytest.raises(UserError, match="in use"), lock_run(run):
            pass


def test_a_volume_without_locks_gets_a_file_instead_and_a_note(run, monkeypatch) -> None:
    def no_locks(descriptor, how) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run.holder_file.write_text(f"{gone.pid}\n{os.uname().nodename}\n")
    with lock_run(run) as note:
        assert "cannot lock files" in note
        with pytest.raises(UserError, match="in use"), lock_run(run):
            pass
    assert not run.holder_file.exists()
    run.holder_file.write_text(f"{gone.pid}\nelsewhere\x1b[31m\n")
    with pytest.raises(UserError) as caught, lock_run(run):
        pass
    assert caught.value.code == ExitCode.LOCKED and run.holder_file.exists()
    assert f"process {gone.pid} on elsewhere[31m since 2" in caught.value.why


def test_a_lock_file_without_a_holder_frees_the_run_with_its_process_and_not_before(run) -> None:
    run.lock_file.write_bytes(b"\xff")
    with lock_run(run):
        run.lock_file.write_bytes(b"")
        with pytest.raises(UserError, match="in use") as caught, lock_run(run):
            pass
    assert "process ? on ? since 2" in caught.value.why


def test_a_folder_that_cannot_be_written_is_an_error_with_the_reason(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "run" / "LOCK").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "LOCK").symlink_to(tmp_path / "elsewhere")
    for path, why in (("file/run", "not a directory"), ("run", "is a directory"), ("other", "symbolic links")):
        with pytest.raises(UserError, match="cannot write") as caught, lock_run(Run(tmp_path / path)):
            pass
        assert caught.value.code == ExitCode.BAD_INPUT and why in caught.value.why
    assert not (tmp_path / "elsewhere").exists()


def test_a_disk_without_room_for_the_holder_frees_the_run_again(run, monkeypatch) -> None:
    def no_room(*arguments) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", no_room)
        with pytest.raises(UserError) as caught, lock_run(run):
            pass
    assert caught.value.code == ExitCode.NO_ROOM
    with lock_run(run) as note:
        assert note == ""


def test_a_training_keeps_others_from_training_and_lets_them_edit_in_between(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert not is_training(run)
    with lock_training(run):
        assert is_training(run)
        with pytest.raises(UserError, match="in use") as caught, lock_training(run):
            pass
        assert caught.value.code == ExitCode.LOCKED
        with lock_run(run):
            pass
    assert not is_training(run)


def test_a_writer_waits_for_a_training_and_for_nobody_else(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    taken, done = threading.Event(), []

    def bake() -> None:
        with lock_run(run):
            taken.set()
            time.sleep(0.3)
            done.append("baked")

    with lock_training(run):
        baking = threading.Thread(target=bake)
        baking.start()
        taken.wait(10)
        with lock_run(run, patience_s=30.0):
            assert done == ["baked"]
        baking.join()
    with lock_run(run), pytest.raises(UserError, match="in use"), lock_run(run, patience_s=30.0):
        pass
