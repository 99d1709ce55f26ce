"""Saving: whatever happens, the old or the new checkpoint is on the disk, and damage never passes for a checkpoint."""

from __future__ import annotations

import copy
import errno
import os
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_fields.core import files
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import write_json
from neural_fields.runs import checkpoints
from neural_fields.runs.checkpoints import load_latest_checkpoint, save_checkpoint
from neural_fields.runs.run import Run, read_metrics, write_run_yaml

CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")
FILES = ("model.safetensors", "state.safetensors", "manifest.json")


def save(run: Run, step: int) -> Path:
    model = {"table": np.full((40, 2), step, np.float32), "empty": np.zeros((0, 3), np.float32)}
    return save_checkpoint(run, step, model, {"moment": np.arange(9) * step}, {"threads": 1, "psnr": 20.5})


def load(run: Run) -> tuple[int, tuple[str, ...]]:
    """Step and warnings of the latest checkpoint, whose contents are checked against its step."""
    found = load_latest_checkpoint(run, "numpy")
    assert found is not None
    assert np.array_equal(found.model["table"], np.full((40, 2), found.step)) and found.model["empty"].shape == (0, 3)
    assert np.array_equal(found.state["moment"], np.arange(9) * found.step)
    assert found.metadata == {"threads": 1, "psnr": 20.5}
    return found.step, found.warnings


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with checkpoints of the steps 1 and 2."""
    run = Run.create(tmp_path / "run")
    write_run_yaml(run, {"preset": "atlas"})
    for step in (1, 2):
        save(run, step)
    return run


# --- kill, power cut, full disk ---------------------------------------------------------------------------------------

# One process that forks: each child does a job and is killed just before its k-th call of the system, or half-way
# through it if that is a write. It prints how many calls the job has, or stops at the first k that is never reached.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
from neural_fields.core import files
from neural_fields.runs.checkpoints import load_latest_checkpoint, save_checkpoint
from neural_fields.runs.run import Run, append_metrics
files.WRITE_CHUNK_BYTES = 256
calls = {calls!r}

def arm(k):
    left = [k]
    def wrap(name, real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in calls:
        setattr(os, name, wrap(name, getattr(os, name)))

def killed(job, k):
    pid = os.fork()
    if pid == 0:
        arm(k)
        job()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
{job}
"""


def run_killer(job: str, *arguments: object) -> str:
    script = KILLER.format(calls=CALLS, job=job)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint(run: Run) -> None:
    job = """
base, k = Path(sys.argv[1]), 1
def job():
    model = {"table": np.full((40, 2), 3, np.float32), "empty": np.zeros((0, 3), np.float32)}
    save_checkpoint(Run(copy), 3, model, {"moment": np.arange(9) * 3}, {"threads": 1, "psnr": 20.5})
while True:
    copy = base.with_name(f"killed-{k}")
    shutil.copytree(base, copy)
    if not killed(job, k):
        break
    k += 1
print(k)
"""
    count = int(run_killer(job, run.path))
    assert count > 30
    found = []
    for k in range(1, count + 1):
        victim = Run(run.path.with_name(f"killed-{k}"))
        step, warnings = load(victim)
        assert not warnings
        found.append(step)
        save(victim, 4)
        assert load(victim) == (4, ())
        assert len(names(victim.checkpoints)) == 2, "no litter, and two checkpoints"
    assert found == sorted(found) and set(found) == {2, 3}


def test_a_training_killed_again_and_again_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    job = """
def fit():
    run = Run.create(target)
    found = load_latest_checkpoint(run, "numpy")
    step, x, m = (found.step, found.model["x"], found.state["m"]) if found else (0, np.zeros(50), np.zeros(50))
    while step < 12:
        noise = np.random.default_rng([7, step]).normal(size=50)
        m = 0.9 * m + x - noise
        x = x - 0.1 * m
        step += 1
        append_metrics(run, {"step": step, "x": x[0]})
        if step % 3 == 0:
            save_checkpoint(run, step, {"x": x}, {"m": m}, {})
kills = 0
for index, k in enumerate([10**9, 3, 29, 47, 58, 73]):
    target = Path(sys.argv[1]) / str(index)
    while killed(fit, k):
        kills += 1
        k += 5
    print(index, load_latest_checkpoint(Run(target), "numpy").model["x"].tobytes().hex())
assert kills > 15, kills
"""
    lines = [line.split() for line in run_killer(job, tmp_path).splitlines()]
    assert len(lines) == 6 and len({bits for _, bits in lines}) == 1
    steps = [record["step"] for record in read_metrics(Run(tmp_path / "5"))]
    assert set(steps) == set(range(1, 13))


