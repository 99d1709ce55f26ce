"""Where a person's joints and outline are in a picture, by small networks that the user has: pose landmarks (BlazePose,
Bazarevsky et al. 2020) and selfie segmentation, as .tflite files, run by LiteRT where that package is installed.

A detector finds the person once; then each frame is cropped where the frame before showed them, upright and square, and
the landmark network says where 33 points are, which are seen, and which pixels are the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.data.landmarks import LANDMARKS, Sighting
from neural_fields.errors import bad_input

_DETECTOR_SIDE, _LANDMARK_SIDE, _SELFIE_SIDE = 224, 256, 256
_STRIDES = ((8, 2), (16, 2), (32, 6))  # of the detector's cells, and guesses a cell
_ENOUGH = 0.5  # probability that somebody is there
_AROUND = 1.25  # side of the crop against twice the way from the hips to the network's edge point


@dataclass(frozen=True)
class _Crop:
    """A square of a picture, turned so that the person in it stands upright."""

    centre: tuple[float, float]
    side: float
    angle: float  # radians, of the square's x axis in the picture

    def matrix(self, size: int) -> Float[np.ndarray, "2 3"]:
        """Takes positions of the crop, `size` pixels wide, to the picture; (0, 0) is the corner of the first pixel."""
        scale = self.side / size
        turn = scale * np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])
        return np.concatenate([turn, np.array(self.centre)[:, None] - turn @ np.full((2, 1), size / 2)], axis=1)

    def cut(self, frame: UInt8[np.ndarray, "height width 3"], size: int) -> Float[np.ndarray, "1 side side 3"]:
        """The crop with colours in [0, 1]; black beyond the picture."""
        values = cv2.warpAffine(frame, _of_centres(self.matrix(size)), (size, size), flags=_INVERSE)
        return values[None].astype(np.float32) / 255

    def put_back(
        self, values: Float[np.ndarray, "side side"], size: tuple[int, int]
    ) -> Float[np.ndarray, "height width"]:
        """A map of the crop as one of the picture of (width, height) `size`; -100 beyond the crop."""
        to_picture = _of_centres(self.matrix(len(values)))
        return cv2.warpAffine(
            values, to_picture, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=-100.0
        )


_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def _of_centres(matrix: np.ndarray) -> np.ndarray:
    """The same map where whole numbers are the centres of pixels, as OpenCV has it."""
    return np.concatenate([matrix[:, :2], (matrix @ (0.5, 0.5, 1.0) - 0.5)[:, None]], axis=1)


@dataclass
class PoseNetwork:
    """The networks of a folder. `look` remembers where the person was: give it the frames of a video in order.

    Attributes:
        detector, landmarker, selfie: LiteRT interpreters; the first two come together.
    """

    detector: Any = None
    landmarker: Any = None
    selfie: Any = None
    _crop: _Crop | None = field(default=None, init=False)

    @staticmethod
    def open(folder: Path | str) -> PoseNetwork:
        """Loads pose_detection.tflite with pose_landmark*.tflite, or selfie_segmentation.tflite, or all of them.

        Raises:
            UserError: no such networks, files that are none, or LiteRT is not installed.
        """
        folder = Path(folder)
        marks = sorted(folder.glob("pose_landmark*.tflite"))
        detector, selfie = folder / "pose_detection.tflite", folder / "selfie_segmentation.tflite"
        poses = detector.is_file() and bool(marks)
        if not poses and not selfie.is_file():
            raise bad_input(
                f"there are no pose networks in {folder}",
                where="--pose-model",
                why="expected pose_detection.tflite with pose_landmark_lite.tflite (or _full, _heavy), "
                "or selfie_segmentation.tflite",
                fix="put these files of MediaPipe into one folder",
            )
        return PoseNetwork(
            _interpreter(detector, ((1, 2254, 12), (1, 2254, 1))) if poses else None,
            _interpreter(marks[0], ((1, 195), (1, 1), (1, 256, 256, 1), (1, 117))) if poses else None,
            _interpreter(selfie, ((1, 256, 256, 1),)) if selfie.is_file() and not poses else None,
        )

    def forget(self) -> None:
        """Another video begins: where the person was says nothing any more."""
        self._crop = None

    def look(self, frame: UInt8[np.ndarray, "height width 3"]) -> Sighting | None:
        """The person in a frame, or None where nobody is found. Of several it is the largest, then the same on."""
        if self.landmarker is None:
            return self._outline(frame)
        for crop in (self._crop, None):
            crop = crop or self._detect(frame)
            found = None if crop is None else self._landmarks(frame, crop)
            if found is not None:
                return found
        self._crop = None
        return None

    def _outline(self, frame: np.ndarray) -> Sighting | None:
        """The person's mask alone, from the whole picture."""
        crop = _whole(frame)
        (values,) = _run(self.selfie, crop.cut(frame, _SELFIE_SIDE), ((1, 256, 256, 1),))
        mask = crop.put_back(values[0, :, :, 0], (frame.shape[1], frame.shape[0])) > 0.5
        nothing = np.zeros((0, 2)), np.zeros(0), np.zeros((0, 3))
        return Sighting(*nothing, mask) if mask.any() else None

    def _detect(self, frame: np.ndarray) -> _Crop | None:
        """Where the largest person is."""
        crop = _whole(frame)
        picture = 2 * crop.cut(frame, _DETECTOR_SIDE) - 1
        boxes, logits = _run(self.detector, picture, ((1, 2254, 12), (1, 2254, 1)))
        logit = logits[0, :, 0]
        if logit.max() < 0:  # a probability of a half
            return None
        points = boxes[0, :, 4:8].reshape(-1, 2, 2) + _DETECTOR_SIDE * _anchors()[:, None]
        likely = np.flatnonzero(logit > max(0.0, float(logit.max()) - 2))
        size = np.linalg.norm(points[likely, 1] - points[likely, 0], axis=1)
        hips, edge = _mapped(crop.matrix(_DETECTOR_SIDE), points[likely[int(size.argmax())]])
        return _around(hips, edge)

    def _landmarks(self, frame: np.ndarray, crop: _Crop) -> Sighting | None:
        """What the landmark network sees in a crop; None if that is nobody. Remembers where to look next."""
        shapes = (1, 195), (1, 1), (1, 256, 256, 1), (1, 117)
        flat, score, outline, flat_world = _run(self.landmarker, crop.cut(frame, _LANDMARK_SIDE), shapes)
        if float(score[0, 0]) < _ENOUGH:
            return None
        marks, count = flat.reshape(39, 5).astype(np.float64), len(LANDMARKS)
        pixels = _mapped(crop.matrix(_LANDMARK_SIDE), marks[:, :2])
        self._crop = _around(pixels[count], pixels[count + 1])  # two more points say where the body is
        visible = _sigmoid(marks[:count, 3]) * _sigmoid(marks[:count, 4])
        world = flat_world.reshape(39, 3)[:count].astype(np.float64)
        turn = np.array([[np.cos(crop.angle), -np.sin(crop.angle)], [np.sin(crop.angle), np.cos(crop.angle)]])
        world[:, :2] = world[:, :2] @ turn.T
        mask = crop.put_back(outline[0, :, :, 0], (frame.shape[1], frame.shape[0])) > 0
        return Sighting(pixels[:count], visible, world, mask)


