"""What made a file, in words that go into its metadata: program, run, source and edits; no path of the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence

from neural_fields import __version__
from neural_fields.edits import Edit
from neural_fields.files import read_json
from neural_fields.fit_record import read_fit_record
from neural_fields.run import Run

SOFTWARE = f"unwrap {__version__}"


def provenance(run: Run, what: str, edits: Sequence[Edit] = (), **more: object) -> dict[str, str]:
    """Metadata of a file: "software", and as "comment" one JSON object.

    Args:
        what: what the file shows, such as "edit" or "stmap".
        edits: those that went into it.
        more: further plain facts, such as a layer or a frame.
    """
    record = read_fit_record(run)
    made = {
        "what": what,
        "run": run.path.name,
        "source_sha256": record.sha256,
        "edits": [_edit(edit) for edit in edits],
        **more,
    }
    return {"software": SOFTWARE, "comment": json.dumps({"unwrap": __version__, **made}, sort_keys=True)}


def _edit(edit: Edit) -> dict[str, object]:
    facts = read_json(edit.folder / "edit.json")
    files = [entry["sha256"] for entry in facts.get("layers", {}).values()]
    return {"edit": edit.folder.name, "editor": facts.get("editor"), "sha256": files}
