"""`unwrap watch`: what is painted is shown on a frame of the video as soon as it is saved.

Programs save in three ways: in place, by a new file that takes the old one's name, and with a backup. A watch on the
file itself hears only the first, so the folder is watched. What is heard only wakes the loop, which then looks at the
files: where a volume does not tell of changes, they are seen half a second later. A file is read when it has been still
for a moment, and one that cannot be read may not be complete yet.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from editors.carry import carry
from editors.preview import SIZE, Easel, Frame, open_easel, stamp_of, write_page, write_preview
from editors.watched import (
    DOCUMENTS,
    ELSEWHERE,
    GIVE_UP,
    GONE,
    PATIENCE,
    PICTURES,
    Incomplete,
    Stat,
    Watched,
    given_file,
    is_watched,
    layer_of,
)
from neural_fields.canonical import Overlay
from neural_fields.errors import UserError
from neural_fields.run import Run

BUSY, IDLE = 0.02, 0.5  # seconds between two looks at the files

Kind = Literal["start", "painted", "no change", "removed", "edits", "carried", "hint", "waiting", "error", "end"]


@dataclass(frozen=True)
class Update:
    """Something that happened while watching.

    Attributes:
        kind: "painted", "no change" and "removed" tell of a picture, "carried" of all parts of a layer that shows them
            later; with "start" and "edits" (the stack changed) the preview is new too. "hint", "waiting" and "error"
            leave it as it is; "end" is the last one.
        picture: the file it is about.
        layers: those that the preview shows painted.
        seconds: from the save to the preview.
        stages: of these seconds, by what they were spent on.
        notes: what the user should know; with "end" commands that make edits of what was painted.
        error: what is wrong.
    """

    kind: Kind
    picture: Path | None = None
    layers: tuple[str, ...] = ()
    seconds: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: UserError | None = None

    def to_json(self) -> dict[str, Any]:
        """The update in the words of JSON."""
        problem = self.error
        names = ("what", "where", "why", "fix")
        return {
            "event": self.kind,
            "picture": None if self.picture is None else str(self.picture),
            "layers": list(self.layers),
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "stages": {name: round(value, 3) for name, value in self.stages.items()},
            "notes": list(self.notes),
            "error": None if problem is None else {name: getattr(problem, name) for name in names},
        }

    def lines(self) -> list[str]:
        """The update in lines for a person."""
        name = "" if self.picture is None else self.picture.name
        took = "" if self.seconds is None else f" after {self.seconds:.2f} s"
        if self.error is not None:
            return ["; ".join(part for part in (f"error: {self.error.what}", self.error.why, self.error.fix) if part)]
        if self.kind == "end":
            return ["stopped watching; nothing was added to the edits", *(f"next: {note}" for note in self.notes)]
        said = {
            "start": f"watching; painted so far: {', '.join(self.layers) or 'nothing'}",
            "painted": f"{name}: shown{took}",
            "no change": f"{name}: nothing on it that the video does not show already{took}",
            "removed": f"{name}: removed",
            "edits": "the edits of the run, or its fit, changed: shown",
            "carried": f"shown in all parts of its layer{took}",
            "waiting": f"{name}: waiting for the save to finish",
        }
        return [*([said[self.kind]] if self.kind in said else []), *(f"note: {note}" for note in self.notes)]


def watch(
    run: Run | str | Path,
    *,
    frames: Sequence[int] = (),
    pictures: Sequence[str | Path] = (),
    size: int = SIZE,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Update]:
    """Shows what is painted in `previews/watch.jpg` of a run, and in the page beside it, until it is told to stop.

    Watched are the pictures in `canonical/` that begin with the name of a layer, and the layered documents there. The
    picture that was saved last is the one of its layer. Nothing is added to the run's edits.

    Args:
        frames: numbers of frames of the source to show side by side; by default the middle one.
        pictures: more files to watch, "[LAYER=]FILE"; the layer is that of the file's name by default.
        size: pixels of the longer side of each frame.
        stop: asked twice a second, and more often while something is saved.

    Raises:
        UserError: what cannot be watched (exit 3), a damaged run (5). What is wrong with a picture is an update.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    session = _Session(run, frames, size, open_easel(run, frames, size))
    session.given = dict(given_file(text, session.easel.maps.layers) for text in pictures)
    folders = [session.folder, *(path.parent for path in session.given)]
    with _woken(list(dict.fromkeys(folders))) as wake, ThreadPoolExecutor(1) as session.workers:
        yield session.start()
        while not stop():
            wake.wait(BUSY if session.is_busy else IDLE)
            wake.clear()
            yield from session.look()
        if session.carrying is not None:
            session.carrying.cancel()
        yield session.update("end", notes=session.commands())


