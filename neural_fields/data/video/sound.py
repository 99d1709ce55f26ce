"""Sound of the source, copied packet by packet and never encoded again.

Which tracks an output can hold is tried, with every packet, before the first frame is encoded: no render ends because
of its sound. A track that cannot be copied is left out, with a note that names an output that was tried too.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av

from neural_fields.data.video.metadata import Recording

log = logging.getLogger(__name__)

# FFmpeg's names of the containers of our outputs.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


class _Nowhere(io.RawIOBase):
    """A file that forgets what is written to it: an output is tried without any room."""

    def __init__(self) -> None:
        self.at = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (self.at if whence == 1 else 0)
        return self.at

    def write(self, data: Any) -> int:
        self.at += len(data)
        return len(data)


@dataclass(frozen=True)
class SoundPart:
    """The part of the source's sound that an output has; all times are seconds in the time of the frames.

    Attributes:
        recordings: what the file puts together, and where it goes.
        start: where the part starts; None from the beginning, with what sounds before the first frame.
        end: where it ends; None at the end of the sound.
        shift: seconds to subtract, so that a part starts where the source starts.
    """

    recordings: tuple[Recording, ...]
    start: Fraction | None = None
    end: Fraction | None = None
    shift: Fraction = Fraction(0)


@dataclass
class _Track:
    """Where one track is while its packets are placed."""

    rate: int  # samples a second
    samples: int  # in each packet; 0 where it differs
    sample_bytes: int  # of all channels, for PCM; otherwise 0
    is_opus: bool
    end: Fraction | None  # seconds: where the file says that the sound ends
    recording: int = 0
    stamp: Fraction | None = None  # of the last packet, as in the file
    reached: Fraction | None = None  # seconds: where the last packet ends
    usual: Fraction = Fraction(0)  # seconds: the longest packet
    written: int | None = None  # stamp of the last packet in the output

    def find_length(self, packet: Any, tick: Fraction) -> Fraction:
        """Returns how long a packet sounds, exactly where its codec says it, in seconds."""
        length = (packet.duration or 0) * tick
        samples = packet.size // self.sample_bytes if self.sample_bytes else self.samples
        if samples and self.rate and abs(length - Fraction(samples, self.rate)) <= tick:
            return Fraction(samples, self.rate)
        return length or self.usual


def place_packets(container: Any, indices: Sequence[int], part: SoundPart) -> Iterator[Any]:
    """Yields the sound packets of a part of the source, with their times in the output.

    Packets of a later recording are moved with its frames, and those that would sound together with the recording
    before it are dropped. Stamps that a container rounded to thousandths become exact again where packets of known
    length follow each other.

    Args:
        container: the source.
        indices: streams that are wanted.
        part: the part.
    """
    tracks = {}
    for index in indices:
        stream, context = container.streams[index], container.streams[index].codec_context
        name = context.codec.canonical_name
        is_pcm = name.startswith("pcm_")
        width = int((re.findall(r"\d+", name) or ["8"])[0]) // 8 * context.layout.nb_channels if is_pcm else 0
        samples = 0 if is_pcm else context.frame_size or 0
        end = None
        if container.format.name.startswith("mov") and stream.duration is not None:
            end = ((stream.start_time or 0) + stream.duration) * Fraction(stream.time_base) + part.recordings[0].shift
        tracks[index] = _Track(context.sample_rate or 0, samples, width, name == "opus", end)
    for packet in container.demux([container.streams[index] for index in indices]):
        if packet.size == 0 or packet.pts is None:
            continue
        track, tick = tracks[packet.stream_index], Fraction(packet.time_base)
        stamp, length = packet.pts * tick, track.find_length(packet, tick)
        is_rounded = track.rate > 0 and tick * track.rate > 1

        # A jump back, or out of the recording, leads to the next one that holds the stamp.
        if track.stamp is not None and not -2 * length <= stamp - track.stamp <= 10:
            later = range(track.recording + 1, len(part.recordings))
            holding = (k for k in later if part.recordings[k].start - 1 <= stamp <= part.recordings[k].end + 1)
            track.recording = next(holding, track.recording)
        is_exact = bool(track.samples or track.sample_bytes) or (track.is_opus and (200 * length).denominator == 1)
        if is_exact:
            track.usual = max(track.usual, length)
        elif track.stamp is not None and stamp > track.stamp and not track.is_opus:
            track.usual = max(track.usual, min(stamp - track.stamp, Fraction(1)))
        track.stamp, time = stamp, stamp + part.recordings[track.recording].shift

        # Players leave out so many samples at the start and at the end of a packet.
        trims = bytes(packet.get_sidedata("skip_samples")) if packet.has_sidedata("skip_samples") else bytes(8)
        skipped, trimmed = int.from_bytes(trims[:4], "little"), int.from_bytes(trims[4:8], "little")
        if is_rounded and track.reached is None and skipped and abs(time + Fraction(skipped, track.rate)) <= tick:
            time = -Fraction(skipped, track.rate)
        elif is_rounded and track.reached is not None and abs(time - track.reached) <= tick and is_exact:
            time = track.reached
        if trimmed and track.usual and track.rate:
            length = min(length, max(tick, track.usual - Fraction(trimmed, track.rate)))
        if track.end is not None and time < track.end:  # MP4 says the end of the sound by its list of edits alone
            length = min(length, track.end - time)
        if track.recording and track.reached is not None and time < track.reached - length / 2 - tick:
            continue  # it would sound together with the end of the recording before it
        track.reached = time + length
        if (part.start is not None and time < part.start) or (part.end is not None and time >= part.end):
            continue
        fine = Fraction(1, track.rate) if is_rounded else tick
        packet.time_base = fine
        packet.pts = packet.dts = round((time - part.shift) / fine)
        packet.duration = round(length / fine)
        if track.written is None or packet.pts > track.written:
            track.written = packet.pts
            yield packet


@dataclass
class TrackTrial:
    """What a trial said about one sound track: why it does not fit (empty when it does), and where it starts."""

    reason: str = ""
    start: Fraction | None = None  # seconds in the output


def try_sound_tracks(source: Any, form: str, part: SoundPart | None) -> dict[int, TrackTrial]:
    """Tries which sound tracks a container can hold.

    Args:
        source: the open source.
        form: FFmpeg's name of the container.
        part: copies every packet of this part as a trial; None tries only the header.

    Returns:
        What was found about each sound stream, by its index.
    """
    found = {stream.index: TrackTrial() for stream in source.streams.audio}
    outputs: dict[int, tuple[Any, Any]] = {}
    errors = (av.error.FFmpegError, ValueError, RuntimeError, TypeError)
    for stream in source.streams.audio:
        trial = found[stream.index]
        if stream.codec_context is None:
            trial.reason = "because its codec is unknown"
        elif form == "mp4" and stream.codec_context.codec.canonical_name.startswith("pcm_"):
            trial.reason = "because players take uncompressed sound in MP4 for noise, or ignore it"
        else:
            try:
                out = av.open(_Nowhere(), "w", format=form)
                outputs[stream.index] = out, out.add_stream_from_template(stream)
                out.start_encoding()
            except errors:
                trial.reason = "which cannot hold it"
    with suppress(*errors):  # a source that cannot be read further ends here, also when it is copied
        for packet in place_packets(source, list(outputs), part) if part is not None and outputs else ():
            trial, (out, track) = found[packet.stream_index], outputs[packet.stream_index]
            if trial.start is None:
                trial.start = packet.pts * Fraction(packet.time_base)
            if not trial.reason:
                try:
                    packet.stream = track
                    out.mux(packet)
                except errors as error:
                    trial.reason = f"because copying it fails ({getattr(error, 'strerror', None) or error})"
    for index, (out, _) in outputs.items():
        trial = found[index]
        try:
            out.close()
        except errors:
            trial.reason = trial.reason or "which cannot hold it"
        if part is not None and part.start is None and part.end is None and trial.start is None:
            trial.reason = trial.reason or "because none of its packets can be read"
    return found


@dataclass
class SoundCopier:
    """Copies the sound packets of the source, in step with the film."""

    packets: Iterator[Any]  # placed
    tracks: dict[int, Any]  # stream index in the source: stream of the output
    delays: dict[int, Fraction]  # seconds that Matroska subtracts from the stamps of a track, by the same index
    waiting: Any = None
    lost: int = field(default=0)

    def copy_packets(self, out: Any, until: Fraction | None) -> None:
        """Copies what starts before `until` (seconds in the output), or all that is left."""
        while True:
            try:
                packet = self.waiting or next(self.packets, None)
            except av.error.InvalidDataError as error:
                log.warning("the sound cannot be read to its end: %s", error.strerror)
                return
            self.waiting = None
            if packet is None:
                return
            if until is not None and packet.pts * packet.time_base >= until:
                self.waiting = packet
                return
            if delay := self.delays.get(packet.stream_index):
                packet.pts = packet.dts = packet.pts + round(delay / packet.time_base)
            packet.stream = self.tracks[packet.stream_index]
            try:
                out.mux(packet)
            except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                if not self.lost:
                    log.warning("a packet of the sound is left out: %s", error.strerror)
                self.lost += 1
