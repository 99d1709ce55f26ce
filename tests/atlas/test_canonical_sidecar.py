"""The metadata beside canonical pictures: written and read back; what is wrong in it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_fields.atlas.canonical import CanonicalImage, FrameCounts, export_canonical, read_pristine, read_sidecar
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError

BOX = Box(-1.0, -0.5, 1.0, 0.5)


def export(folder: Path, value: float = 1.0) -> None:
    seen = np.array([[0, 1, 2], [2, 3, 9]])
    export_canonical(folder, CanonicalImage(np.full((2, 3, 4), value, np.float32), BOX, "background"), seen)


def test_a_sidecar_lists_every_picture_that_was_written(tmp_path: Path) -> None:
    export(tmp_path)
    export(tmp_path, 0.5)
    export(tmp_path, 0.5)
    found = read_sidecar(tmp_path, "background")
    assert (found.layer, found.box, found.size) == ("background", BOX, (3, 2))
    assert found.frames_seen == FrameCounts(round(5 / 6, 6), 1, 2, 9)
    assert len(found.versions) == 2 and found.versions[-1].sha256 == found.sha256
    assert read_pristine(tmp_path, "background").box == BOX


def test_a_sidecar_is_written_with_the_keys_that_the_guide_names(tmp_path: Path) -> None:
    export(tmp_path)
    written = json.loads((tmp_path / "background.json").read_text())
    assert list(written) == ["version", "layer", "box", "size", "alpha", "frames_seen", "sha256", "versions"]
    assert written["box"] == [-1, -0.5, 1, 0.5] and written["alpha"] == "coverage, straight"
    assert list(written["versions"][0]) == ["sha256", "box", "size"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"box": [0, 0, 1]}, "box: expected 4 items, got 3"),
        ({"size": [3, "2"]}, "size[1]: expected a whole number, got '2'"),
        ({"versions": []}, "versions is empty"),
        ({"versions": [{"sha256": "x", "box": [0, 0, 1, 1]}]}, "versions[0].size: missing; expected a list of 2 items"),
        ({"version": 2}, "version: expected one of [1], got 2"),
        ({"frame_seen": None}, "frame_seen: unknown key; did you mean 'frames_seen'?"),
    ],
)
def test_what_is_wrong_in_a_sidecar_is_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    export(tmp_path)
    path = tmp_path / "background.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as caught:
        read_pristine(tmp_path, "background")
    assert caught.value.code == ExitCode.DAMAGED_RUN and caught.value.what == "background.json is damaged"
    assert caught.value.why.startswith(why) and str(path) in caught.value.fix
