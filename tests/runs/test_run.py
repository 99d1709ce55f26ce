"""A run's folder, its run.yaml and its metrics: what is not ours is refused, and said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.open_runs.opening import open_run
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run, append_metrics, read_metrics, read_run_yaml, write_run_yaml


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a run.yaml and a folder of checkpoints."""
    run = Run.create(tmp_path / "run")
    write_run_yaml(run, {"preset": "atlas"})
    run.checkpoints.mkdir()
    return run


def test_metrics_survive_a_torn_line(tmp_path) -> None:
    run = Run(tmp_path)
    assert read_metrics(run) == []
    append_metrics(run, {"step": 1, "loss": float("nan")})
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert read_metrics(run) == [{"step": 1, "loss": None}]
    append_metrics(run, {"step": 3, "loss": 0.5})
    assert read_metrics(run) == [{"step": 1, "loss": None}, {"step": 3, "loss": 0.5}]


def test_run_yaml_comes_back_equal_and_never_uses_aliases(tmp_path) -> None:
    shared = [1, 2.5e-7, "no", "0:50", None, float("inf")]
    write_run_yaml(Run(tmp_path), {"a": shared, "b": shared, "path": Path("x.mp4"), "ü": {"t": (1, 2)}})
    read = read_run_yaml(Run(tmp_path))
    assert read["schema"] == 1 and read["version"]
    assert {key: read[key] for key in ("a", "b", "path", "ü")} == {
        "a": shared, "b": shared, "path": "x.mp4", "ü": {"t": [1, 2]}
    }  # fmt: skip


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("schema: !!python/object/apply:os.system ['touch canary']", ExitCode.UNSAFE_FILE),
        ("schema: 1\nx: !!python/name:os.system", ExitCode.UNSAFE_FILE),
        ("schema: 1\n" + BOMB, ExitCode.DAMAGED_RUN),
        ("schema: 1\nx: " + "y" * (1 << 20), ExitCode.DAMAGED_RUN),
        ("schema: 1\nx: " + "[" * 5000, ExitCode.DAMAGED_RUN),
        ("schema: " + "9" * 5000, ExitCode.DAMAGED_RUN),
        ("schema: [", ExitCode.DAMAGED_RUN),
        ("", ExitCode.DAMAGED_RUN),
        ("- 1", ExitCode.DAMAGED_RUN),
        ("schema: 999", ExitCode.DAMAGED_RUN),
        ("schema: one", ExitCode.DAMAGED_RUN),
        (None, ExitCode.DAMAGED_RUN),
    ],
)
def test_a_run_yaml_that_cannot_be_trusted_is_refused(run, text, code, monkeypatch) -> None:
    monkeypatch.chdir(run.path)
    run.run_yaml.unlink()
    if text is not None:
        run.run_yaml.write_text(text)
    with pytest.raises(UserError) as caught:
        open_run(run.path)
    assert caught.value.code == code and "run.yaml" in str(caught.value) and caught.value.fix
    assert not (run.path / "canary").exists()


def test_opening_what_is_no_run_says_how_to_make_one(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UserError) as caught:
            Run.open(path)
        assert caught.value.code == ExitCode.BAD_INPUT and "unwrap train" in caught.value.fix


def test_a_folder_of_somebody_else_does_not_become_a_run(run, tmp_path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    for path in (tmp_path, tmp_path / "holiday.jpg"):
        with pytest.raises(UserError) as caught:
            Run.create(path)
        assert caught.value.code == ExitCode.BAD_INPUT
    assert Run.create(run.path) == run, "a run may be continued"
    begun = tmp_path / "begun"
    with lock_run(Run(begun)):
        assert Run.create(begun).path == begun, "nor does a creation that was interrupted stand in the way"
