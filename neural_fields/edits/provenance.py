"""Provenance of a written file, for its metadata: program, run, source and edits.

Names of files and their hashes only: no folder of the machine, and nothing of who sits at it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from neural_fields.core.version import __version__
from neural_fields.edits.read_stack import Edit
from neural_fields.runs.planar_record import read_planar_record
from neural_fields.runs.run import Run

SOFTWARE = f"unwrap {__version__}"


def build_provenance(run: Run, what: str, edits: Sequence[Edit] = (), **more: object) -> dict[str, str]:
    """Builds the metadata of a file: "software", and as "comment" one JSON object.

    Args:
        run: that the file was made from.
        what: what the file shows, such as "edit" or "stmap".
        edits: those that went into it.
        more: further plain facts, such as a layer or a frame.
    """
    described = []
    for edit in edits:
        entries = []  # of edit.json, with hashes of files
        for kind in ("layers", "shapes", "moving", "masks"):
            entries += edit.spec.get(kind, {}).values()
        if "weights" in edit.spec:
            entries.append(edit.spec["weights"])
        hashes = [entry["sha256"] for entry in entries]
        described.append({"edit": edit.folder.name, "editor": edit.spec.get("editor"), "sha256": hashes})
    record = read_planar_record(run)
    made = {
        "unwrap": __version__,
        "what": what,
        "run": run.path.absolute().name,
        "preset": record.preset,
        "source": record.video.name,
        "source_sha256": record.sha256,
        "edits": described,
    }
    return {"software": SOFTWARE, "comment": json.dumps({**made, **more}, sort_keys=True)}