def _interpreter(path: Path, shapes: Sequence[tuple[int, ...]]) -> Any:
    """A network, ready to run, that gives tensors of these shapes."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise bad_input(
            "the pose networks need LiteRT, which is not installed",
            where="--pose-model",
            fix="pip install 'unwrap-video[pose]'",
        ) from None
    try:
        network = Interpreter(model_path=str(path), num_threads=1)
        network.allocate_tensors()
        given = {tuple(int(side) for side in entry["shape"]) for entry in network.get_output_details()}
    except (ValueError, RuntimeError, OSError) as error:
        raise bad_input(f"{path.name} cannot be read", where=str(path), why=str(error).splitlines()[0]) from None
    if not set(shapes) <= given:
        raise bad_input(f"{path.name} is another network", where=str(path), why=f"its outputs are {sorted(given)}")
    return network


def _run(network: Any, picture: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The outputs of these shapes. Networks of one kind order them differently."""
    network.set_tensor(network.get_input_details()[0]["index"], picture.astype(np.float32))
    network.invoke()
    found = {tuple(int(side) for side in entry["shape"]): entry["index"] for entry in network.get_output_details()}
    return [network.get_tensor(found[shape]) for shape in shapes]


def _anchors() -> Float[np.ndarray, "guesses 2"]:
    """Centres of the detector's cells in shares of its picture, each as often as it guesses."""
    found = []
    for stride, guesses in _STRIDES:
        side = _DETECTOR_SIDE // stride
        y, x = np.mgrid[:side, :side]
        found.append(np.repeat((np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) / side, guesses, axis=0))
    return np.concatenate(found)


def _whole(frame: np.ndarray) -> _Crop:
    """The square around a picture."""
    height, width = frame.shape[:2]
    return _Crop((width / 2, height / 2), float(max(width, height)), 0.0)


def _around(hips: np.ndarray, edge: np.ndarray) -> _Crop:
    """The crop of a body, from the middle of its hips and a point as far above as the circle around it reaches."""
    way = edge - hips
    return _Crop(
        (float(hips[0]), float(hips[1])),
        2 * _AROUND * max(float(np.linalg.norm(way)), 8.0),
        float(np.pi / 2 - np.arctan2(-way[1], way[0])),
    )


def _mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.clip(-50, 50)))