class Disk:
    """What a disk would hold after a power cut: names and bytes of which only the flushed ones are sure."""

    class File:
        live, safe = b"", b""

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, self._read(root)
        self.open: dict[Any, Any] = {}  # what lies behind a file descriptor
        self.log: list[tuple[str, Any]] = []

    def _read(self, path: Path) -> dict | Disk.File:
        if path.is_dir():
            children = {child.name: self._read(child) for child in path.iterdir()}
            return {"live": children, "safe": dict(children)}
        file = Disk.File()
        file.live = file.safe = path.read_bytes()
        return file

    def find(self, path: object, dir_fd: int | None = None) -> tuple[dict, str]:
        """The names in the folder that holds `path`, and the last part of `path`."""
        if dir_fd is not None:
            return self.open[dir_fd]["live"], str(path)
        node: Any = {"live": {"": self.tree}}
        *folders, name = ("", *Path(str(path)).relative_to(self.root).parts)
        for folder in folders:
            node = node["live"][folder]
        return node["live"], name

    def record(self, call: str, args: tuple, kwargs: dict, result: Any) -> None:
        self.log.append((call, args[0] if call != "fsync" else self.open[args[0]]))
        if call == "open":
            entries, name = self.find(args[0], kwargs.get("dir_fd"))
            self.open[result] = entries.setdefault(name, Disk.File())
        elif call == "mkdir":
            entries, name = self.find(args[0])
            entries[name] = {"live": {}, "safe": {}}
        elif call == "write":
            self.open[args[0]].live += bytes(args[1])[:result]
        elif call == "fsync":
            node = self.open[args[0]]
            if isinstance(node, dict):
                node["safe"] = dict(node["live"])
            else:
                node.safe = node.live
        elif call in ("rename", "replace"):
            source, name = self.find(args[0])
            target, new_name = self.find(args[1])
            target[new_name] = source.pop(name)
        elif call in ("unlink", "rmdir"):
            entries, name = self.find(args[0], kwargs.get("dir_fd"))
            del entries[name]

    def after_power_cut(self, path: Path, chance: random.Random, node: dict | Disk.File | None = None) -> None:
        """Writes to `path` one of the states that the disk may be in."""
        node = node or self.tree
        if isinstance(node, dict):
            path.mkdir()
            for name, child in node[chance.choice(["live", "safe"])].items():
                self.after_power_cut(path / name, chance, child)
            return
        zeros = node.safe + bytes(len(node.live) - len(node.safe))
        torn = node.live[: max(len(node.safe), len(node.live) // 2)]
        path.write_bytes(chance.choice([node.safe, node.live, zeros, torn]))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, before: object, after: object):
    """Calls `before(name, args)` and `after(name, args, kwargs, result)` around every call of the system."""

    def wrap(name, real):
        def call(*args, **kwargs):
            before(name, args)
            result = real(*args, **kwargs)
            after(name, args, kwargs, result)
            return result

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield


def test_a_power_cut_at_any_moment_of_a_save_leaves_a_whole_checkpoint(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "WRITE_CHUNK_BYTES", 256)
    disk, chance, states = Disk(run.path), random.Random(1), []

    def after(*call) -> None:
        disk.record(*call)
        states.append(copy.deepcopy(disk.tree))

    with watched(monkeypatch, lambda *call: None, after):
        save(run, 3)
    steps = set()
    for number, tree in enumerate(states * 6):
        disk.after_power_cut(tmp_path / str(number), chance, tree)
        step, warnings = load(Run(tmp_path / str(number)))
        assert not warnings
        steps.add(step)
    assert len(states) > 25 and steps == {2, 3}


def test_bytes_are_flushed_before_they_get_their_name_and_old_ones_go_last(run, monkeypatch) -> None:
    disk = Disk(run.path)
    with watched(monkeypatch, lambda *call: None, disk.record):
        save(run, 3)
    calls = [name for name, _ in disk.log if name in ("write", "fsync", "rename", "unlink", "rmdir")]
    one_file = ["write", "fsync"]
    assert calls == [*one_file * 3, "fsync", "rename", "fsync", "rename", *["unlink"] * 3, "rmdir"]
    with watched(monkeypatch, lambda *call: None, disk.record):
        disk.log.clear()
        write_json(run.source_json, {"a": 1})
    assert [name for name, _ in disk.log if name in ("write", "fsync", "replace")][-3:] == ["fsync", "replace", "fsync"]


def fail_at(k: int, code: int, calls: tuple[str, ...]):
    """Raises the error `code` at the k-th of `calls`, and at every write after it, as a full disk does."""
    seen = []

    def before(name: str, args: tuple) -> None:
        if name in calls:
            seen.append(name)
        if len(seen) == k or (len(seen) > k and name == "write"):
            seen.append("failed")
            raise OSError(code, os.strerror(code))

    return before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_moment_of_a_save_is_told_and_loses_nothing(run, monkeypatch, code) -> None:
    monkeypatch.setattr(files, "WRITE_CHUNK_BYTES", 256)
    for k in range(1, 100):
        try:
            with watched(
                monkeypatch, fail_at(k, code, ("open", "write", "fsync", "mkdir", "rename")), lambda *call: None
            ):
                save(run, 3)
        except UserError as error:
            assert error.code == ExitCode.NO_ROOM and "bytes are needed" in error.why and "are free" in error.why
            step, warnings = load(run)
            assert not warnings
            if step == 3:  # it had its name already; only what follows failed
                shutil.rmtree(run.checkpoints / "000003")
            else:
                assert names(run.checkpoints) == ["000001", "000002"]
        else:
            break
    assert k > 15 and load(run) == (3, ())


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EXDEV])
def test_no_error_of_the_disk_passes_for_success(run, monkeypatch, code) -> None:
    for k in range(1, 12):
        before = fail_at(k, code, ("open", "write", "fsync", "mkdir", "rename"))
        with pytest.raises((UserError, OSError)), watched(monkeypatch, before, lambda *call: None):
            save(run, 3)
        assert load(run) == (2, ())


