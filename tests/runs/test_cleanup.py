"""What is removed of a run, and what stays."""

from __future__ import annotations

from pathlib import Path

from neural_fields.runs.cleanup import remove_clip_cache
from neural_fields.runs.run import Run


def test_a_finished_training_leaves_of_its_cache_what_was_found_of_objects(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    remove_clip_cache(run)  # there is none
    for name in ("frames-1.npy", "frames-1.json", "masks-1.npy", "mended-1-shares.npy", "CACHEDIR.TAG"):
        run.cache.mkdir(exist_ok=True)
        (run.cache / name).write_text("x")
    for name in ("flow-1", "objects"):
        (run.cache / name).mkdir()
        (run.cache / name / "file").write_text("x")
    remove_clip_cache(run)
    assert sorted(path.name for path in run.cache.iterdir()) == ["CACHEDIR.TAG", "objects"]
    assert (run.cache / "objects" / "file").is_file()

    (run.cache / "objects" / "file").unlink()
    (run.cache / "objects").rmdir()
    remove_clip_cache(run)
    assert not run.cache.exists()

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "frames-1.npy").write_text("x")
    run.cache.symlink_to(tmp_path / "elsewhere")
    remove_clip_cache(run)
    assert (tmp_path / "elsewhere" / "frames-1.npy").is_file()  # a cache on another disk is its owner's
