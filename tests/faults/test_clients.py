"""Files for other programs: what those programs make of them, and what they save is taken back. Rows C of the page."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from editors.api import edit
from editors.cli.main import main
from editors.core import stack
from editors.effects.place import Place
from editors.inputs.document import read_document_overlays
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.smpl import compute_smpl_motion, read_smpl
from neural_fields.data.capture.transforms_json import PosedImage, read_transforms, write_transforms
from neural_fields.edits.record import EditOrigin
from neural_fields.export.base import export_run
from neural_fields.export.maps.stmap import STMapExporter
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.export.tracks.point_input import read_points
from neural_fields.export.tracks.tracks import TracksExporter
from neural_fields.imaging.documents.layered import BASE, PAINT, DocumentLayer, LayeredDocument, constant_pixels
from neural_fields.imaging.documents.openraster import write_ora
from neural_fields.imaging.documents.psd import read_psd, write_psd
from neural_fields.imaging.image_io import read_picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.render_planar import open_passes
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

# Interpreters that have bpy: this one, and those that the variable names, such as of other versions of Blender.
BLENDERS = [sys.executable] if importlib.util.find_spec("bpy") else []
BLENDERS += [name for name in os.environ.get("UNWRAP_TEST_BLENDERS", "").split(os.pathsep) if name]


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> PlanarRun:
    """A copy of the run with true maps, whose edits a test may change."""
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return require_planar(tmp_path / "run", "the test")


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((found.astype(float) - wanted) ** 2))))


def paint_star(run: PlanarRun, layer: str, scale: int) -> None:
    """Adds a soft-edged star, painted on the layer's picture at `scale` times its size, as an edit."""
    picture = run.canonical(layer)
    width, height = (scale * side for side in picture.size)
    turns = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.17, 0.42)[:, None] * min(width, height)
    corners = np.array([width, height]) / 2 + radius * np.stack([np.sin(turns), -np.cos(turns)], axis=1)
    alpha = cv2.fillPoly(np.zeros((height, width), np.uint8), [np.round(corners).astype(int)], 255, cv2.LINE_AA)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 2.0 * scale)
    rgba = np.dstack([np.full_like(alpha, value) for value in (230, 50, 30)] + [alpha])
    rgba[alpha == 0] = 0
    overlay = Overlay((rgba / 255).astype(np.float32), picture.box)
    stack.add_edit(run.files, "star", {layer: overlay}, EditOrigin(editor="image"))
    run.refresh_edits()


def read_numbers(folder: Path) -> dict[str, list[int]]:
    """The first and the last number of a run's frames in each file of comps and tracks."""
    comp = (folder / "nk/comp.nk").read_text()
    scripts = {name: (folder / name).read_text() for name in ("blender/comp_blender.py", "tracks/tracks_blender.py")}
    nuke = [int(key) for key in re.findall(r" x(\d+) -?\d+\.\d{6}", (folder / "tracks/tracks.nk").read_text())]
    rows = list(csv.DictReader((folder / "tracks/tracks.csv").read_text().splitlines()))
    markers = [int(key) for key in re.findall(r"\((\d+), ", scripts["tracks/tracks_blender.py"].split("TRACKS")[1])]
    read = re.search(r"frame_mode \"start at\"\n frame (\d+)", comp)
    start = re.search(r"FIRST, LAST, STEP = (\d+), (\d+)", scripts["blender/comp_blender.py"])
    root = re.search(r" first_frame (\d+)\n last_frame (\d+)", comp)
    assert read and start and root
    source = re.search(r"'MOVIE', (\d+), (\d+), 1\)", scripts["blender/comp_blender.py"])
    clip = re.search(r"FIRST = (\d+)", scripts["tracks/tracks_blender.py"])
    assert source and clip and int(source[1]) == int(clip[1]) == int(read[1])  # where the film itself begins
    return {
        "comp.nk": [int(root[1]), int(root[2])],
        "comp_blender.py": [int(start[1]), int(start[2])],
        "tracks.nk": [min(nuke), max(nuke)],
        "tracks_blender.py": [min(markers), max(markers)],
        "tracks.csv": [int(rows[0]["frame"]), int(rows[-1]["frame"])],
    }


