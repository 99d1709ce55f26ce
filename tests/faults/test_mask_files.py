"""Masks read from files: what is in them is what a layer becomes, or the error says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from neural_fields.core.errors import UserError
from neural_fields.data.capture.camera_matching import assign_cameras
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks, mask_iou
from neural_fields.data.masks.mask_meaning import read_one_mask
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.metadata import VideoMetadata, make_metadata
from neural_fields.evaluation.evaluate_planar import evaluate
from neural_fields.evaluation.options import EvalOptions
from neural_fields.export.base import Exporter, export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.mattes import LayersExporter, MatteExporter
from neural_fields.training.options import TrainOptions
from neural_fields.training.train import train
from tests.support import true_run
from tests.support.true_run import TrueRun

WIDTH, HEIGHT, COUNT = 96, 64, 8
CLIP = make_metadata((WIDTH, HEIGHT), COUNT, Fraction(24))
Y, X = np.mgrid[:HEIGHT, :WIDTH]
DISC = np.stack([np.clip(15 - np.hypot(X - 24 - 5 * t, Y - 30), -3, 3) / 6 + 0.5 for t in range(COUNT)])
BOX = np.stack([(abs(X - 76 + 2 * t) < 8) & (abs(Y - 54) < 7) for t in range(COUNT)])
MATTE = np.rint(255 * DISC).astype(np.uint8)
MASK = MATTE >= 128
IDS = np.where(BOX, 2, np.where(MASK, 1, 0)).astype(np.uint8)
DAVIS = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def load(path: object, frames: range | None = None, clip: VideoMetadata = CLIP) -> LayerMasks:
    return load_masks([str(path)], clip, (clip.width, clip.height), frames)


def refuse(path: object, frames: range | None = None, clip: VideoMetadata = CLIP) -> str:
    with pytest.raises(UserError) as caught:
        load(path, frames, clip)
    return f"{caught.value.what}\n{caught.value.why}\n{caught.value.fix}"


def save(
    folder: Path, pictures: Sequence[Any] | np.ndarray, numbers: Sequence[int] = range(COUNT), **options: Any
) -> Path:
    folder.mkdir(parents=True)
    for number, picture in zip(numbers, pictures, strict=True):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(folder / f"{number:05d}.png", **options)
    return folder


def with_palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(DAVIS)
    return image


def save_array(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


# --- one scale for all pictures of a layer ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8.npy", "float64.npy", "float.npy", "8 bit", "16 bit", "hard"])
def test_f22_a_frame_of_noise_stays_empty(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH))
    eight, deep = MATTE.copy(), np.rint(DISC * 65535).astype(np.uint16)
    eight[-1], deep[-1] = np.rint(noise), noise * 219
    hard = 255 * (eight > 127).astype(np.uint8)
    hard[-1] = eight[-1]
    arrays = {"uint8.npy": eight, "float64.npy": np.float64(eight), "float.npy": np.float32(eight / 255)}
    pictures = {"8 bit": eight, "16 bit": deep, "hard": hard}
    path = tmp_path / kind
    found = load(save_array(path, arrays[kind]) if kind in arrays else save(path, list(pictures[kind])))
    assert found.names == ("foreground",)
    assert not found.masks[0, -1].any() and mask_iou(found.masks[0, :-1], MASK[:-1]) == 1
    assert (found.shares is None) == (kind == "hard") and (found.shares is None or not found.shares[0, -1].any())
    # The scale does not depend on the frames in use either.
    assert mask_iou(load(path, range(6, 8)).masks[0, 0], MASK[6]) == 1
    assert "empty on every frame" in refuse(path, range(7, 8))


@pytest.mark.parametrize(
    "values, words",
    [
        (20 * DISC - 10, "from -10 to 10\nthese look like logits"),
        (12 * DISC, "from 0 to 12\nneither 0 to 1 nor 0 to 255"),
        (np.where(MASK, 1e10, 0), "from 0 to 1e+10\nneither 0 to 1 nor 0 to 255"),
        (np.where(MASK, np.nan, 0), "nan at row"),
        (IDS.astype(np.int32) - 1, "from -1 to 1"),
        (MATTE // 3, "is white"),
    ],
)
def test_f22_numbers_that_are_no_shares_are_named(tmp_path: Path, values: np.ndarray, words: str) -> None:
    assert words in refuse(save_array(tmp_path / "m.npy", values))


# --- numbers of files are those of frames ----------------------------------------------------------------------------


def test_f25_masks_belong_to_numbered_frames(tmp_path: Path) -> None:
    gap = save(tmp_path / "gap", MATTE, [0, 1, 2, 4, 5, 6, 7, 8])
    assert "without a mask: frames 3; without a frame: masks 8" in refuse(gap)
    keys = save(tmp_path / "keys", MATTE[::2], [0, 2, 4, 6])
    assert "frames 1, 3\n" in refuse(keys, range(4)) and "--frames 0:7:2" in refuse(keys)
    assert mask_iou(load(keys, range(0, 8, 2)).masks[0], MASK[::2]) == 1
    part = save(tmp_path / "part", MATTE[2:6], [2, 3, 4, 5])
    assert "frames 0, 1\n" in refuse(part, range(4)) and "--frames 2:6" in refuse(part, range(4))
    assert mask_iou(load(part, range(3, 5)).masks[0], MASK[3:5]) == 1
    assert "frames 0, 1; without a frame: masks 8, 9" in refuse(save(tmp_path / "late", MATTE, range(2, 10)))


def test_f25_a_whole_set_may_count_from_another_first_number(tmp_path: Path) -> None:
    numbered = replace(CLIP, first_number=1001)
    for first in (0, 1, 1001):
        folder = save(tmp_path / f"{first}", MATTE, range(first, first + COUNT))
        for clip in (CLIP, numbered):
            start = clip.first_number
            found = load(folder, range(start + 2, start + 5), clip)
            assert mask_iou(found.masks[0], MASK[2:5]) == 1
            assert bool(found.notes) == (first != start), "it is said where numbers are not those of the frames"


def test_f25_names_that_do_not_tell_the_frame_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", MATTE)
    (folder / "00003.png").rename(folder / "3.jpg.png")
    assert "'3.jpg.png' has no number" in refuse(folder)
    (folder / "3.jpg.png").rename(folder / "3.png")
    (folder / "0003.png").write_bytes((folder / "3.png").read_bytes())
    assert "two masks have the number 3" in refuse(folder)


# --- alpha -----------------------------------------------------------------------------------------------------------


def test_f26_alpha_is_the_mask(tmp_path: Path) -> None:
    dark = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    half = np.where(Y[..., None] < 30, np.uint8(0), dark + 120)
    for name, color in (("half", half), ("dark", dark), ("white", dark + 255)):
        found = load(save(tmp_path / name, [np.dstack([color, alpha]) for alpha in MATTE]))
        assert found.shares is not None and np.array_equal(found.shares[0], MATTE), name
    for alpha in (0, 255):
        pictures = [np.dstack([matte] * 3 + [np.full_like(matte, alpha)]) for matte in MATTE]
        found = load(save(tmp_path / f"{alpha}", pictures))
        assert found.shares is not None and np.array_equal(found.shares[0], MATTE)
    (tmp_path / "half" / "00002.png").write_bytes((save(tmp_path / "gray", MATTE) / "00002.png").read_bytes())
    assert "00002.png has no transparency" in refuse(tmp_path / "half")


def test_f26_a_cut_out_is_a_hint_too(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([MATTE[0] * 0] * 3 + [MATTE[0]])).save(tmp_path / "cut.png")
    with_palette(IDS[0]).save(tmp_path / "ids.png")
    assert np.array_equal(read_one_mask(tmp_path / "cut.png"), MASK[0])
    with pytest.raises(UserError, match="holds 2 objects"):
        read_one_mask(tmp_path / "ids.png")


def test_f26_the_alpha_of_webm_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "m.webm"), "w") as file:
        stream = file.add_stream("libvpx-vp9", rate=24)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuva420p"
        for matte in MATTE:
            rgba = np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), matte])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        file.mux(stream.encode(None))
    assert mask_iou(load(tmp_path / "m.webm").masks[0], MASK) > 0.98


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> TrueRun:
    return true_run.make(tmp_path_factory.mktemp("masks"), make_demo_clip(6, WIDTH, HEIGHT))


@pytest.mark.slow
@pytest.mark.parametrize("exporter", [MatteExporter, LayersExporter])
@pytest.mark.parametrize("format", ["png", "exr", "prores4444"])
def test_f27a_exported_mattes_come_back(shown: TrueRun, tmp_path: Path, exporter: type[Exporter], format: str) -> None:
    if format == "exr":
        pytest.importorskip("OpenEXR")
    export_run(shown.run, exporter(format=format), ExportOptions(out=tmp_path / "out"))  # type: ignore[call-arg]
    given = "foreground.mov" if format == "prores4444" else "foreground"
    clip = make_metadata((shown.clip.width, shown.clip.height), shown.clip.count, Fraction(24))
    found = load(tmp_path / "out" / given, clip=clip)
    assert mask_iou(found.masks[0], shown.clip.alpha[0] >= 0.5) > 0.99
    assert found.shares is not None and np.abs(found.shares[0] / 255 - shown.clip.alpha[0]).mean() < 0.004
    assert f"--masks foreground={tmp_path / 'out' / given}" in refuse(tmp_path / "out", clip=clip)


# --- files -----------------------------------------------------------------------------------------------------------


def test_f29_hidden_files_and_folders_are_no_masks(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", MATTE)
    for name in ("._00000.png", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    save(folder / "old.png", MATTE)
    assert mask_iou(load(folder).masks[0], MASK) == 1


def test_f30_pages_are_read_or_named(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(np.uint8(255) * mask) for mask in MASK)
    for name in ("m.gif", "m.tif", "m.png", "m.webp"):
        options: dict[str, Any] = {"lossless": True} if name == "m.webp" else {}
        first.save(tmp_path / name, save_all=True, append_images=others, **options)
        assert mask_iou(load(tmp_path / name).masks[0], MASK) == 1, name
    still = [first, others[0], others[0], others[0], *others[3:]]  # equal frames are stored once
    first.save(tmp_path / "still.gif", save_all=True, append_images=still[1:], duration=40)
    assert mask_iou(load(tmp_path / "still.gif").masks[0], MASK[[0, 1, 1, 1, 4, 5, 6, 7]]) == 1
    np.savez(tmp_path / "one.npz", masks=MASK)
    assert mask_iou(load(tmp_path / "one.npz").masks[0], MASK) == 1
    np.savez(tmp_path / "two.npz", cat=MASK, dog=BOX)
    assert "two.npz holds 2 arrays: cat, dog" in refuse(tmp_path / "two.npz")
    (tmp_path / "m.json").write_text("{}")
    assert "m.json holds no masks that can be read\nmasks are a folder" in refuse(tmp_path / "m.json")
    folder = save(tmp_path / "m", MATTE)
    (folder / "00003.png").write_bytes((tmp_path / "m.png").read_bytes())
    assert "00003.png holds 8 pictures (PNG)" in refuse(folder)


@pytest.mark.parametrize("shape", ["t1hw", "thw1", "thwc"])
def test_f30_axes_of_arrays_are_told_apart(tmp_path: Path, shape: str) -> None:
    values = {"t1hw": MASK[:, None], "thw1": MASK[..., None], "thwc": np.repeat(MATTE[..., None], 3, -1)}[shape]
    assert mask_iou(load(save_array(tmp_path / "m.npy", values)).masks[0], MASK) == 1
    assert "time comes last" in refuse(save_array(tmp_path / "n.npy", np.moveaxis(MASK, 0, -1)))


def test_f31_rotation_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", MATTE)
    turned = replace(CLIP, width=HEIGHT, height=WIDTH, rotation=90)
    assert "turn it by 90 degrees clockwise" in refuse(folder, clip=turned)
    assert "turn the masks by 90 degrees clockwise" in refuse(folder, clip=turned)
    (note,) = load(folder, clip=replace(CLIP, rotation=180)).notes
    assert "stored turned by 180 degrees: masks must be upright" in note
    assert not load(folder).notes


def test_f31_the_rotation_is_named_for_cameras_too(tmp_path: Path) -> None:
    camera = "size = [96, 64]\nmatrix = [[80, 0, 48], [0, 80, 32], [0, 0, 1]]\ndistortions = [0, 0, 0, 0, 0]\n"
    (tmp_path / "one.toml").write_text(f"[cam]\n{camera}rotation = [0, 0, 0]\ntranslation = [0, 0, 0]\n")
    for rotation, words in ((0, ""), (180, "stored turned by 180 degrees")):
        notes: list[str] = []
        assign_cameras(tmp_path / "one.toml", [replace(CLIP, path="a.mp4", rotation=rotation)], range(8), notes)
        assert ("stored turned" in " ".join(notes)) == bool(words) and words in " ".join(notes)


# --- ids are objects -------------------------------------------------------------------------------------------------


def make_id_files(kind: str, home: Path) -> Path:
    void = np.where(X < 4, np.uint8(255), IDS)
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    pictures: dict[str, list[Any]] = {
        "palette": [with_palette(ids) for ids in IDS],
        "gray": list(IDS),
        "spaced": list(127 * IDS),
        "void": list(void),
        "16 bit": [np.where(ids > 0, ids + np.uint16(999), np.uint16(0)) for ids in IDS],
        "color": [colors[ids] for ids in IDS],
        "mixed": [*map(with_palette, IDS[:-1]), IDS[-1] * 0],
    }
    arrays = {"ids.npy": IDS.astype(np.int64), "nthw.npy": np.stack([MASK & ~BOX, BOX]), "tn1hw.npy": np.empty(0)}
    arrays["tn1hw.npy"] = arrays["nthw.npy"].swapaxes(0, 1)[:, :, None]
    if kind in arrays:
        return save_array(home / kind, arrays[kind])
    options: dict[str, Any] = {"transparency": 0} if kind == "clear" else {}
    return save(home / kind, pictures[kind if kind != "clear" else "palette"], **options)


@pytest.mark.parametrize(
    "kind",
    [
        "palette",
        "clear",
        "gray",
        "spaced",
        "void",
        "16 bit",
        "color",
        "mixed",
        "ids.npy",
        "nthw.npy",
        "tn1hw.npy",
    ],
)
def test_u14_each_id_is_a_layer(tmp_path: Path, kind: str) -> None:
    path = make_id_files(kind, tmp_path)
    found = load(path)
    values = {"spaced": (127, 254), "16 bit": (1000, 1001)}.get(kind, (1, 2))
    assert found.names == tuple(f"object-{value}" for value in values)
    wanted = np.stack([IDS == 1, IDS == 2])
    if kind == "void":
        wanted &= X >= 4
    if kind == "mixed":  # the frame without an object is gray
        wanted[:, -1] = False
    assert np.array_equal(found.masks, wanted) and found.shares is None
    assert "a layer each" in found.notes[0] and ("255" in found.notes[0]) == (kind == "void")
    named = load(f"pets={path}")
    assert named.names == ("pets",) and np.array_equal(named.masks[0], wanted.any(0))
    assert "one layer, pets" in named.notes[0]


def test_u14_grays_are_no_ids(tmp_path: Path) -> None:
    trimap = [np.where(share > 0.9, 255, np.where(share > 0.02, 128, 0)).astype(np.uint8) for share in DISC]
    few = [np.rint(255 * np.rint(4 * share) / 4).astype(np.uint8) for share in DISC]  # antialiased in 4 steps
    plateau = MATTE.copy()
    plateau[:, :20] = np.maximum(plateau[:, :20], 2)
    plateau[plateau > 250] = 253
    blur = [(127 * MASK[max(t - 1, 0)] + 128 * MASK[t]).astype(np.uint8) for t in range(COUNT)]
    blocks = [np.kron(matte[2::8, 2::8] // 64 * 85, np.ones((8, 8), np.uint8)) for matte in MATTE]
    grays = {"trimap": trimap, "few": few, "plateau": list(plateau), "blur": blur, "blocks": blocks}
    for name, pictures in grays.items():
        assert load(save(tmp_path / name, pictures)).names == ("foreground",), name


def test_u14_colors_that_compression_changed_and_frames_of_a_film_are_refused(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [250, 0, 0], [0, 0, 250]], np.uint8)[IDS]
    (tmp_path / "jpeg").mkdir()
    for number, picture in enumerate(colors):
        Image.fromarray(picture).save(tmp_path / "jpeg" / f"{number}.jpg")
    assert "several colors, which their compression has changed" in refuse(tmp_path / "jpeg")
    film = np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert "frames of a film?" in refuse(save(tmp_path / "film", list(film)))


# --- before any work -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_u15_wrong_masks_are_said_before_any_work(
    shown: TrueRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = shown.run.path.parent / "clip.mkv"
    few = save(tmp_path / "few", MATTE)
    wrong = save(tmp_path / "wrong", [np.zeros((32, 32), np.uint8)] * 6, range(6))
    white = save_array(tmp_path / "white.npy", np.ones(shown.clip.masks[0].shape, bool))
    monkeypatch.chdir(tmp_path)
    for spec, words in (
        ("typo", "no mask folder or file typo"),
        ("car=typo/%05d.png", "no mask folder or file"),
        (str(few), "8 masks, the clip has 6 frames"),
        (str(wrong), "00000.png is 32x32"),
        (str(white), "look inverted"),
        (f"../car={white}", "no mask folder or file"),
        (f"background={white}", "background"),
    ):
        with pytest.raises(UserError) as caught:
            train(video, TrainOptions(Path("runs/new"), masks=(spec,)))
        assert words in caught.value.what and not Path("runs").exists(), "a typo leaves nothing behind"
        cache = sorted(shown.run.cache.glob("*"))
        with pytest.raises(UserError) as caught:
            evaluate(shown.run, EvalOptions(masks=(spec,)))
        assert words in caught.value.what and sorted(shown.run.cache.glob("*")) == cache


@pytest.mark.slow
def test_u15_true_masks_are_those_of_the_layers_that_they_name(shown: TrueRun, tmp_path: Path) -> None:
    path = save_array(tmp_path / "m.npy", shown.clip.masks[0])
    named = evaluate(shown.run, EvalOptions(masks=(f"foreground={path}",)))["alpha_iou"]
    with pytest.raises(UserError, match="there is no front layer car"):
        evaluate(shown.run, EvalOptions(masks=(f"car={path}",)))
    ids = save(tmp_path / "ids", [2 * mask.astype(np.uint8) for mask in shown.clip.masks[0]], range(6))
    assert evaluate(shown.run, EvalOptions(masks=(str(ids),)))["alpha_iou"] == named
