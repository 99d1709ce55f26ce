"""Provenance of a written file, for its metadata: program, run, source and edits.

It has names of files and their hashes only: no folder of the machine, and nothing about its user.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from neural_fields.core.version import __version__
from neural_fields.edits.read_stack import Edit
from neural_fields.open_runs.planar_run import PlanarRun

SOFTWARE = f"unwrap {__version__}"


def build_provenance(run: PlanarRun, what: str, edits: Sequence[Edit] = (), **more: object) -> dict[str, str]:
    """Builds the metadata of a file: "software", and as "comment" one JSON object.

    Args:
        run: the run that the file was made from.
        what: the content of the file, such as "edit" or "stmap".
        edits: the edits that the file shows.
        more: further plain values, such as a layer or a frame.

    Returns:
        The two texts by name.
    """
    described = []
    for edit in edits:
        hashes = [file.sha256 for file in edit.record.files]
        described.append({"edit": edit.folder.name, "editor": edit.record.origin.editor, "sha256": hashes})
    made = {
        "unwrap": __version__,
        "what": what,
        "run": run.path.absolute().name,
        "preset": run.record.preset,
        "source": run.record.video.name,
        "source_sha256": run.record.sha256,
        "edits": described,
    }
    return {"software": SOFTWARE, "comment": json.dumps({**made, **more}, sort_keys=True)}
