"""The process that renders a part of a video for another process: `python -m neural_fields.cli.render_part`.

Its argument is a JSON object: "run" and "out" (paths), "edits" (their names), and "options" of `unwrap render` that
differ from their defaults. On stdout it writes JSON objects, one a line: how many frames are done, and at the end which
of them the edits changed, or the error.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress
from neural_fields.core.threads import prepare_threads


def main() -> int:
    """Renders the part that the first argument describes; returns the exit code."""
    prepare_threads()
    logging.disable(logging.WARNING)  # the process that joins the parts has said it
    request = json.loads(sys.argv[1])
    from neural_fields.open_runs.opening import require_planar
    from neural_fields.rendering.options import RenderOptions
    from neural_fields.rendering.render_planar import render_edited_frames

    def tell(**values: object) -> None:
        print(json.dumps(values), flush=True)

    def report(progress: Progress) -> None:
        tell(done=progress.done, total=progress.total)

    options = RenderOptions(**{**request["options"], "out": Path(request["out"]), "edits": tuple(request["edits"])})
    try:
        _, changed = render_edited_frames(require_planar(Path(request["run"]), "this rendering"), options, report)
    except UserError as error:
        tell(code=int(error.code), what=error.what, where=error.where, why=error.why, fix=error.fix)
        return int(error.code)
    tell(changed=changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