# --- maps and comps ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not BLENDERS, reason="bpy is not installed (pip install bpy), nor named in UNWRAP_TEST_BLENDERS")
@pytest.mark.parametrize("blender", BLENDERS)
def test_c1_soft_paint_stays_soft_in_blender(run: PlanarRun, tmp_path: Path, blender: str) -> None:
    pytest.importorskip("OpenEXR", reason="OpenEXR is not installed: the extra `exr`")
    paint_star(run, "foreground", 1)
    paint_star(run, "background", 1)
    export_run(
        run, STMapExporter(convention="blender", direction="forward", every=2), ExportOptions(out=tmp_path / "comp")
    )
    program = Path(__file__).parents[1] / "support/blender_comp.py"
    frames = (0, 1, 6, 11)
    done = subprocess.run([blender, str(program), str(tmp_path / "comp"), *map(str, frames)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    sources, passes = list(run.iterate_frames()), open_passes(run)
    for t, shown in zip(frames, np.rint(255 * np.load(tmp_path / "comp/blender.npy")), strict=True):
        wanted = passes.render_frame(t, sources[t]) if t % 2 == 0 else sources[t]  # C3: without a map, the source
        painted = (wanted != sources[t]).any(axis=-1)
        assert np.abs(shown - sources[t])[~painted].max() <= 1
        assert not painted.any() or psnr(shown[painted], wanted[painted]) > 35


def test_c2_an_unsaved_file_is_refused(run: PlanarRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("OpenEXR", reason="OpenEXR is not installed: the extra `exr`")
    exporter = STMapExporter(convention="blender", every=20, direction="forward", size="32x18")
    export_run(run, exporter, ExportOptions(out=tmp_path / "comp"))
    blender: Any = ModuleType("bpy")  # without a scene: whoever asks for it fails otherwise
    blender.app = SimpleNamespace(version=(5, 0, 1), version_string="5.0.1")
    monkeypatch.setitem(sys.modules, "bpy", blender)
    for saved, words in (("", "save this file"), (str(tmp_path / "elsewhere.blend"), "not found from .*clip.mkv")):
        blender.data = SimpleNamespace(filepath=saved)
        with pytest.raises(RuntimeError, match=words):
            runpy.run_path(str(tmp_path / "comp/comp_blender.py"))
    blender.data, blender.app.version = SimpleNamespace(filepath=""), (3, 4, 1)
    with pytest.raises(RuntimeError, match=r"Blender 4\.2 or newer"):
        runpy.run_path(str(tmp_path / "comp/comp_blender.py"))


def test_c3_frames_without_a_map_show_the_source(run: PlanarRun, tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR", reason="OpenEXR is not installed: the extra `exr`")
    exporter = STMapExporter(convention="blender", every=5, direction="forward", size="32x18")
    export_run(run, exporter, ExportOptions(out=tmp_path / "comp"))
    script = (tmp_path / "comp/comp_blender.py").read_text()
    assert "FIRST, LAST, STEP = 0, 10, 5" in script and "END = 11" in script
    shares = re.search(r'has_map = "(.*)" % \((.*)\)', script)
    assert shares is not None
    expression = shares[1] % (0, 10, 0, 5)  # of the driver of what lies over the source
    assert shares[2] == "FIRST, LAST, FIRST, STEP"
    shown = [frame for frame in range(-3, 20) if eval(expression, {"frame": frame, "fmod": lambda a, b: a % b})]
    assert shown == [0, 5, 10]


@pytest.mark.parametrize("what", ["text", "twice"])
def test_c7_an_overlay_shows_what_render_shows(run: PlanarRun, tmp_path: Path, what: str) -> None:
    if what == "text":
        edit(run, editor=Place(text="HELLO", point="96,54", width=80.0, angle=8.0), layer="background")
    else:
        paint_star(run, "background", 2)
    exporter = STMapExporter(convention="opencv", layer=("background",), direction="forward", every=5)
    export_run(run, exporter, ExportOptions(out=tmp_path / "maps"))
    facts = json.loads((tmp_path / "maps/stmap.json").read_text())["layers"][0]
    overlay = read_picture(tmp_path / "maps" / facts["overlay"]).rgba.copy()
    assert list(overlay.shape[1::-1]) == facts["overlay_size"]
    overlay[..., :3] *= overlay[..., 3:]
    passes, sources = open_passes(run), list(run.iterate_frames())
    for t in (0, 5, 10):
        x, y, alpha = np.load(tmp_path / "maps" / (facts["forward"] % t))
        x, y = (
            (place + 0.5) * finer / own - 0.5
            for place, finer, own in zip((x, y), facts["overlay_size"], facts["canonical"]["size"], strict=True)
        )
        seen = cv2.remap(overlay, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR) * alpha[..., None]
        seen[..., :3] *= np.load(tmp_path / "maps" / (facts["light"] % t))
        shown = np.clip(np.rint(255 * seen[..., :3] + sources[t] * (1 - seen[..., 3:])), 0, 255)
        wanted = passes.render_frame(t, sources[t])
        edited = (wanted != sources[t]).any(axis=-1) & (alpha == 1)
        assert edited.sum() > 200 and psnr(shown[edited], wanted[edited]) >= 50


def test_c7_an_overlay_has_the_size_that_is_asked_for(run: PlanarRun, tmp_path: Path) -> None:
    edit(run, editor=Place(text="HELLO", point="96,54", width=80.0), layer="background")
    exporter = STMapExporter(convention="opencv", layer=("background",), every=20, canonical_size="120p")
    notes = export_run(run, exporter, ExportOptions(out=tmp_path / "maps")).notes
    assert min(read_picture(tmp_path / "maps/overlay/background.png").size) == 120
    assert any("softer than what unwrap render shows" in note for note in notes)


@pytest.mark.parametrize(("start", "first"), [(None, 0), (1001, 1001)])
def test_c8_one_number_for_one_frame(run: PlanarRun, tmp_path: Path, start: int | None, first: int) -> None:
    pytest.importorskip("OpenEXR", reason="OpenEXR is not installed: the extra `exr`")
    for name, exporter in (
        ("nk", STMapExporter(direction="forward", layer=("foreground",), size="16x16")),
        ("blender", STMapExporter(direction="forward", layer=("foreground",), size="16x16", convention="blender")),
        ("tracks", TracksExporter(frame=3, point=("60,50",))),
    ):
        export_run(run, exporter, ExportOptions(out=tmp_path / name, start_number=start))
    assert all(numbers == [first, first + 11] for numbers in read_numbers(tmp_path).values())
    assert sorted((tmp_path / "nk/forward").iterdir())[0].name == f"foreground.{first:04d}.exr"


def test_u21_an_export_prints_folder_and_count(
    run: PlanarRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run.path), "matte", "--layer", "foreground", "--out", str(tmp_path / "mattes")]
    assert main([*words, "--start-number", "1001"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(tmp_path / "mattes")] and "13 files" in printed.err
    names = sorted(path.name for path in (tmp_path / "mattes/foreground").iterdir())
    assert names == [f"foreground.{number}.png" for number in range(1001, 1013)]
    assert main([*words, "-y", "--start-number", "-1"]) == ExitCode.USAGE


# --- documents --------------------------------------------------------------------------------------------------------


def read_entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def make_paint(size: tuple[int, int]) -> np.ndarray:
    """Paint in a corner, with soft alpha: uint8 RGBA of (width, height)."""
    rgba = np.zeros((size[1], size[0], 4), np.uint8)
    rgba[20:50, 30:80] = (200, 60, 30, 255)
    rgba[50:60, 30:80] = (200, 60, 30, 90)
    return rgba


def test_c4_canvases_of_mypaint_are_taken(run: PlanarRun, tmp_path: Path) -> None:
    export_run(run, CanonicalExporter(layer=("foreground",)), ExportOptions(out=tmp_path / "ora"))
    entries = read_entries(tmp_path / "ora/foreground.ora")
    image = ElementTree.fromstring(entries["stack.xml"])
    assert image.get("{http://mypaint.org/ns/openraster}frame-active") == "true"

    # As MyPaint saves without a frame: whole tiles of 64 pixels, with paint that starts left of the picture too.
    for left in (0, 64):
        size = (left + 256, 256)
        image.set("w", str(size[0]))
        image.set("h", str(size[1]))
        for layer in image.iter("layer"):
            layer.set("x", str(left))
            source = layer.get("src", "")
            canvas = np.zeros((256, 256, 4), np.uint8)
            picture = np.asarray(Image.open(io.BytesIO(entries[source])))
            canvas[: picture.shape[0], : picture.shape[1]] = picture
            if layer.get("name") == PAINT:
                canvas = make_paint((256, 256))
            data = io.BytesIO()
            Image.fromarray(canvas).save(data, "PNG")
            entries[source] = data.getvalue()
        entries["stack.xml"] = ElementTree.tostring(image)
        path = tmp_path / f"saved-{left}.ora"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        found = read_document_overlays(run, path)["foreground"]
        assert np.array_equal(np.rint(255 * found.rgba), make_paint(run.canonical("foreground").size))
        assert any("cut to the picture" in note for note in found.notes)


def test_c5_psd_layers_are_locked(run: PlanarRun, tmp_path: Path) -> None:
    psd_tools = pytest.importorskip("psd_tools", reason="psd-tools is not installed: the extra `psd`")
    export_run(run, CanonicalExporter(format="psd", layer=("foreground",)), ExportOptions(out=tmp_path / "psd"))
    psd = psd_tools.PSDImage.open(tmp_path / "psd/foreground.psd")
    locks = {layer.name: layer.locks.value if layer.locks else 0 for layer in psd.descendants() if not layer.is_group()}
    assert locks.pop(PAINT) == 0
    assert set(locks.values()) == {0x80000007}  # all; and transparency, pixels and position, which most readers ask
    assert psd._record.layer_and_mask_information.layer_info.layer_count == -len(list(psd.descendants())) - 1


def make_profile(red: tuple[float, float, float], gamma: float) -> bytes:
    """An RGB profile with another red and a plain gamma: sRGB's own, changed where it says so."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    for place in range(132, 132 + 12 * count, 12):
        tag, offset, _ = struct.unpack(">4sII", profile[place : place + 12])
        if tag == b"rXYZ":
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *(round(65536 * value) for value in red))
        elif tag in (b"rTRC", b"gTRC", b"bTRC"):
            curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
            profile[offset : offset + len(curve)] = curve
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))


@pytest.mark.parametrize("has_base", [True, False])
def test_c6_the_profile_of_a_psd_is_converted_with_a_note(run: PlanarRun, tmp_path: Path, has_base: bool) -> None:
    psd_tools = pytest.importorskip("psd_tools", reason="psd-tools is not installed: the extra `psd`")
    from psd_tools.constants import Resource
    from psd_tools.psd.image_resources import ImageResource

    profile = make_profile((0.5151, 0.2412, -0.0011), 2.2)  # a red beyond that of sRGB
    picture, paint = run.canonical("foreground"), make_paint(run.canonical("foreground").size)
    wide, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")

    def to_wide(rgba: np.ndarray) -> np.ndarray:
        changed: Any = ImageCms.profileToProfile(Image.fromarray(rgba[..., :3].copy()), srgb, wide)
        return np.dstack([np.asarray(changed), rgba[..., 3]]).astype(np.float32) / 255

    shown = np.rint(255 * picture.rgba).astype(np.uint8)
    layers = [DocumentLayer(PAINT, constant_pixels(to_wide(paint)))]
    if has_base:
        layers.append(DocumentLayer(f"{BASE}: foreground", constant_pixels(to_wide(shown))))
    write_psd(tmp_path / "plain.psd", LayeredDocument(picture.size, tuple(layers)))
    psd = psd_tools.PSDImage.open(tmp_path / "plain.psd")
    psd.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE, data=profile)
    psd.save(tmp_path / "wide.psd")
    found = read_document_overlays(run, tmp_path / "wide.psd", "foreground")["foreground"]
    assert np.array_equal(np.rint(255 * found.rgba[..., 3]), paint[..., 3])
    assert np.abs(255 * found.rgba - paint)[paint[..., 3] > 0].max() <= 3
    assert any("color profile" in note and "sRGB" in note for note in found.notes)
    assert not any("was painted on too" in note for note in found.notes)


def test_c6_the_profile_of_pictures_in_an_ora_is_told(run: PlanarRun, tmp_path: Path) -> None:
    export_run(run, CanonicalExporter(layer=("foreground",)), ExportOptions(out=tmp_path / "ora"))
    profile, paint = make_profile((0.5151, 0.2412, -0.0011), 2.2), make_paint(run.canonical("foreground").size)
    wide, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    entries = read_entries(tmp_path / "ora/foreground.ora")
    layers = ElementTree.fromstring(entries["stack.xml"]).iter("layer")
    names = {layer.get("name"): layer.get("src", "") for layer in layers}
    for name, source in names.items():
        rgba = paint if name == PAINT else np.asarray(Image.open(io.BytesIO(entries[source])))
        changed: Any = ImageCms.profileToProfile(Image.fromarray(rgba[..., :3].copy()), srgb, wide)
        data = io.BytesIO()
        Image.fromarray(np.dstack([np.asarray(changed), rgba[..., 3]])).save(data, "PNG", icc_profile=profile)
        entries[source] = data.getvalue()
    with zipfile.ZipFile(tmp_path / "wide.ora", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    found = read_document_overlays(run, tmp_path / "wide.ora")["foreground"]
    assert np.abs(255 * found.rgba - paint)[paint[..., 3] > 0].max() <= 3
    assert any("color profile" in note for note in found.notes)
    assert not any("was painted on too" in note for note in found.notes)


def test_c10a_names_of_layers_have_no_zero_at_their_end(tmp_path: Path) -> None:
    pytest.importorskip("psd_tools", reason="psd-tools is not installed: the extra `psd`")
    layer = DocumentLayer(f"{PAINT}\0", constant_pixels(np.ones((8, 8, 4), np.float32)))  # as Krita writes it
    write_psd(tmp_path / "krita.psd", LayeredDocument((8, 8), (layer,)))
    assert [one.name for one in read_psd(tmp_path / "krita.psd", 1000).layers] == [PAINT]


@pytest.mark.parametrize("name", ["painted.kra", "painted.xcf", "painted.clip", "painted.PROCREATE"])
def test_c10b_the_reason_at_once(run: PlanarRun, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"gimp xcf v011\0" + bytes(100))
    assert main(["edit", str(run.path), str(tmp_path / name)]) == ExitCode.BAD_INPUT
    assert "only its own program reads well" in capsys.readouterr().err


def test_c10f_note_has_folder(run: PlanarRun, tmp_path: Path) -> None:
    result = export_run(run, CanonicalExporter(layer=("foreground",)), ExportOptions(out=tmp_path / "out"))
    assert any(note.endswith(f"unwrap edit {run.path} {tmp_path / 'out/foreground.ora'}") for note in result.notes)
    assert (tmp_path / "out/foreground.ora").is_file()


def test_c4_documents_whose_canvas_was_cropped_stay_refused(run: PlanarRun, tmp_path: Path) -> None:
    picture = run.canonical("foreground")
    cropped = picture.rgba[40:, 40:].copy()
    layers = (
        DocumentLayer(PAINT, constant_pixels(np.ones_like(cropped))),
        DocumentLayer(f"{BASE}: foreground", constant_pixels(cropped)),
    )
    write_ora(tmp_path / "cropped.ora", LayeredDocument(cropped.shape[1::-1], layers))
    with pytest.raises(UserError):
        read_document_overlays(run, tmp_path / "cropped.ora")


# --- captures and points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coefficients", "model", "kept"),
    [
        ((0.1, 0.02, 0.001, 0.002, 0.03, 0.0, 0.0, 0.0), "OPENCV", 5),
        ((0.1, 0.02, 0.001, 0.002, 0.03, 0.01, 0.0, 0.0), "FULL_OPENCV", 8),
    ],
)
def test_c10c_k3_for_nerfstudio(tmp_path: Path, coefficients: tuple[float, ...], model: str, kept: int) -> None:
    camera = Camera(64, 48, (50.0, 51.0), (32.0, 24.0), np.eye(4), coefficients)
    write_transforms(tmp_path / "transforms.json", [PosedImage(tmp_path / "0.png", camera)])
    written = json.loads((tmp_path / "transforms.json").read_text())
    assert written["camera_model"] == model and written["k3"] == 0.03
    (again,) = read_transforms(tmp_path / "transforms.json")
    assert again.camera.distortion == coefficients[:kept]


def test_c10d_an_smpl_model_in_an_npz_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    template, shapes = random.normal(size=(40, 3)), random.normal(size=(40, 3, 10))
    regressor = random.dirichlet(np.ones(40), 24)
    tree = np.stack([np.r_[2**32 - 1, np.maximum(0, np.arange(23) // 2)], np.arange(24)]).astype(np.uint32)
    arrays: dict[str, Any] = {
        "v_template": template,
        "shapedirs": shapes,
        "J_regressor": regressor,
        "kintree_table": tree,
    }
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", allow_pickle=False, **arrays)
    np.savez(tmp_path / "walk.npz", allow_pickle=False, poses=np.zeros((2, 72)), betas=np.full(10, 0.1))
    motion = compute_smpl_motion(read_smpl(tmp_path / "walk.npz"), tmp_path / "SMPL_NEUTRAL.npz")
    assert np.allclose(motion.skeleton.rest_positions, regressor @ (template + 0.1 * shapes.sum(axis=2)))
    np.savez(tmp_path / "other.npz", allow_pickle=False, v_template=template)
    with pytest.raises(UserError, match="SMPL model file cannot be used"):
        compute_smpl_motion(read_smpl(tmp_path / "walk.npz"), tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("x;y\n20,5;30,25\n", (20.5, 30.25)),
        ("Name;X [px];Y [px]\neye;20,5;1.030,25\n", (20.5, 1030.25)),
        ("x\ty\n20,5\t30\n", (20.5, 30)),
        ('x,y\n"20,5","30,25"\n', (20.5, 30.25)),
        ('\ufeffx,y,\n"1,020.5",30.25,\n', (1020.5, 30.25)),
        ("20.5 30.25\n", (20.5, 30.25)),
        ("20,5;30,25\n", None),
        ("x,y\n20,5,30,25\n", None),
        ("x;y\n20.5;30,25\n", None),
        ("20,5 30,25\n", None),
        ("x [m],y [m]\n2,3\n", None),
        ("x;y\n20\u00b0;30\u00b0\n", None),
        ("x,y\n0.25,0.5\n0.75,0.5\n", None),
    ],
)
def test_f41a_decimal_commas(tmp_path: Path, text: str, point: tuple[float, float] | None) -> None:
    (tmp_path / "points.csv").write_text(text, encoding="utf-8", newline="")
    if point is None:
        with pytest.raises(UserError):
            read_points(tmp_path / "points.csv", 0)
    else:
        assert read_points(tmp_path / "points.csv", 0)[0].tolist() == [list(point)]