# --- damage -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(name=st.sampled_from(FILES[:2]), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_noticed_and_the_previous_checkpoint_used(two_checkpoints, name, where, bit) -> None:
    path = two_checkpoints.checkpoints / "000002" / name
    sound = path.read_bytes()
    path.write_bytes(flipped(sound, int(where * len(sound)), bit))
    try:
        step, warnings = load(two_checkpoints)
    finally:
        path.write_bytes(sound)
    assert step == 1 and len(warnings) == 1 and "000002" in warnings[0] and "000001" in warnings[0]


def test_a_flipped_bit_anywhere_in_a_manifest_never_changes_what_is_loaded(two_checkpoints) -> None:
    path = two_checkpoints.checkpoints / "000002" / "manifest.json"
    sound = path.read_bytes()
    steps = []
    for place in range(len(sound)):
        path.write_bytes(flipped(sound, place, place % 3))
        steps.append(load(two_checkpoints)[0])
    path.write_bytes(sound)
    assert steps.count(2) == 0, "no such flip leaves the meaning as it was"


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """`data` with one bit changed."""
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("bits") / "run")
    for step in (1, 2):
        save(run, step)
    return run


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    forms = {"cut": data[: len(data) // 2], "longer": data + b"x", "zeroed": bytes(len(data)), "empty": b""}
    forms |= {"other json": b"[1, 2]", "deep": b"[" * 100_000, "huge number": b"9" * 5000}
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(forms[how])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "how", ["cut", "longer", "zeroed", "empty", "other json", "deep", "huge number", "folder", "missing"]
)
def test_a_damaged_checkpoint_is_passed_over_and_the_next_save_puts_things_right(run, name, how) -> None:
    damage(run.checkpoints / "000002" / name, how)
    step, warnings = load(run)
    assert step == 1 and "000002" in warnings[0] and name in warnings[0].replace("Is a directory", name)
    if how != "folder":  # then there is something in it that we did not make
        save(run, 2)
        assert load(run)[0] == 2


def test_when_all_checkpoints_are_damaged_the_run_still_opens_and_says_so(run) -> None:
    for folder in run.checkpoints.iterdir():
        damage(folder / "model.safetensors", "cut")
    with pytest.raises(UserError, match="no checkpoint") as caught:
        load_latest_checkpoint(run, "numpy")
    assert caught.value.code == ExitCode.DAMAGED_RUN
    assert "000001" in caught.value.why and "000002" in caught.value.why and "unwrap train" in caught.value.fix
    assert Run.open(run.path) == run


def test_stray_files_are_neither_read_nor_removed(run) -> None:
    strays = [".DS_Store", "000002~", "step-abc", "latest", "2", ".000002.swp", "0000003", "000009.tmp", "٠٠٠٠٠٣"]
    for number, stray in enumerate(strays):
        path = run.checkpoints / stray
        path.mkdir() if number % 2 else path.write_bytes(b"\0")
    (run.checkpoints / "000009").symlink_to(run.path, target_is_directory=True)
    (run.checkpoints / "000001" / "my notes.txt").write_text("keep")
    save(run, 3)
    save(run, 4)
    assert load(run) == (4, ())
    assert names(run.checkpoints) == sorted([*strays, "000001", "000003", "000004", "000009"])


def test_the_newest_is_the_highest_step_not_the_last_name_or_time(run) -> None:
    for step in (999_999, 1_000_000):
        save(run, step)
    os.utime(run.checkpoints / "999999", (2e9, 2e9))
    assert load(run)[0] == 1_000_000 and names(run.checkpoints) == ["1000000", "999999"]


def test_a_step_saved_twice_leaves_the_later_one_in_charge(run) -> None:
    save_checkpoint(run, 2, {"x": np.ones(2)}, {}, {"again": float("nan")})
    found = load_latest_checkpoint(run, "numpy")
    assert found is not None and found.step == 2 and list(found.model) == ["x"] and found.metadata == {"again": None}
    assert names(run.checkpoints) == ["000002", "000002-2"]


def test_after_a_fallback_the_damaged_later_checkpoint_goes_and_a_whole_one_stays(run) -> None:
    for step in (7, 8):
        save(run, step)
    damage(run.checkpoints / "000008" / "state.safetensors", "cut")
    save(run, 5)
    assert names(run.checkpoints) == ["000005", "000007"]


def test_reading_while_another_process_saves_and_prunes_gives_the_newest(run, monkeypatch) -> None:
    verified, writes = checkpoints._verify_checkpoint, iter([3, 4])

    def verified_late(path, step):
        for written in writes:
            save(run, written)
        return verified(path, step)

    monkeypatch.setattr(checkpoints, "_verify_checkpoint", verified_late)
    assert load(run) == (4, ())


def test_what_was_loaded_stays_whole_when_its_checkpoint_is_pruned(run) -> None:
    torch = pytest.importorskip("torch")
    found = load_latest_checkpoint(run)
    assert found is not None
    for step in (3, 4):
        save(run, step)
    assert not found.path.exists()
    assert found.model["table"].equal(torch.full((40, 2), 2.0)) and found.state["moment"].equal(torch.arange(9) * 2)


def test_an_array_that_cannot_be_stored_is_refused_before_anything_is_written(run) -> None:
    with pytest.raises(ValueError, match="complex128"):
        save_checkpoint(run, 3, {"x": np.ones(2, complex)}, {}, {})
    assert load(run) == (2, ()) and names(run.checkpoints) == ["000001", "000002"]


def test_no_checkpoint_is_no_error(tmp_path) -> None:
    assert load_latest_checkpoint(Run(tmp_path)) is None
    (tmp_path / "checkpoints").mkdir()
    assert load_latest_checkpoint(Run(tmp_path)) is None


def test_tensors_come_back_bit_for_bit_however_they_lie_in_memory(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 8)
    model = {
        "shared": base,
        "same": base,
        "part": base[2:4],
        "turned": base.T,
        "strided": base[:, ::3],
        "expanded": base[:1].expand(5, 8),
        "half": base.to(torch.bfloat16),
        "parameter": torch.nn.Parameter(base.clone()),
        "random state": torch.get_rng_state(),
        "nan": torch.tensor([float("nan"), -0.0]),
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 4),
        "flags": base > 0,
    }
    save_checkpoint(Run(tmp_path), 500, model, {}, {})
    found = load_latest_checkpoint(Run(tmp_path))
    assert found is not None
    assert found.path.name == "000500" and found.model.keys() == model.keys() and found.state == {}
    for name, tensor in model.items():
        copied = found.model[name]
        assert copied.dtype == tensor.dtype and copied.shape == tensor.shape
        assert (
            copied.contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(tensor.detach().contiguous().view(-1).view(torch.uint8))
        )
        copied.zero_()  # they can be written to
