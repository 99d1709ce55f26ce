"""`unwrap watch`: shows paint on a frame of the video as soon as the picture is saved.

Programs save in three ways: in place, by a new file that takes the name of the old one, and with a backup. A watch on
the file detects only the first, so the folder is watched. A notification only wakes the loop, which then checks the
files: on a volume without notifications, changes are seen half a second later. A file is read when it has not changed
for a moment; a file that cannot be read may be incomplete.
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

from editors.core.chart_propagation import carry_to_charts
from editors.inputs.file_kinds import DOCUMENT_SUFFIXES, PROGRAM_SUFFIXES
from editors.live.file_watching import (
    DEFAULTS,
    PICTURE_SUFFIXES,
    IncompleteFileError,
    Stat,
    WatchedFile,
    WatchSettings,
    find_file_layer,
    is_watched,
    parse_given_file,
    read_stat,
)
from editors.live.options import WatchOptions
from editors.live.page import PageState, ShownFrame, write_page, write_state
from editors.live.preview import PREVIEW_FILE, PreviewSession, open_preview, read_run_stamp, write_preview
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.placed_picture import Paint
from neural_fields.core.errors import UserError
from neural_fields.open_runs.opening import RunLike
from neural_fields.open_runs.planar_run import PlanarRun

Kind = Literal["start", "painted", "no change", "removed", "edits", "carried", "hint", "waiting", "error", "end"]


@dataclass(frozen=True)
class WatchUpdate:
    """Describes an event while watching.

    Attributes:
        kind: the kind of event. With "start", "edits" (the stack changed), "painted", "no change", "removed" (all three
            about a picture) and "carried" (paint was propagated to all charts) the preview is new. With "hint",
            "waiting" and "error" it is unchanged. "end" is the last event.
        picture: the file that the event is about.
        layers: layers that the preview shows painted.
        seconds: time from the save to the preview.
        stages: parts of this time, in seconds, by stage.
        notes: notes for the user; with "end", the commands that turn the paint into edits.
        error: the problem, with "error".
    """

    kind: Kind
    picture: Path | None = None
    layers: tuple[str, ...] = ()
    seconds: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: UserError | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the update as plain values for JSON."""
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

    def to_lines(self) -> list[str]:
        """Returns the update as lines of text."""
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
            "edits": "the edits of the run, or its maps, changed: shown",
            "carried": f"shown in all parts of its layer{took}",
            "waiting": f"{name}: waiting for the save to finish",
        }
        return [*([said[self.kind]] if self.kind in said else []), *(f"note: {note}" for note in self.notes)]


def watch_pictures(
    run: RunLike,
    options: WatchOptions | None = None,
    stop: Callable[[], bool] = lambda: False,
    settings: WatchSettings = DEFAULTS,
) -> Iterator[WatchUpdate]:
    """Watches pictures and renders their paint to `previews/watch.jpg` of the run, until it is told to stop.

    It watches the pictures in `canonical/` whose names begin with the name of a layer, and the layered documents there.
    The picture that was saved last counts for its layer. Nothing is added to the run's edits.

    Args:
        run: the run, or the path of its folder.
        options: the frames to show, further files to watch, and the size of the preview.
        stop: called twice a second, and more often while a file is being saved; returns True to stop.
        settings: intervals and sizes.

    Yields:
        Updates of the preview, and problems with pictures.

    Raises:
        UserError: a file that cannot be watched (exit 3), or a damaged run (exit 5).
    """
    options = options or WatchOptions()
    session = _Session(run, options, settings)
    session.given = dict(parse_given_file(text, session.run.layers) for text in options.pictures)
    folders = list(dict.fromkeys([session.folder, *(path.parent for path in session.given)]))
    with _wake_on_changes(folders, settings) as wake, ThreadPoolExecutor(1) as session.workers:
        first = session.show_first()
        session.tell_page(first)
        yield first
        while not stop():
            wake.wait(settings.busy_s if session.is_busy else settings.idle_s)
            wake.clear()
            for update in session.poll_files():
                session.tell_page(update)
                yield update
            session.render_next_choice()
        if session.carrying is not None:
            session.carrying.cancel()
        last = session.make_update("end", notes=session.edit_commands())
        session.tell_page(last)
        yield last


