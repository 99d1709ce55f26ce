"""`unwrap mask`: from hints on a video to a folder of mattes, one folder an object, that `unwrap train` takes."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import DESKTOP_FILES, atomic_write, is_temporary, write_json
from neural_fields.core.memmap import allocate_zeros
from neural_fields.core.progress import Progress, ProgressReporter, rename_stage, report_nothing
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.mask_folder import MASKS_FILE, MaskFolderRecord, read_mask_folder
from neural_fields.data.segmentation.mattes import make_matte
from neural_fields.data.segmentation.segmenter import (
    ClipSegmentation,
    FrameHints,
    ObjectSegmenter,
    UnusableHintsError,
)
from neural_fields.data.segmentation.track_objects import find_order
from neural_fields.data.video.io import probe_video, read_video, source_frames
from neural_fields.data.video.metadata import Video, VideoMetadata, parse_frames, parse_size
from neural_fields.masking.doubts import describe_span, find_doubts
from neural_fields.masking.engines import choose_matting_network, choose_segmenter, find_by_networks
from neural_fields.masking.found_objects import (
    ALONE,
    APART,
    FoundObject,
    read_found_object,
    store_found_object,
    sum_shares,
)
from neural_fields.masking.frame_hints import choose_current_hints, convert_hints
from neural_fields.masking.hint_journal import (
    HINTS_FILE,
    PICTURES_FOLDER,
    HintHistory,
    HintStep,
    append_step,
    identify_video,
    read_hints,
    store_pictures,
)
from neural_fields.masking.hints import FIRST_FRAME, AnyHint, PointHint, TextHint
from neural_fields.masking.mask_sheet import draw_mask_sheet
from neural_fields.masking.matte_folders import ObjectRecord, read_object_record, write_mattes
from neural_fields.masking.options import MaskOptions
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.locking import lock_folder
from neural_fields.runs.run import HOLDER_FILE, LOCK_FILE

RESULT_VERSION = 3  # of the mattes: raise it when the same hints would give others, so that they are made again
SHEET_FILE = "contact.png"
MAX_SHARED_IOU = 0.8  # of all pixels of two objects; from here on they are one object under two names


@dataclass(frozen=True)
class SegmentedObject:
    """Holds what was found of one object.

    Attributes:
        name: of the object.
        folder: its mattes, one for each frame of the video.
        confidence: how sure it is in each frame in use, 0 to 1; 0 where it was not found.
        check: spans of frames to look at, by their numbers in the video, the most doubtful first.
        lost: spans in which it was not found.
        is_new: whether its mattes were made now; otherwise its hints have not changed.
    """

    name: str
    folder: Path
    confidence: tuple[float, ...]
    check: tuple[range, ...]
    lost: tuple[range, ...]
    is_new: bool


@dataclass(frozen=True)
class SegmentedVideo:
    """Holds the masks of a video.

    Attributes:
        folder: what `unwrap train VIDEO --masks FOLDER` takes.
        frames: the frames in use; mattes of the others are black.
        objects: front to back.
        contact_sheet: frames with outlines; None without objects.
        notes: for the user, one sentence each.
        advice: what to look at and what to do there, one sentence each.
    """

    folder: Path
    frames: range
    objects: tuple[SegmentedObject, ...]
    contact_sheet: Path | None
    notes: tuple[str, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True)
class MaskPlace:
    """Holds where masks are made: the video, the folder of the masks, that of the cache, and the frames of a run."""

    video: Path
    folder: Path
    cache: Path
    frames: str | None


def find_mask_place(video_or_run: str | Path, out: Path | None = None) -> MaskPlace:
    """Finds the video and the folder of its masks.

    Args:
        video_or_run: a video file, a folder of numbered pictures, or the folder of a run.
        out: the folder of the masks; None for the default.

    Raises:
        UserError: a run of a 3D scene, or one whose video is gone (exit 3).
    """
    path = Path(video_or_run)
    if (path / "run.yaml").is_file():
        run = require_planar(path, "unwrap mask")
        frames = f"{run.frames.start}:{run.frames.stop}"
        return MaskPlace(Path(run.metadata.path), out or run.files.masks, run.files.cache, frames)
    folder = out or Path(f"{path.absolute().stem or 'video'}-masks")
    return MaskPlace(path, folder, folder / "cache", None)


def segment_video(
    video: str | Path,
    options: MaskOptions | None = None,
    report: ProgressReporter = report_nothing,
    segmenter: ObjectSegmenter | None = None,
) -> SegmentedVideo:
    """Finds objects in all frames of a video from hints on some of them.

    Hints stay in the folder of the masks, and more can be added later: only objects whose hints or settings changed
    are done again. Earlier masks stay as they are when something fails.

    Args:
        video: a video file, a folder of numbered pictures, or the folder of a run.
        options: hints and settings: those of `unwrap mask`.
        report: called with the progress.
        segmenter: finds the objects; by default what `options.model` says.

    Returns:
        The masks, and what to look at.

    Raises:
        UserError: hints that cannot be used or that contradict each other, an object that is nowhere found, a folder
            that holds other files (exit 3), no room (4), a damaged journal (5), or a folder that another command is
            writing to (6).

    Example:
        masks = segment_video("clip.mp4", MaskOptions(hints=(BoxHint("person", 12, 100, 60, 80, 120),)))
        train("clip.mp4", TrainOptions(masks=(str(masks.folder),)))
    """
    options = options or MaskOptions()
    report(Progress("reading", 0, 1))
    place = find_mask_place(video, options.out)
    metadata = probe_video(place.video)
    _refuse_other_files(place.folder)
    before = read_mask_folder(place.folder)
    options = _recall_settings(options, before)
    history = read_hints(place.folder, metadata)

    # Everything is checked before it is written down.
    span = options.frames or (f"{before.frames.start}:{before.frames.stop}" if before else place.frames or ":")
    frames = parse_frames(span, metadata.numbers)
    if frames.step != 1:
        raise bad_input(f"--frames {span}", why="an object is followed from frame to frame", fix="--frames A:B")
    line = f"unwrap mask {shlex.quote(str(video))}" + (f" --out {shlex.quote(str(options.out))}" if options.out else "")
    after = _change_hints(history, options, place, metadata, frames, line)
    size = parse_size(options.size or "", metadata.width, metadata.height)
    engine = segmenter or choose_segmenter(options)
    hinted = convert_hints(after.hints, place.folder, identify_video(metadata), frames, size, line)
    if not hinted and after is history:
        raise bad_input(
            f"nothing points at an object in {place.video.name}",
            where=str(place.folder),
            why="an object is found from a box, points, strokes, a mask or words in one of the frames",
            fix=f"{line} --object person --frame 0 --box x,y,width,height",
        )
    for name in options.order:
        if name not in hinted and not (before and name in before.order):  # it may have been taken back
            known = ", ".join(hinted)
            raise bad_input(
                f"--order {name}: there is no such object",
                why=f"objects: {known}",
                fix=" ".join([line, *(f"--order {name}" for name in hinted)]),
            )

    with _lock_as_read(place, metadata, history, before, line) as note:
        # The hints are written down first, so that they are not lost when the work is interrupted.
        step = None if after is history else _make_step(history, after, options, place)
        if step is not None:
            append_step(place.folder, metadata, step)
            history = history.apply(step)
        try:
            job = MaskJob(place, metadata, frames, size, options, before, history.hints)
            masks = _make_masks(job, engine, hinted, line, report)
        except UserError:
            if step is not None:  # otherwise every later command would fail as well
                append_step(place.folder, metadata, HintStep("cancel"))
            raise
    return replace(masks, notes=(*masks.notes, note)) if note else masks


def _make_step(history: HintHistory, after: HintHistory, options: MaskOptions, place: MaskPlace) -> HintStep | None:
    """Makes the line of the journal that leads from `history` to `after`; None if all was said before."""
    if options.undo or options.redo:
        return HintStep("undo" if options.undo else "redo")
    stored, known = store_pictures(place.folder, after.done[-1].hints), choose_current_hints(history.hints)
    new = tuple(hint for hint in stored if hint not in known)
    return HintStep("add", new) if new else None


@contextmanager
def _lock_as_read(
    place: MaskPlace, metadata: VideoMetadata, history: HintHistory, before: MaskFolderRecord | None, line: str
) -> Iterator[str]:
    """Locks the folder of the masks, if it is still as it was read; yields a note of a weaker lock."""
    with lock_folder(place.folder, f"the folder {place.folder}", f"{line} --list works meanwhile") as note:
        if read_hints(place.folder, metadata) != history or read_mask_folder(place.folder) != before:
            raise UserError(
                ExitCode.LOCKED,
                f"another command has just changed {place.folder}",
                where=str(place.folder),
                why="what this command would do was checked with what was there before",
                fix="the same command again",
            )
        yield note


@dataclass(frozen=True)
class MaskJob:
    """Holds what the masks of one command are made from.

    Attributes:
        place: the video and the folders.
        metadata: of the video.
        frames: numbers of the frames in use.
        size: (width, height) of the frames that are segmented.
        options: of the command.
        before: the folder as it was; None for a new one.
        hints: all that are in force, oldest first.
    """

    place: MaskPlace
    metadata: VideoMetadata
    frames: range
    size: tuple[int, int]
    options: MaskOptions
    before: MaskFolderRecord | None
    hints: tuple[AnyHint, ...]

    def digest(self, name: str, engine: ObjectSegmenter) -> str:
        """Computes the digest of what an object is found by."""
        hints = [to_mapping(hint) for hint in self.hints if hint.object == name]
        settings = [RESULT_VERSION, self.metadata.sha256, self.frames.start, self.frames.stop, self.size]
        values = [hints, settings, self.options.model, type(engine).__name__]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def matte_digest(self, shares: UInt8[np.ndarray, "time height width"]) -> str:
        """Computes the digest of what the mattes of an object follow from, once overlaps are settled."""
        values = [RESULT_VERSION, sum_shares(shares), self.options.edges, self.options.matte_model]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def read_found(self, name: str, engine: ObjectSegmenter, video: Video) -> FoundObject | None:
        """Reads what was found of an object before, if its hints and settings were the same.

        Args:
            name: of the object.
            engine: what is to find it.
            video: the frames.
        """
        height, width = video.frames.shape[1:3]
        digest = self.digest(name, engine)
        return read_found_object(self.place.cache / ALONE, name, digest, (len(video.frames), height, width))

    def apart_digest(self, names: Sequence[str], engine: ObjectSegmenter) -> str:
        """Computes the digest of what tells objects apart: the hints of all, and the order that was asked for."""
        values = [[name, self.digest(name, engine)] for name in names]
        return hashlib.sha256(json.dumps([values, self.options.order]).encode()).hexdigest()

    def differs_from_last_time(self, records: Collection[str], names: Collection[str]) -> bool:
        """Whether objects or their edges are to be made that are not there yet.

        Args:
            records: names of the objects that were found by the same hints and settings.
            names: of all objects.
        """
        if self.before is None or not set(self.before.objects) == set(names) == set(records):
            return True
        return (self.before.edges, self.before.matte_model) != (self.options.edges, self.options.matte_model)


def _recall_settings(options: MaskOptions, before: MaskFolderRecord | None) -> MaskOptions:
    """Fills in settings that are not given: those of last time, at first the defaults."""
    known = before or MaskFolderRecord(sha256="", size=(0, 0), frame_count=0, frames=range(0), objects=())
    networks = (options.model or known.model, options.matte_model or known.matte_model)
    model, matte_model = (None if name == "none" else name for name in networks)
    return replace(
        options,
        size=options.size or known.followed_at,
        edges=options.edges or known.edges,
        order=options.order or known.order,
        model=model,
        matte_model=matte_model,
    )


def _refuse_other_files(folder: Path) -> None:
    """Refuses a folder that holds something else than masks of `unwrap mask`."""
    if not folder.exists() or (folder / HINTS_FILE).is_file():
        return
    others = [folder.name] if not folder.is_dir() else []
    own = {"cache", MASKS_FILE, PICTURES_FOLDER, LOCK_FILE, HOLDER_FILE, *DESKTOP_FILES}
    others += sorted(p.name for p in folder.glob("*") if p.name not in own and not is_temporary(p.name))
    if others:
        raise bad_input(
            f"{folder} is not a folder of hints and masks",
            where=str(folder),
            why=f"it is a file, or holds other files: {others[0]!r}",
            fix=f"--out {folder}-2",
        )


def _change_hints(
    history: HintHistory, options: MaskOptions, place: MaskPlace, metadata: VideoMetadata, frames: range, line: str
) -> HintHistory:
    """Returns the hints after the change that the options ask for; `history` itself where they ask for none."""
    if (options.undo and not history.done) or (options.redo and not history.undone):
        what = "undo" if options.undo else "redo"
        raise bad_input(f"there is nothing to {what}", where=str(place.folder / HINTS_FILE), fix=f"{line} --list")
    if options.undo or options.redo:
        return history.apply(HintStep("undo" if options.undo else "redo"))
    known = [hint.unfound for hint in choose_current_hints(history.hints)]
    given = []
    for hint in options.hints:
        anywhere = isinstance(hint, TextHint) and hint.any_frame
        given.append(replace(hint, frame=frames.start) if hint.frame == FIRST_FRAME and not anywhere else hint)
    new = tuple(hint for hint in given if hint not in known)
    new = find_by_networks(new, place.folder, metadata, frames, options)
    return history.apply(HintStep("add", new)) if new else history


# --- the masks ------------------------------------------------------------------------------------------------------


def _make_masks(
    job: MaskJob,
    engine: ObjectSegmenter,
    hinted: Mapping[str, Mapping[int, FrameHints]],
    line: str,
    report: ProgressReporter,
) -> SegmentedVideo:
    """Makes the mattes of the objects that changed, and writes the folder."""
    folder, frames = job.place.folder, job.frames
    size, span = f"{job.size[0]}x{job.size[1]}", f"{frames.start}:{frames.stop}"
    video = read_video(job.place.video, job.place.cache, size, span, report)
    records = {}
    for name in hinted:
        record = read_object_record(folder / name)
        if record is not None and record.digest == job.digest(name, engine):
            records[name] = record
    names = list(hinted)  # in the order of the hints: masks do not depend on what was found in which command
    # The order: as asked for; otherwise a guess, which starts from the order so far with new objects in front.
    known = [name for name in (job.before.objects if job.before else ()) if name in hinted]
    ordered = [*(name for name in names if name not in known), *known]
    notes: list[str] = []
    changed: list[str] = []
    how = "as last time"
    stored = {name: job.read_found(name, engine, video) for name in names}
    # Where the cache was deleted and nothing has changed, nothing is found again.
    if all(stored.values()) or job.differs_from_last_time(records, hinted):
        flow = compute_flow(video.frames, job.place.cache, report=rename_stage(report, "flow"))
        searched = {name: hints for name, hints in hinted.items() if stored[name] is None}
        found, found_notes = _find_objects(job, engine, searched, video, flow, line, report) if searched else ({}, ())
        notes += found_notes
        shares = allocate_zeros((len(names), *video.frames.shape[:3]), np.uint8)
        confidence = {}
        for place, name in enumerate(names):
            item = stored[name] or found[name]
            shares[place], confidence[name] = item.shares, item.confidence
        _refuse_equal_objects(names, shares, searched, line, job.hints)
        for name, item in found.items():
            store_found_object(job.place.cache / ALONE, name, job.digest(name, engine), item)
        if len(names) > 1:
            order, is_seen = find_order(shares[[names.index(name) for name in ordered]] >= 128)
            ordered = [ordered[place] for place in order]
            how = "guessed by who covers whom" if is_seen else "guessed, as none covers another"
            shares, confidence = _separate_objects(job, engine, hinted, shares, confidence, video, flow, report)
        for place, name in enumerate(names):
            digest = job.matte_digest(shares[place])
            if name not in records or records[name].matte_digest != digest:
                changed.append(name)
                one = job.digest(name, engine)
                records[name] = ObjectRecord(digest=one, matte_digest=digest, confidence=confidence[name])
                mattes = _make_mattes(shares[place], flow, job, report)
                retouched = write_mattes(folder / name, records[name], mattes, job.metadata.first_number)
                if retouched is not None:
                    notes.append(f"{name} was retouched or made by another program: that is in {retouched} now")
    asked = job.options.order
    ordered = [*(name for name in asked if name in hinted), *(name for name in ordered if name not in asked)]
    if len(ordered) > 1:
        how = "as you asked" if asked else f"{how}; --order NAME, front first, sets it"
        notes.append(f"front to back: {', '.join(ordered)} ({how})")
    written = MaskFolderRecord(
        sha256=job.metadata.sha256,
        size=(job.metadata.width, job.metadata.height),
        frame_count=job.metadata.frame_count,
        frames=frames,
        objects=tuple(ordered),
        order=asked,
        followed_at=job.options.size or "240p",
        edges=job.options.edges or "soft",
        model=job.options.model,
        matte_model=job.options.matte_model,
    )
    write_json(folder / MASKS_FILE, to_mapping(written))

    objects = []
    for name in ordered:
        sure = records[name].confidence
        doubts = find_doubts(sure, frames.start)
        objects.append(SegmentedObject(name, folder / name, sure, doubts.check, doubts.lost, name in changed))
    sheet = _write_sheet(job, video, objects)
    return SegmentedVideo(folder, frames, tuple(objects), sheet, tuple(notes), _advise(objects, line))


def _advise(objects: Sequence[SegmentedObject], line: str) -> tuple[str, ...]:
    """Says where the user should look, and what to do there."""
    advice = []
    for item in objects:
        if item.check:
            advice.append(f"{item.name}: check {', '.join(map(describe_span, item.check))}")
        for span in item.lost:
            fix = f"{line} --object {item.name} --frame {span.start} --box x,y,width,height"
            advice.append(f"{item.name}: lost in {describe_span(span)}; if it is visible, point at it there: {fix}")
    return tuple(advice)


def _find_objects(
    job: MaskJob,
    engine: ObjectSegmenter,
    searched: Mapping[str, Mapping[int, FrameHints]],
    video: Video,
    flow: FlowField,
    line: str,
    report: ProgressReporter,
) -> tuple[dict[str, FoundObject], tuple[str, ...]]:
    """Finds objects, each as if it were alone, and notes; refuses those that differ from nothing around them."""
    first = job.frames.start
    try:
        found = engine.segment(video.frames, flow, searched, rename_stage(report, "objects"))
    except UnusableHintsError as problem:
        frame = first + problem.frame
        words = [hint.words for hint in job.hints if (hint.object, hint.frame) == (problem.name, frame)]
        raise bad_input(
            f"{problem.name}, frame {frame}: {problem.what}",
            where=", ".join(words),
            why=problem.why,
            fix=f"{line} --object {problem.name} --frame {frame} --box x,y,width,height, closer or in another frame",
        ) from problem
    objects = {}
    for name, shares, confidence in zip(found.names, found.shares, found.confidence, strict=True):
        hints = [hint for hint in job.hints if hint.object == name]
        # A click always gives some pixels; where they differ from nothing around, they are lost in the next frame.
        beyond = [sure for number, sure in enumerate(confidence) if number not in searched[name]]
        is_nothing = all(isinstance(hint, PointHint) for hint in hints) and bool(beyond) and max(beyond) < 1e-3
        if is_nothing or not (shares >= 128).any():
            raise bad_input(
                f"{name} was not found in any {'other ' if is_nothing else ''}frame",
                where=", ".join(f"frame {hint.frame}: {hint.words}" for hint in hints),
                why="nothing where the hints point differs from what is around it",
                fix=f"{line} --object {name} --frame {first + min(searched[name])} --box x,y,width,height, around "
                "something that differs",
            )
        objects[name] = FoundObject(shares, tuple(round(float(value), 4) for value in confidence))
    return objects, found.notes


def _separate_objects(
    job: MaskJob,
    engine: ObjectSegmenter,
    hinted: Mapping[str, Mapping[int, FrameHints]],
    shares: UInt8[np.ndarray, "objects time height width"],
    confidence: Mapping[str, tuple[float, ...]],
    video: Video,
    flow: FlowField,
    report: ProgressReporter,
) -> tuple[UInt8[np.ndarray, "objects time height width"], dict[str, tuple[float, ...]]]:
    """Tells objects apart, each of which was found as if it were alone, or reads what came of it before."""
    names, folder, digest = tuple(hinted), job.place.cache / APART, job.apart_digest(tuple(hinted), engine)
    known = [read_found_object(folder, name, digest, shares.shape[1:]) for name in names]
    stored = [item for item in known if item is not None]
    if len(stored) < len(names):
        sure = np.array([confidence[name] for name in names], np.float32)
        alone = ClipSegmentation(names, shares, sure)
        apart = engine.separate(
            video.frames, flow, hinted, alone, job.options.order or (), rename_stage(report, "objects")
        )
        stored = [
            FoundObject(share, tuple(round(float(value), 4) for value in values))
            for share, values in zip(apart.shares, apart.confidence, strict=True)
        ]
        for name, item in zip(names, stored, strict=True):
            store_found_object(folder, name, digest, item)
    return np.stack([item.shares for item in stored]), {
        name: item.confidence for name, item in zip(names, stored, strict=True)
    }


def _refuse_equal_objects(
    names: Sequence[str],
    shares: UInt8[np.ndarray, "objects time height width"],
    searched: Collection[str],
    line: str,
    hints: Sequence[AnyHint],
) -> None:
    """Refuses two objects with the same pixels: each pixel belongs to one, and both would be torn."""
    for a, b in combinations(range(len(names)), 2):
        if not {names[a], names[b]} & set(searched):
            continue
        both = either = 0
        for one, other in zip(shares[a], shares[b], strict=True):
            both += int(np.count_nonzero((one >= 128) & (other >= 128)))
            either += int(np.count_nonzero((one >= 128) | (other >= 128)))
        if both > MAX_SHARED_IOU * either:
            new, old = (names[a], names[b]) if names[a] in searched else (names[b], names[a])
            words = [f"{hint.object}, frame {hint.frame}: {hint.words}" for hint in hints if hint.object in (new, old)]
            raise bad_input(
                f"{new} and {old} are the same object",
                where="; ".join(words),
                why=f"their masks share {both} of {either} pixels, and a pixel belongs to one object",
                fix=f"point at {new} elsewhere: {line} --object {new} --frame N --box x,y,width,height, or give its "
                f"hints to {old}",
            )


def _make_mattes(
    shares: UInt8[np.ndarray, "time height width"], flow: FlowField, job: MaskJob, report: ProgressReporter
) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """Yields a matte at the size of the video for each of its frames; black outside the frames in use."""
    size = (job.metadata.width, job.metadata.height)
    network = choose_matting_network(job.options)
    before = None
    pictures = source_frames(job.metadata, job.frames)
    for done, number in enumerate(job.metadata.numbers):
        report(Progress("writing", done, job.metadata.frame_count))
        if number not in job.frames:
            yield np.zeros(size[::-1], np.uint8)
            continue
        index = number - job.frames.start
        if job.options.edges == "hard":
            yield cv2.resize(shares[index], size, interpolation=cv2.INTER_LINEAR)
            continue
        if network is not None:
            yield network.make_matte(next(pictures), shares[index])
            continue
        back = np.asarray(flow.backward[index - 1], np.float32) if index else None
        before = make_matte(next(pictures), shares[index], before=before, flow=back)
        yield before


def _write_sheet(job: MaskJob, video: Video, objects: Sequence[SegmentedObject]) -> Path | None:
    """Writes the contact sheet; removes that of earlier objects where there are none."""
    path = job.place.folder / SHEET_FILE
    if not objects:
        path.unlink(missing_ok=True)
        return None
    doubtful = {number for item in objects for span in (*item.check, *item.lost) for number in span}
    hinted = {hint.frame for hint in job.hints}
    folders = {item.name: item.folder for item in objects}
    sheet = draw_mask_sheet(video.frames, job.frames, folders, doubtful, hinted)
    with atomic_write(path) as part:
        Image.fromarray(sheet).save(part)
    return path
