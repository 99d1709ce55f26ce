"""The page that shows the preview: pictures of frames, a line of status, and a choice of frames.

It is read from the disk, without a server: the page loads a small script again and again, which says what is new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from neural_fields.core.files import atomic_write, make_folder, temporary_path
from neural_fields.core.html_pages import render_html
from neural_fields.runs.run import Run

PAGE_FILE, STATE_FILE = "watch.html", "watch-state.js"


@dataclass(frozen=True)
class ShownFrame:
    """Describes a frame that the page can show.

    Attributes:
        number: number of the frame in the source.
        file: its picture, relative to the page.
        version: counts how often the picture was written; 0 if it is not there yet.
        asked: whether it was asked for by `--frame`, or is the frame in the middle; such frames are shown at first.
    """

    number: int
    file: str
    version: int
    asked: bool


@dataclass(frozen=True)
class PageState:
    """Holds what the page shows beside the pictures.

    Attributes:
        lines: the last update, in words.
        kind: "watching", "error" while the last save cannot be used, or "ended".
        frames: all frames of the choice, in the order of their numbers.
    """

    lines: Sequence[str]
    kind: str
    frames: Sequence[ShownFrame]


def write_page(run: Run, command: str) -> Path:
    """Writes the page, which needs neither a network nor a server; returns its path.

    Args:
        run: the run.
        command: the command that watches it, for a page whose watch has ended.
    """
    path = run.previews / PAGE_FILE
    make_folder(path.parent)
    page = render_html(Path(__file__).with_name("watch.html.j2"), state=STATE_FILE, run=run.path.name, command=command)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace")
    return path


def write_state(run: Run, state: PageState) -> None:
    """Writes what the page shows. The time in it tells the page that the watch still runs.

    Like the preview it is not flushed to the disk, which would take longer than the rest.
    """
    text = json.dumps({**asdict(state), "time": round(1000 * time.time())})
    path = run.previews / STATE_FILE
    with temporary_path(path.parent, ".js") as part:
        part.write_text(f"showState({text});\n", encoding="utf-8")
        part.replace(path)