class _Session:
    """What is watched and shown."""

    workers: ThreadPoolExecutor

    def __init__(self, run: Run, frames: Sequence[int], size: int, easel: Easel) -> None:
        self.run = run
        self.folder = Path(os.path.abspath(run.canonical))
        self.frames = frames
        self.size = size
        self.easel = easel
        self.given: dict[Path, str | None] = {}
        self.files: dict[Path, Watched] = {}
        self.painted: dict[str, tuple[Path, Overlay]] = {}
        self.stamp = stamp_of(run, easel.maps.layers)
        self.is_whole = True  # the run can be read as it is
        self.carrying: Future[tuple[dict[str, Overlay], list[str]]] | None = None
        self.saved = 0.0
        self.notes: set[str] = set()  # those that were said
        self.hinted: set[Path] = set()  # pictures of which a hint was given

    @property
    def is_busy(self) -> bool:
        return self.carrying is not None or any(file.is_new for file in self.files.values())

    @property
    def overlays(self) -> dict[str, Overlay]:
        return {layer: overlay for layer, (_, overlay) in self.painted.items()}

    def update(self, kind: Kind, picture: Path | None = None, **more: Any) -> Update:
        """An update; notes are given once."""
        notes = tuple(note for note in dict.fromkeys(more.pop("notes", ())) if note not in self.notes)
        self.notes.update(notes)
        return Update(kind, picture, tuple(self.painted), notes=notes, **more)

    def start(self) -> Update:
        """Shows what is painted already."""
        write_page(self.run)
        notes = self._take_all()
        write_preview(self.run, self.easel.picture(self.overlays))
        self._carry()
        return self.update("start", notes=notes)

    def look(self) -> Iterator[Update]:
        """Looks at everything once, and shows what is new."""
        if (stamp := stamp_of(self.run, self.easel.maps.layers)) != self.stamp:
            yield from self._renew(stamp)
        if not self.is_whole:
            return
        now = time.monotonic()
        self._find(now)
        for file in sorted(self.files.values(), key=lambda file: file.stat[1] if file.stat else 0):
            if file.is_new:
                yield from self._attend(file, now)
        if self.carrying is not None and self.carrying.done():
            yield from self._carried(self.carrying)

    def commands(self) -> list[str]:
        """What makes edits of the pictures that are shown."""
        run = shlex.quote(str(self.run.path))
        return [
            f"unwrap edit {run} {shlex.quote(str(path))} --layer {layer}" for layer, (path, _) in self.painted.items()
        ]

    def _find(self, now: float) -> None:
        """Looks at all files, new ones too."""
        found = set(self.files) | set(self.given)
        with suppress(OSError), os.scandir(self.folder) as entries:
            found |= {self.folder / entry.name for entry in entries if is_watched(entry.name)}
        for path in found:
            self.files.setdefault(path, Watched(path)).observe(now)

    def _take_all(self) -> list[str]:
        """Takes all files that can be read, the one saved last at the end; gives notes."""
        self._find(time.monotonic())
        notes: list[str] = []
        for file in sorted(self.files.values(), key=lambda file: file.stat[1] if file.stat else 0):
            file.done = None
            known = file.stat is not None and self._belongs(file.path)
            with suppress(Incomplete, UserError):  # then it is looked at again, and said
                notes += self._take(file)[1] if known else ()
                file.done = file.stat
        return notes

    def _renew(self, stamp: tuple[Stat | None, ...]) -> Iterator[Update]:
        """Reads the run again after its edits, maps or exported pictures changed."""
        self.stamp = stamp
        try:
            self.easel = open_easel(self.run, self.frames, self.size)
            self.is_whole = True
        except UserError as error:  # such as a fit that goes on and bakes just now; then the stamp changes again
            self.is_whole = False
            yield self.update("error", error=error)
            return
        self.painted = {}
        notes = self._take_all()
        write_preview(self.run, self.easel.picture(self.overlays))
        self._carry()
        yield self.update("edits", notes=notes)

    def _attend(self, file: Watched, now: float) -> Iterator[Update]:
        """Takes a file that changed, if it is ready."""
        if file.stat is None:
            if now - file.since >= GONE:
                yield from self._removed(file)
            return
        if not self._belongs(file.path):
            file.done = file.stat
            yield from self._stranger(file.path)
            return
        if file.failed is None and file.is_still(now):
            try:
                yield from self._show(file)
                return
            except Incomplete as problem:
                file.failed = problem.error
            except UserError as error:
                file.done = file.stat
                yield self.update("error", file.path, error=error)
                return
        if file.failed is not None and now - file.since >= GIVE_UP:
            file.done = file.stat
            yield self.update("error", file.path, error=file.failed)
        elif now - file.begun >= PATIENCE and not file.told:
            file.told = True
            yield self.update("waiting", file.path)

    def _show(self, file: Watched) -> Iterator[Update]:
        """Takes a file and renews the preview."""
        stat, saved, times = file.stat, file.saved(), [time.time()]
        kind, notes = self._take(file)
        times.append(time.time())
        picture = self.easel.picture(self.overlays)
        times.append(time.time())
        write_preview(self.run, picture)
        times.append(time.time())
        stages = {"settle": times[0] - saved, "read": times[1] - times[0], "render": times[2] - times[1]}
        stages["write"] = times[3] - times[2]
        self.saved, file.done = saved, stat
        yield self.update(kind, file.path, seconds=times[3] - saved, stages=stages, notes=notes)
        self._carry()
        if kind == "painted" and file.path not in self.hinted:
            yield from self._hint(file.path, picture)

    def _hint(self, path: Path, picture: Frame) -> Iterator[Update]:
        """Says once which frame shows what was painted, if the preview does not."""
        own = {layer: overlay for layer, (known, overlay) in self.painted.items() if known == path}
        others = {layer: overlay for layer, overlay in self.overlays.items() if layer not in own}
        if not np.array_equal(picture, self.easel.picture(others)):
            return
        self.hinted.add(path)
        number = self.easel.best_frame(own)
        text = "no frame of the video shows the place that was painted"
        if number is not None:
            shown = ", ".join(str(shot.number) for shot in self.easel.shots)
            text = f"the place that was painted is not seen in frame {shown}: unwrap watch --frame {number} shows it"
        yield self.update("hint", path, notes=[text])

    def _take(self, file: Watched) -> tuple[Kind, Sequence[str]]:
        """Reads a file and keeps what was painted; the notes are of the picture.

        Raises:
            Incomplete: it cannot be read.
            UserError: it can, but does not fit.
        """
        path = file.path
        found = self.easel.overlays(path, self._layer(path))
        before = [layer for layer, (known, _) in self.painted.items() if known == path]
        for layer in before:
            del self.painted[layer]
        self.painted |= {layer: (path, overlay) for layer, overlay in found.items()}
        notes = [note for overlay in found.values() for note in overlay.notes]
        return ("painted" if found else "no change"), notes

    def _removed(self, file: Watched) -> Iterator[Update]:
        file.done = None
        shown = [layer for layer, (path, _) in self.painted.items() if path == file.path]
        for layer in shown:
            del self.painted[layer]
        if file.path not in self.given:
            del self.files[file.path]
        if shown:
            write_preview(self.run, self.easel.picture(self.overlays))
        yield self.update("removed", file.path)

    def _layer(self, path: Path) -> str | None:
        """The layer of a file as the user says, or else as its name does; a document tells its own."""
        named = None if path.suffix.lower() in DOCUMENTS else layer_of(path.name, self.easel.maps.layers)
        return self.given.get(path) or named

    def _belongs(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        return suffix in DOCUMENTS or (suffix in PICTURES and self._layer(path) is not None)

    def _stranger(self, path: Path) -> Iterator[Update]:
        """Says once why a file is left alone."""
        layers = ", ".join(self.easel.maps.layers)
        text = f"{path.name} belongs to no layer: begin its name with one of {layers}"
        if path.suffix.lower() in ELSEWHERE:
            text = f"{path.name} can be read by its own program only: export it as .ora or .png"
        if path not in self.hinted:
            self.hinted.add(path)
            yield self.update("hint", path, notes=[text])

    def _carry(self) -> None:
        """Begins to carry what was painted to all parts of its layers, beside everything else: it takes seconds."""
        if self.carrying is not None:
            self.carrying.cancel()
        wanted = bool(self.easel.maps.charts) and bool(self.painted)
        self.carrying = self.workers.submit(carry, self.run, self.easel.maps, self.overlays) if wanted else None

    def _carried(self, done: Future[tuple[dict[str, Overlay], list[str]]]) -> Iterator[Update]:
        """Shows what was carried."""
        self.carrying = None
        try:
            overlays, notes = done.result()
        except UserError as error:
            yield self.update("error", error=error)
            return
        write_preview(self.run, self.easel.picture(overlays))
        yield self.update("carried", seconds=time.time() - self.saved if self.saved else None, notes=notes)


@contextmanager
def _woken(folders: Sequence[Path]) -> Iterator[threading.Event]:
    """An event that is set when something in one of the folders changed."""
    from watchfiles import watch as changes

    wake, end = threading.Event(), threading.Event()

    def listen() -> None:
        try:
            for _ in changes(
                *folders,
                watch_filter=None,
                debounce=2 * int(1000 * BUSY),
                step=int(1000 * BUSY),
                rust_timeout=int(1000 * IDLE),
                stop_event=end,
                raise_interrupt=False,
                recursive=False,
            ):
                wake.set()
        except OSError:  # such as no more watches: then the files are looked at more often
            while not end.wait(5 * BUSY):
                wake.set()

    thread = threading.Thread(target=listen, name="watch", daemon=True)
    thread.start()
    try:
        yield wake
    finally:
        end.set()
        thread.join(2 * IDLE)