class _Session:
    """Holds the watched files, and the paint that the preview shows."""

    workers: ThreadPoolExecutor

    def __init__(self, run: RunLike, options: WatchOptions, settings: WatchSettings) -> None:
        self.options = options
        self.settings = settings
        self.easel: PreviewSession = open_preview(run, options.frames, options.size, settings)
        self.folder = Path(os.path.abspath(self.run.files.canonical))
        self.given: dict[Path, str | None] = {}
        self.files: dict[Path, WatchedFile] = {}
        self.painted: dict[str, tuple[Path, Overlay]] = {}
        self.stamp = read_run_stamp(self.run)
        self.is_whole = True  # the run can be read as it is
        self.carrying: Future[tuple[dict[str, Paint], list[str]]] | None = None
        self.saved = 0.0
        self.notes: set[str] = set()  # those that were said
        self.hinted: set[Path] = set()  # pictures of which a hint was given
        # The page: its state, when it was told last, and the frames of its choice, whose pictures may be out of date.
        self.state = PageState((), "watching", ())
        self.told = 0.0
        self.versions: dict[int, int] = {}
        self.stale: list[int] = []
        self.shown: Mapping[str, Paint] = {}

    @property
    def run(self) -> PlanarRun:
        return self.easel.run

    @property
    def is_busy(self) -> bool:
        return self.carrying is not None or bool(self.stale) or any(file.is_new for file in self.files.values())

    @property
    def overlays(self) -> dict[str, Overlay]:
        return {layer: overlay for layer, (_, overlay) in self.painted.items()}

    def make_update(self, kind: Kind, picture: Path | None = None, **more: Any) -> WatchUpdate:
        """Makes an update; each note is given only once."""
        notes = tuple(note for note in dict.fromkeys(more.pop("notes", ())) if note not in self.notes)
        self.notes.update(notes)
        return WatchUpdate(kind, picture, tuple(self.painted), notes=notes, **more)

    def show_first(self) -> WatchUpdate:
        """Shows the paint that exists at the start."""
        write_page(self.run.files, f"unwrap watch {shlex.quote(str(self.run.path))}")
        notes = self._read_all()
        self._write_preview(self.overlays)
        self._start_carrying()
        return self.make_update("start", notes=notes)

    def poll_files(self) -> Iterator[WatchUpdate]:
        """Checks the run and all files once, and shows changes."""
        stamp = read_run_stamp(self.run)
        if stamp != self.stamp:
            yield from self._reopen_run(stamp)
        if not self.is_whole:
            return
        now = time.monotonic()
        self._scan_files(now)
        for file in sorted(self.files.values(), key=lambda file: file.stat[1] if file.stat else 0):
            if file.is_new:
                yield from self._handle_change(file, now)
        if self.carrying is not None and self.carrying.done():
            done, self.carrying = self.carrying, None
            try:
                overlays, notes = done.result()
            except UserError as error:
                yield self.make_update("error", error=error)
                return
            self._write_preview(overlays)
            yield self.make_update("carried", seconds=time.time() - self.saved if self.saved else None, notes=notes)

    def edit_commands(self) -> list[str]:
        """Makes the commands that turn the shown pictures into edits."""
        run = shlex.quote(str(self.run.path))
        return [
            f"unwrap edit {run} {shlex.quote(str(path))} --layer {layer}" for layer, (path, _) in self.painted.items()
        ]

    def _scan_files(self, now: float) -> None:
        """Updates the state of all files, including new ones."""
        found = set(self.files) | set(self.given)
        with suppress(OSError), os.scandir(self.folder) as entries:
            found |= {self.folder / entry.name for entry in entries if is_watched(entry.name)}
        for path in found:
            self.files.setdefault(path, WatchedFile(path)).observe(now)

    def _read_all(self) -> list[str]:
        """Reads all readable files in the order of their saves; returns notes."""
        self._scan_files(time.monotonic())
        notes: list[str] = []
        for file in sorted(self.files.values(), key=lambda file: file.stat[1] if file.stat else 0):
            file.taken_stat = None
            known = file.stat is not None and self._has_layer(file.path)
            with suppress(IncompleteFileError, UserError):  # then it is read again, and said
                if known:
                    notes += self._read_paint(file)[1]
                file.taken_stat = file.stat
        return notes

    def _reopen_run(self, stamp: tuple[Stat | None, ...]) -> Iterator[WatchUpdate]:
        """Reopens the run after its edits, maps or exported pictures changed."""
        self.stamp = stamp
        try:
            self.easel = open_preview(self.run.files, self.options.frames, self.options.size, self.settings)
            self.is_whole = True
        except UserError as error:  # such as a training that goes on and bakes just now; then the stamp changes again
            self.is_whole = False
            yield self.make_update("error", error=error)
            return
        self.painted = {}
        notes = self._read_all()
        self._write_preview(self.overlays)
        self._start_carrying()
        yield self.make_update("edits", notes=notes)

    def _handle_change(self, file: WatchedFile, now: float) -> Iterator[WatchUpdate]:
        """Shows a changed file if it is complete."""
        if file.stat is None:
            if now - file.seen_since >= self.settings.gone_s:
                file.taken_stat = None
                shown = [layer for layer, (path, _) in self.painted.items() if path == file.path]
                for layer in shown:
                    del self.painted[layer]
                if file.path not in self.given:
                    del self.files[file.path]
                if shown:
                    self._write_preview(self.overlays)
                yield self.make_update("removed", file.path)
            return
        if not self._has_layer(file.path):
            file.taken_stat = file.stat
            if file.path not in self.hinted:  # say once why it is left alone
                self.hinted.add(file.path)
                text = f"{file.path.name} belongs to no layer: begin its name with one of "
                text += ", ".join(self.run.layers)
                if file.path.suffix.lower() in PROGRAM_SUFFIXES:
                    text = f"{file.path.name} can be read by its own program only: export it as .ora or .png"
                yield self.make_update("hint", file.path, notes=[text])
            return
        if file.read_error is None and file.is_still(now, self.settings.still_s):
            try:
                yield from self._show_file(file)
                return
            except IncompleteFileError as problem:
                file.read_error = problem.error
            except UserError as error:
                file.taken_stat = file.stat
                yield self.make_update("error", file.path, error=error)
                return
        if file.read_error is not None and now - file.seen_since >= self.settings.give_up_s:
            file.taken_stat = file.stat
            yield self.make_update("error", file.path, error=file.read_error)
        elif now - file.save_begun >= self.settings.patience_s and not file.is_told:
            file.is_told = True
            yield self.make_update("waiting", file.path)

    def _show_file(self, file: WatchedFile) -> Iterator[WatchUpdate]:
        """Reads a file and updates the preview."""
        stat, saved, begin = file.stat, file.estimate_save_time(self.settings.patience_s), time.time()
        kind, notes = self._read_paint(file)
        if read_stat(file.path) != stat:  # saved again meanwhile: it is read again, and shown once
            return
        read = time.time()
        picture = self.easel.render_picture(self.overlays)
        rendered = time.time()
        self._publish(picture, self.overlays)
        written = time.time()
        stages = {"settle": begin - saved, "read": read - begin, "render": rendered - read, "write": written - rendered}
        self.saved, file.taken_stat = saved, stat
        yield self.make_update(kind, file.path, seconds=written - saved, stages=stages, notes=notes)
        self._start_carrying()
        if kind != "painted" or file.path in self.hinted:
            return
        # Say once which frame shows what was painted, if the preview does not.
        own = {layer: overlay for layer, (path, overlay) in self.painted.items() if path == file.path}
        others = {layer: overlay for layer, overlay in self.overlays.items() if layer not in own}
        if not np.array_equal(picture, self.easel.render_picture(others)):
            return
        self.hinted.add(file.path)
        number = self.easel.find_best_frame(own)
        text = "no frame of the video shows the place that was painted"
        if number is not None:
            shown = ", ".join(str(shot.number) for shot in self.easel.shots)
            text = f"the place that was painted is not seen in frame {shown}: unwrap watch --frame {number} shows it"
        yield self.make_update("hint", file.path, notes=[text])

    def _read_paint(self, file: WatchedFile) -> tuple[Kind, Sequence[str]]:
        """Reads a file and stores its paint; returns the kind of update, and notes on the picture.

        Raises:
            IncompleteFileError: the file cannot be read yet.
            UserError: the file has the wrong shape.
        """
        path = file.path
        found = self.easel.read_overlays(path, self._find_layer(path))
        before = [layer for layer, (known, _) in self.painted.items() if known == path]
        for layer in before:
            del self.painted[layer]
        self.painted |= {layer: (path, overlay) for layer, overlay in found.items()}
        notes = [note for overlay in found.values() for note in overlay.notes]
        return ("painted" if found else "no change"), notes

    def _find_layer(self, path: Path) -> str | None:
        """Finds the layer of a file: as the user states it, or else by its name; None for a document."""
        named = None if path.suffix.lower() in DOCUMENT_SUFFIXES else find_file_layer(path.name, self.run.layers)
        return self.given.get(path) or named

    def _has_layer(self, path: Path) -> bool:
        """Tells whether a file can be read and belongs to a layer."""
        suffix = path.suffix.lower()
        return suffix in DOCUMENT_SUFFIXES or (suffix in PICTURE_SUFFIXES and self._find_layer(path) is not None)

    def _start_carrying(self) -> None:
        """Starts to propagate paint to all charts of its layers in the background, which takes seconds."""
        if self.carrying is not None:
            self.carrying.cancel()
        wanted = bool(self.run.maps.charts) and bool(self.painted)
        self.carrying = self.workers.submit(carry_to_charts, self.run, self.overlays) if wanted else None

    def _write_preview(self, overlays: Mapping[str, Paint]) -> None:
        self._publish(self.easel.render_picture(overlays), overlays)

    def _publish(self, picture: np.ndarray, overlays: Mapping[str, Paint]) -> None:
        """Writes the preview; the other frames of the page follow, one at a time."""
        write_preview(self.run.files, picture, self.settings.jpeg_quality)
        asked = [shot.number for shot in self.easel.shots]
        if len(asked) == 1:
            self.versions[asked[0]] = self.versions.get(asked[0], 0) + 1
        frames = self.run.frames
        spread = {frames[round(place)] for place in np.linspace(0, len(frames) - 1, self.settings.chooser_frames)}
        self.stale = [*(asked if len(asked) > 1 else ()), *sorted(spread - set(asked))]
        self.shown = dict(overlays)

    def render_next_choice(self) -> None:
        """Renders the next frame of the page's choice that is out of date, and tells the page now and then."""
        if self.stale and self.is_whole:
            number = self.stale.pop(0)
            frame = self.easel.render_shot(self.easel.open_shot(number), self.shown)
            write_preview(self.run.files, frame, self.settings.jpeg_quality, f"watch-{number:05d}.jpg")
            self.versions[number] = self.versions.get(number, 0) + 1
            self.tell_page()
        elif time.monotonic() - self.told >= self.settings.heartbeat_s:
            self.tell_page()

    def tell_page(self, update: WatchUpdate | None = None) -> None:
        """Writes the state of the page, after an update or to say that the watch still runs."""
        asked = [shot.number for shot in self.easel.shots]
        shown = []
        for number in sorted({*asked, *self.stale, *self.versions}):
            file = PREVIEW_FILE if asked == [number] else f"watch-{number:05d}.jpg"
            shown.append(ShownFrame(number, file, self.versions.get(number, 0), number in asked))
        lines, kind = self.state.lines, self.state.kind
        if update is not None:
            lines = tuple(update.to_lines())
            kind = {"error": "error", "end": "ended"}.get(update.kind, "watching")
        self.state = PageState(lines, kind, tuple(shown))
        write_state(self.run.files, self.state)
        self.told = time.monotonic()


@contextmanager
def _wake_on_changes(folders: Sequence[Path], settings: WatchSettings) -> Iterator[threading.Event]:
    """Opens an event that is set when anything in one of the folders changes."""
    from watchfiles import watch as watch_folders

    wake, end = threading.Event(), threading.Event()
    changes = watch_folders(
        *folders,
        watch_filter=None,
        debounce=2 * int(1000 * settings.busy_s),
        step=int(1000 * settings.busy_s),
        rust_timeout=int(1000 * settings.idle_s),
        stop_event=end,
        raise_interrupt=False,
        recursive=False,
    )
    thread = threading.Thread(target=_listen, args=(changes, wake, end, 5 * settings.busy_s), name="watch", daemon=True)
    thread.start()
    try:
        yield wake
    finally:
        end.set()
        thread.join(2 * settings.idle_s)


def _listen(changes: Iterator[Any], wake: threading.Event, end: threading.Event, retry_s: float) -> None:
    """Sets `wake` at each change, until `end` is set."""
    try:
        for _ in changes:
            wake.set()
    except OSError:  # such as no more watches: then the files are looked at more often
        while not end.wait(retry_s):
            wake.set()
