"""`unwrap mask`: from hints on a video to a folder of mattes, one folder an object, that `unwrap train` takes."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.files import DESKTOP_FILES, atomic_write, is_temporary, write_json
from neural_fields.core.progress import Progress, ProgressReporter, rename_stage, report_nothing
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.mask_folder import MASKS_FILE, MaskFolderRecord, read_mask_folder
from neural_fields.data.segmentation.mattes import make_matte
from neural_fields.data.segmentation.segmenter import FrameHints, ObjectSegmenter
from neural_fields.data.video.io import probe_video, read_video, source_frames
from neural_fields.data.video.metadata import Video, VideoMetadata, parse_frames, parse_size
from neural_fields.masking.doubts import describe_span, find_doubts
from neural_fields.masking.engines import choose_matting_network, choose_segmenter, find_words
from neural_fields.masking.frame_hints import convert_hints
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
from neural_fields.masking.hints import AnyHint, TextHint
from neural_fields.masking.mask_sheet import draw_mask_sheet
from neural_fields.masking.matte_folders import ObjectRecord, read_object_record, write_mattes
from neural_fields.masking.options import MaskOptions
from neural_fields.open_runs.opening import require_planar

RESULT_VERSION = 1  # of the mattes: raise it when the same hints would give others, so that they are made again
SHEET_FILE = "contact.png"


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
        segmenter: finds the objects; by default what `options.engine` says.

    Returns:
        The masks, and what to look at.

    Raises:
        UserError: hints that cannot be used or that contradict each other, an object that is nowhere found, a folder
            that holds other files (exit 3), no room (4), or a damaged journal (5).

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
    frames = parse_frames(span, metadata.frame_count)
    if frames.step != 1:
        raise bad_input(f"--frames {span}", why="an object is followed from frame to frame", fix="--frames A:B")
    after = _change_hints(history, options, place, metadata, frames)
    size = parse_size(options.size or "", metadata.width, metadata.height)
    engine = segmenter or choose_segmenter(options)
    hinted = convert_hints(after.hints, place.folder, identify_video(metadata), frames, size)
    line = f"unwrap mask {shlex.quote(str(video))}" + (f" --out {shlex.quote(str(options.out))}" if options.out else "")
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
            raise bad_input(f"--order {name}: there is no such object", why=f"objects: {known}", fix="--order NAME")

    # The hints are written down first, so that they are not lost when the work is interrupted.
    step = None
    if after is not history:
        step = HintStep("undo" if options.undo else "redo" if options.redo else "add")
        if step.operation == "add":
            stored = store_pictures(place.folder, after.done[-1].hints)
            step = replace(step, hints=tuple(hint for hint in stored if hint not in history.hints))
        if step.hints or step.operation != "add":
            append_step(place.folder, metadata, step)
            history = history.apply(step)
    try:
        job = MaskJob(place, metadata, frames, size, options, before, history.hints)
        return _make_masks(job, engine, hinted, line, report)
    except UserError:
        if step is not None and step.hints:  # otherwise every later command would fail as well
            append_step(place.folder, metadata, HintStep("undo"))
        raise


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
        """Computes the digest of what the mattes of an object follow from."""
        hints = [to_mapping(hint) for hint in self.hints if hint.object == name]
        settings = [RESULT_VERSION, self.metadata.sha256, self.frames.start, self.frames.stop, self.size]
        options = [self.options.model, self.options.edges, self.options.matte_model]
        values = [hints, settings, options, type(engine).__name__]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


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
    own = {"cache", MASKS_FILE, PICTURES_FOLDER, *DESKTOP_FILES}
    others += sorted(p.name for p in folder.glob("*") if p.name not in own and not is_temporary(p.name))
    if others:
        raise bad_input(
            f"{folder} is not a folder of hints and masks",
            where=str(folder),
            why=f"it is a file, or holds other files: {others[0]!r}",
            fix=f"--out {folder}-2",
        )


def _change_hints(
    history: HintHistory, options: MaskOptions, place: MaskPlace, metadata: VideoMetadata, frames: range
) -> HintHistory:
    """Returns the hints after the change that the options ask for; `history` itself where they ask for none."""
    if (options.undo and not history.done) or (options.redo and not history.undone):
        what = "undo" if options.undo else "redo"
        raise bad_input(f"there is nothing to {what}", where=str(place.folder / HINTS_FILE), fix="unwrap mask --list")
    if options.undo or options.redo:
        return history.apply(HintStep("undo" if options.undo else "redo"))
    known = [replace(hint, box=None, file=None) if isinstance(hint, TextHint) else hint for hint in history.hints]
    new = tuple(hint for hint in options.hints if hint not in known)
    new = find_words(new, place.folder, metadata, frames, options)
    return history.apply(HintStep("add", new)) if new else history


# --- the masks ------------------------------------------------------------------------------------------------------


def _make_masks(
    job: MaskJob,
    engine: ObjectSegmenter,
    hinted: Mapping[str, Mapping[int, FrameHints]],
    line: str,
    report: ProgressReporter,
) -> SegmentedVideo:
    """Makes the mattes of the objects whose hints or settings changed, and writes the folder."""
    folder, frames = job.place.folder, job.frames
    kept = {}
    for name in hinted:
        record = read_object_record(folder / name)
        if record is not None and record.digest == job.digest(name, engine):
            kept[name] = record
    video = read_video(
        job.place.video, job.place.cache, f"{job.size[0]}x{job.size[1]}", f"{frames.start}:{frames.stop}"
    )
    changed = {name: hints for name, hints in hinted.items() if name not in kept}
    records, notes, found = dict(kept), [], None
    if changed:
        flow = compute_flow(video.frames, job.place.cache, report=rename_stage(report, "flow"))
        found = engine.segment(video.frames, flow, changed, rename_stage(report, "objects"))
        for name, shares in zip(found.names, found.shares, strict=True):
            if not (shares >= 128).any():
                raise bad_input(
                    f"{name} was not found in any frame",
                    where=", ".join(hint.words for hint in job.hints if hint.object == name),
                    why="nothing where the hints point differs from what is around it",
                    fix=f"draw around it: --object {name} --frame {frames.start + min(changed[name])} "
                    "--box x,y,width,height",
                )
        for name, shares, confidence in zip(found.names, found.shares, found.confidence, strict=True):
            sure = tuple(round(float(value), 4) for value in confidence)
            records[name] = ObjectRecord(digest=job.digest(name, engine), confidence=sure)
            retouched = write_mattes(folder / name, records[name], _make_mattes(shares, flow, job, report))
            if retouched is not None:
                notes.append(f"{name} was retouched or made by another program: that is in {retouched} now")

    # Front to back as asked; otherwise, unless all were found now, as they were, with new ones in front.
    asked, new = job.options.order, found.names if found else ()
    known = job.before.objects if job.before and set(new) != set(records) else ()
    known = tuple(name for name in known if name in records)
    guessed = dict.fromkeys((*(name for name in (*new, *records) if name not in known), *known))
    order = (*(name for name in asked if name in records), *(name for name in guessed if name not in asked))
    if len(order) > 1:
        how = "as you asked" if asked else "guessed; --order NAME, front first, sets it"
        notes.append(f"front to back: {', '.join(order)} ({how})")
    written = MaskFolderRecord(
        sha256=job.metadata.sha256,
        size=(job.metadata.width, job.metadata.height),
        frame_count=job.metadata.frame_count,
        frames=frames,
        objects=order,
        order=asked,
        followed_at=job.options.size or "240p",
        edges=job.options.edges or "soft",
        model=job.options.model,
        matte_model=job.options.matte_model,
    )
    write_json(folder / MASKS_FILE, to_mapping(written))
    notes += found.notes if found is not None else ()

    objects, advice = [], []
    for name in order:
        doubts = find_doubts(records[name].confidence, frames.start)
        objects.append(
            SegmentedObject(name, folder / name, records[name].confidence, doubts.check, doubts.lost, name not in kept)
        )
        if doubts.check:
            advice.append(f"{name}: check {', '.join(map(describe_span, doubts.check))}")
        for span in doubts.lost:
            fix = f"{line} --object {name} --frame {span.start} --box x,y,width,height"
            advice.append(f"{name}: lost in {describe_span(span)}; if it is visible, point at it there: {fix}")
    sheet = _write_sheet(job, video, objects)
    return SegmentedVideo(folder, frames, tuple(objects), sheet, tuple(notes), tuple(advice))


def _make_mattes(
    shares: UInt8[np.ndarray, "time height width"], flow: FlowField, job: MaskJob, report: ProgressReporter
) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """Yields a matte at the size of the video for each of its frames; black outside the frames in use."""
    size = (job.metadata.width, job.metadata.height)
    network = choose_matting_network(job.options)
    before = None
    pictures = source_frames(job.metadata, job.frames)
    for number in range(job.metadata.frame_count):
        report(Progress("writing", number, job.metadata.frame_count))
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
