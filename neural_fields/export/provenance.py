"""What made a file, in words that go into its metadata: program, run, source and edits.

Names of files and their hashes only: no folder of the machine, and nothing of who sits at it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from neural_fields import __version__
from neural_fields.edits import Edit
from neural_fields.fit_record import read_fit_record
from neural_fields.run import Run

SOFTWARE = f"unwrap {__version__}"
WITH_FILES = ("layers", "shapes", "moving", "masks")  # what edit.json has hashes of, by layer


def provenance(run: Run, what: str, edits: Sequence[Edit] = (), **more: object) -> dict[str, str]:
    """Metadata of a file: "software", and as "comment" one JSON object.

    Args:
        what: what the file shows, such as "edit" or "stmap".
        edits: those that went into it.
        more: further plain facts, such as a layer or a frame.
    """
    record = read_fit_record(run)
    made = {
        "unwrap": __version__,
        "what": what,
        "run": run.path.absolute().name,
        "preset": record.preset,
        "source": record.video.name,
        "source_sha256": record.sha256,
        "edits": [_edit(edit) for edit in edits],
    }
    return {"software": SOFTWARE, "comment": json.dumps({**made, **more}, sort_keys=True)}


def _edit(edit: Edit) -> dict[str, object]:
    """An edit by its name, its editor, and the hashes of its files."""
    entries = [entry for kind in WITH_FILES for entry in edit.facts.get(kind, {}).values()]
    if "weights" in edit.facts:
        entries.append(edit.facts["weights"])
    editor = edit.facts.get("editor")
    return {"edit": edit.folder.name, "editor": editor, "sha256": [entry["sha256"] for entry in entries]}
