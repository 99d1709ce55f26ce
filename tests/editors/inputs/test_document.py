"""What is painted in a layered document comes back bit for bit, and nothing else does, whatever the file is."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from editors.inputs.document import is_document, read_document_overlays
from neural_fields.atlas import canonical
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.imaging.documents.layered import (
    BASE,
    PAINT,
    DocumentLayer,
    DocumentLimits,
    LayeredDocument,
    constant_pixels,
)
from neural_fields.imaging.documents.openraster import MIMETYPE, read_ora, write_ora
from neural_fields.imaging.documents.psd import read_psd, write_psd
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

Change = Callable[[ElementTree.Element], object]
MOST = 16_000_000
LAYER = "foreground"


@pytest.fixture(scope="module")
def exported(true_run: TrueRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of both layers of the true run, in both formats."""
    home = tmp_path_factory.mktemp("documents")
    for kind in ("ora", "psd"):
        export_run(true_run.run, CanonicalExporter(format=kind), ExportOptions(out=home / kind))
    return home


@pytest.fixture(scope="module")
def take(true_run: TrueRun) -> Callable[..., Any]:
    """Takes a document back into the true run: the one overlay that comes out."""

    def taken(path: Path, layer: str | None = None, expect: str = LAYER) -> Any:
        found = read_document_overlays(require_planar(true_run.run, "the test"), path, layer)
        assert list(found) == [expect]
        return found[expect]

    return taken


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, entries: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data, zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED)
    return path


def painted_ora(source: Path, path: Path, paint: Mapping[str, np.ndarray], change: Change | None = None) -> Path:
    """Writes a document as a painter's program would: pictures of layers by name, and another stack.xml."""
    entries = entries_of(source)
    image = ElementTree.fromstring(entries["stack.xml"])
    for layer in image.iter("layer"):
        if layer.get("name") in paint:
            entries[layer.get("src", "")] = png(paint[layer.get("name", "")])
    if change is not None:
        change(image)
    entries["stack.xml"] = ElementTree.tostring(image)
    del entries["unwrap.json"]  # as Krita and GIMP do
    return zipped(path, entries)


def add_layer(name: str, place: int, **said: str) -> Change:
    """A change that puts a new layer with the picture data/new.png into the outermost stack."""

    def change(image: ElementTree.Element) -> None:
        stack = image.find("stack")
        assert stack is not None
        stack.insert(place, ElementTree.Element("layer", {"name": name, "src": "data/new.png", **said}))

    return change


def named(image: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(item for item in image.iter() if item.get("name") == name)


def random_paint(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Any 8-bit RGBA, with nothing in the upper third and opaque paint in the lowest row."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    pixels[: size[1] // 3, :, 3] = 0
    pixels[-1, :, 3] = 255
    return pixels


def empty(size: tuple[int, int]) -> np.ndarray:
    return np.zeros((size[1], size[0], 4), np.uint8)


def same(overlay: Any, pixels: np.ndarray) -> bool:
    """Whether an overlay is exactly these 8-bit pixels; what is clear has no color."""
    expected = np.where(pixels[..., 3:] > 0, pixels, 0)
    return np.array_equal(overlay.rgba, expected.astype(np.float32) / 255)


def size_of(true_run: TrueRun, layer: str = LAYER) -> tuple[int, int]:
    return canonical.read_pristine(true_run.run.canonical, layer).size


def painted_psd(
    source: Path, path: Path, paint: np.ndarray | None, change: Callable[[Any], object] | None = None
) -> Path:
    from psd_tools import PSDImage

    psd = PSDImage.open(source)
    if paint is not None:
        (layer,) = [item for item in psd if item.name == PAINT]
        psd.remove(layer)
        made = psd.create_pixel_layer(Image.fromarray(paint), name=PAINT)
        made.move_down()
    if change is not None:
        change(psd)
    psd.save(path)
    return path


def test_paint_in_open_raster_comes_back_bit_for_bit(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    pixels = random_paint(size_of(true_run))
    overlay = take(painted_ora(exported / "ora" / "foreground.ora", tmp_path / "mine.ora", {PAINT: pixels}))
    assert same(overlay, pixels) and overlay.notes == ()
    assert overlay.box == canonical.read_pristine(true_run.run.canonical, LAYER).box


def test_paint_in_a_photoshop_document_comes_back_bit_for_bit(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    pixels = random_paint(size_of(true_run), 1)
    overlay = take(painted_psd(exported / "psd" / "foreground.psd", tmp_path / "mine.psd", pixels))
    assert same(overlay, pixels) and overlay.notes == ()


def test_a_document_saved_as_krita_does_is_taken(true_run: TrueRun, exported: Path, tmp_path: Path, take: Any) -> None:
    pixels = random_paint(size_of(true_run), 2)

    def change(image: ElementTree.Element) -> None:
        named(image, PAINT).set("name", f"{PAINT} Merged")
        for item in image.iter("layer"):
            item.attrib.pop("x")
            item.attrib.pop("y")
        stack = image.find("stack")
        assert stack is not None
        stack.attrib.update({"name": "root", "opacity": "1", "composite-op": "svg:src-over", "isolation": "isolate"})

    path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {PAINT: pixels}, change)
    overlay = take(path)
    assert same(overlay, pixels) and "paint here Merged" in overlay.notes[0]


def test_a_layer_cropped_to_its_paint_lies_where_its_offset_says(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    pixels = empty(size_of(true_run))
    pixels[30:50, 20:60] = random_paint((40, 20), 3)

    def change(image: ElementTree.Element) -> None:
        named(image, PAINT).attrib.update({"name": f"{PAINT} #1", "x": "20", "y": "30"})

    path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {PAINT: pixels[30:50, 20:60]}, change)
    assert same(take(path), pixels)


def test_a_photoshop_layer_smaller_than_the_canvas_lies_where_it_says(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    pixels = empty(size_of(true_run))
    pixels[30:50, 20:60] = random_paint((40, 20), 4)

    def add(psd: Any) -> None:
        psd.create_pixel_layer(Image.fromarray(pixels[30:50, 20:60]), name=f"{PAINT} copy", top=30, left=20)

    path = painted_psd(exported / "psd" / "foreground.psd", tmp_path / "a.psd", None, add)
    assert same(take(path), pixels)


def test_guides_edits_and_the_picture_never_become_paint(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    size = size_of(true_run)
    pixels = empty(size)
    pixels[10:20, 10:20] = (9, 8, 7, 255)

    def show_all(image: ElementTree.Element) -> None:
        for item in image.iter():
            item.attrib["visibility"] = "visible"
        named(image, "guide: stretch").set("name", "Copy of guide: stretch")
        add_layer("edits so far (locked)", 2)(image)

    source = exported / "ora" / "foreground.ora"
    path = painted_ora(source, tmp_path / "a.ora", {PAINT: pixels, "guide: coverage": random_paint(size)}, show_all)
    zipped(path, {**entries_of(path), "data/new.png": png(random_paint(size))})
    assert same(take(path), pixels)


def test_layers_of_a_painter_count_in_order_with_their_opacity(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    size = size_of(true_run)
    low, high = empty(size), empty(size)
    low[10:30, 10:30] = (255, 0, 0, 255)
    high[20:40, 20:40] = (0, 0, 255, 255)

    def change(image: ElementTree.Element) -> None:
        add_layer("glaze", 0, opacity="0.5")(image)

    path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {PAINT: low}, change)
    zipped(path, {**entries_of(path), "data/new.png": png(high)})
    overlay = take(path)
    assert overlay.rgba[12, 12].tolist() == [1, 0, 0, 1] and overlay.rgba[35, 35].tolist() == [0, 0, 1, 0.5]
    assert np.allclose(overlay.rgba[25, 25], (0.5, 0, 0.5, 1))
    assert overlay.notes == ("taken as paint, from the lowest: paint here, glaze",)


def test_what_a_painter_hid_or_put_below_the_picture_is_left_out(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    size = size_of(true_run)
    pixels = random_paint(size, 5)
    for said, place, noted in (({"visibility": "hidden", "composite-op": "svg:multiply"}, 0, False), ({}, 9, True)):
        path = painted_ora(
            exported / "ora" / "foreground.ora", tmp_path / "a.ora", {PAINT: pixels}, add_layer("mine", place, **said)
        )
        zipped(path, {**entries_of(path), "data/new.png": png(random_paint(size, 6))})
        overlay = take(path)
        assert same(overlay, pixels) and any("below the picture" in note for note in overlay.notes) == noted


def test_groups_hide_and_fade_what_is_in_them(true_run: TrueRun, exported: Path, tmp_path: Path, take: Any) -> None:
    size = size_of(true_run)
    pixels = empty(size)
    pixels[5:9, 5:9] = (10, 20, 30, 255)

    def grouped(**said: str) -> Change:
        def change(image: ElementTree.Element) -> None:
            stack = image.find("stack")
            assert stack is not None
            group = ElementTree.Element("stack", {"name": "mine", **said})
            group.append(ElementTree.Element("layer", {"name": "stroke", "src": "data/new.png"}))
            stack.insert(0, group)

        return change

    for said, strength in (({"opacity": "0.25"}, 0.25), ({}, 1.0)):
        path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {}, grouped(**said))
        zipped(path, {**entries_of(path), "data/new.png": png(pixels)})
        assert take(path).rgba[6, 6].tolist() == pytest.approx([10 / 255, 20 / 255, 30 / 255, strength])
    path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {}, grouped(visibility="hidden"))
    zipped(path, {**entries_of(path), "data/new.png": png(pixels)})
    assert_refused(take, path, what="no change", why="is hidden")


def assert_refused(take: Any, path: Path, code: ExitCode = ExitCode.BAD_INPUT, **parts: str) -> None:
    """A file is refused with one `UserError` whose parts hold these texts."""
    with pytest.raises(UserError) as caught:
        take(path)
    assert caught.value.code == code and caught.value.fix
    for part, text in parts.items():
        assert text in getattr(caught.value, part), str(caught.value)


def test_a_layer_with_a_blend_mode_is_refused_unless_it_is_empty(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    size = size_of(true_run)
    pixels = random_paint(size, 7)
    change = add_layer("shade", 0, **{"composite-op": "svg:multiply"})
    path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {PAINT: pixels}, change)
    zipped(path, {**entries_of(path), "data/new.png": png(pixels)})
    assert_refused(take, path, what="'shade' cannot be taken as paint: its blend mode is multiply", fix="Normal")
    zipped(path, {**entries_of(path), "data/new.png": png(empty(size))})
    assert same(take(path), pixels)


def test_nothing_painted_is_no_change(exported: Path, take: Any) -> None:
    for kind in ("ora", "psd"):
        assert_refused(take, exported / kind / "foreground.ora".replace("ora", kind), what="no change", why="is empty")


def test_paint_on_the_picture_itself_is_taken_below_the_other_paint(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    picture = canonical.read_pristine(true_run.run.canonical, LAYER)
    base = np.rint(picture.rgba * 255).astype(np.uint8)
    middle = (slice(picture.size[1] // 2, picture.size[1] // 2 + 12), slice(picture.size[0] // 2, None))
    base[middle] = (255, 0, 255, 255)
    name, source = f"{BASE}: {LAYER}", exported / "ora" / "foreground.ora"
    only = take(painted_ora(source, tmp_path / "a.ora", {name: base}))
    alone = np.zeros(base.shape, np.uint8)
    alone[middle] = (255, 0, 255, 255)
    assert same(only, alone) and "painted on" in only.notes[0]
    pixels = random_paint(picture.size, 8)
    pixels[..., 3] = np.where(pixels[..., 3] > 128, 255, 0)
    overlay = take(painted_ora(source, tmp_path / "b.ora", {name: base, PAINT: pixels}))
    assert same(overlay, np.where(pixels[..., 3:] > 0, pixels, alone))


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_a_canvas_of_another_size_is_taken_at_its_size(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any, scale: float
) -> None:
    size = size_of(true_run, "background")
    large = round(size[0] * scale), round(size[1] * scale)
    pixels = empty(large)
    pixels[20:40, 30:60] = (200, 100, 50, 255)
    source = exported / "ora" / "background.ora"
    entries = entries_of(source)
    base = Image.open(io.BytesIO(entries["data/004.png"])).resize(large, Image.Resampling.BICUBIC)

    def change(image: ElementTree.Element) -> None:
        image.attrib.update({"w": str(large[0]), "h": str(large[1])})

    path = painted_ora(source, tmp_path / "a.ora", {PAINT: pixels, f"{BASE}: background": np.asarray(base)}, change)
    overlay = take(path, expect="background")
    assert overlay.notes[-1].endswith("taken at that size")
    if scale > 1:
        assert same(overlay, pixels)
    else:
        assert overlay.size == size and np.allclose(
            overlay.rgba[60, 90], np.array([200, 100, 50, 255], np.float32) / 255
        )


def test_a_cropped_or_turned_canvas_is_refused(true_run: TrueRun, exported: Path, tmp_path: Path, take: Any) -> None:
    width, height = size_of(true_run, "background")
    source = exported / "ora" / "background.ora"
    for size, why in (((width - 20, height), "cropped"), ((height, width), "turned")):
        pixels = random_paint(size)

        def change(image: ElementTree.Element, size: tuple[int, int] = size) -> None:
            image.attrib.update({"w": str(size[0]), "h": str(size[1])})

        path = painted_ora(source, tmp_path / "a.ora", {PAINT: pixels}, change)
        assert_refused(take, path, what="another shape", why=why)


def test_a_canvas_cropped_to_its_own_aspect_is_told_by_the_picture_in_it(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    size = size_of(true_run, "background")
    half = (size[0] // 2, size[1] // 2)
    entries = entries_of(exported / "ora" / "background.ora")
    with Image.open(io.BytesIO(entries["data/004.png"])) as base:
        part = np.asarray(base)[: half[1], : half[0]]

    def change(image: ElementTree.Element) -> None:
        image.attrib.update({"w": str(half[0]), "h": str(half[1])})

    paint = {PAINT: random_paint(half), f"{BASE}: background": part}
    path = painted_ora(exported / "ora" / "background.ora", tmp_path / "a.ora", paint, change)
    assert_refused(
        take, path, what="is the exported picture of the layer background, cropped", why="% of it is the picture itself"
    )


def test_the_layer_is_told_by_names_then_by_the_file_then_by_the_user(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    pixels = random_paint(size_of(true_run), 9)
    source = exported / "ora" / "foreground.ora"
    assert same(take(painted_ora(source, tmp_path / "anything.ora", {PAINT: pixels})), pixels)

    def without_base(image: ElementTree.Element) -> None:
        stack = image.find("stack")
        assert stack is not None
        stack.remove(named(image, f"{BASE}: {LAYER}"))

    unnamed = painted_ora(source, tmp_path / "anything.ora", {PAINT: pixels}, without_base)
    assert_refused(take, unnamed, what="does not tell which layer", fix="--layer")
    assert same(take(unnamed, LAYER), pixels)
    by_file = shutil.copy(unnamed, tmp_path / "foreground_v2.ora")
    assert same(take(Path(by_file)), pixels)
    entries = {**entries_of(unnamed), "unwrap.json": b'{"layer": "foreground"}'}
    assert same(take(zipped(tmp_path / "other.ora", entries)), pixels)


def test_a_document_of_another_layer_or_run_is_refused(
    true_run: TrueRun, exported: Path, tmp_path: Path, take: Any
) -> None:
    source = exported / "ora" / "foreground.ora"
    path = painted_ora(source, tmp_path / "a.ora", {PAINT: random_paint(size_of(true_run))})
    assert_refused(lambda path: take(path, "background"), path, what="belongs to the layer foreground")
    assert_refused(lambda path: take(path, "sky"), path, what="no layer 'sky'", why="foreground, background")
    renamed = painted_ora(
        source, tmp_path / "b.ora", {}, lambda image: named(image, f"{BASE}: {LAYER}").set("name", f"{BASE}: car")
    )
    assert_refused(take, renamed, what="'car', which the run does not have")
    entries = entries_of(source)
    entries["unwrap.json"] = b'{"layer": "foreground", "sha256": "00"}'
    assert_refused(take, zipped(tmp_path / "c.ora", entries), what="exported from another run")
    size = size_of(true_run)
    mirrored = np.ascontiguousarray(
        np.rint(canonical.read_pristine(true_run.run.canonical, LAYER).rgba * 255).astype(np.uint8)[:, ::-1]
    )
    strange = painted_ora(source, tmp_path / "d.ora", {f"{BASE}: {LAYER}": mirrored, PAINT: random_paint(size)})
    assert_refused(take, strange, what="mirrored")


@pytest.mark.parametrize("kind", ["ora", "psd"])
def test_merged_layers_are_compared_with_the_picture(true_run: TrueRun, tmp_path: Path, take: Any, kind: str) -> None:
    """With another gamma, as programs flatten a document of another color space."""
    picture = canonical.read_pristine(true_run.run.canonical, "background").rgba
    middle = (slice(30, 42), slice(40, 60))
    for is_painted in (False, True):
        flat = picture.copy()
        if is_painted:
            flat[middle] = (0.9, 0.1, 0.8, 1)
        flat[..., :3] = np.rint(255 * flat[..., :3] ** (2.2 / 1.8)) / 255
        path = tmp_path / f"background.{kind}"
        document = LayeredDocument(flat.shape[1::-1], (DocumentLayer("Background", constant_pixels(flat)),))
        (write_ora if kind == "ora" else write_psd)(path, document)
        if not is_painted:
            assert_refused(lambda path: take(path, expect="background"), path, what="no change found")
            continue
        alpha = take(path, expect="background").rgba[..., 3].copy()
        assert alpha[middle].min() == 1
        alpha[26:46, 36:64] = 0
        assert alpha.max() == 0


def test_a_document_without_our_layers_is_refused(true_run: TrueRun, tmp_path: Path, take: Any) -> None:
    pixels = random_paint(size_of(true_run)).astype(np.float32) / 255
    write_ora(
        tmp_path / "foreground.ora",
        LayeredDocument(size_of(true_run), (DocumentLayer("Background", constant_pixels(pixels)),)),
    )
    assert_refused(take, tmp_path / "foreground.ora", what=f"no layer {PAINT!r}", fix="flattened as PNG")


def test_a_painted_document_survives_a_second_export(true_run: TrueRun, exported: Path, tmp_path: Path) -> None:
    """A fit that goes on writes new pictures; a document of an older one still belongs to the older one."""
    run = Run(shutil.copytree(true_run.run.path, tmp_path / "run"))
    old = canonical.read_pristine(run.canonical, LAYER)
    newer = canonical.CanonicalImage(old.rgba * 0.9, old.box, LAYER)
    canonical.export_canonical(run.canonical, newer)
    pixels = random_paint(old.size)
    path = painted_ora(exported / "ora" / "foreground.ora", tmp_path / "a.ora", {PAINT: pixels})
    found = read_document_overlays(require_planar(run, "the test"), path)
    assert same(found[LAYER], pixels) and found[LAYER].notes == ()


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.kra", b"PK\x03\x04"), ("a.xcf", b"gimp xcf v011"), ("a.psb", b"8BPS\0\x02"), ("a.ora", b"gimp xcf v011")],
)
def test_files_of_one_program_are_refused_with_what_to_do(tmp_path: Path, take: Any, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert is_document(tmp_path / name)
    assert_refused(take, tmp_path / name, fix="export it from your program as .ora, .psd or .png")


def test_what_is_a_document_is_told_by_name_or_content(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png(empty((4, 4))))
    assert not is_document(tmp_path / "picture.png") and not is_document(tmp_path / "missing.png")
    assert is_document(Path(shutil.copy(exported / "ora" / "foreground.ora", tmp_path / "odd.png")))
    assert is_document(Path(shutil.copy(exported / "psd" / "foreground.psd", tmp_path / "odd.jpg")))


def test_missing_empty_and_other_files_are_refused(tmp_path: Path, take: Any) -> None:
    (tmp_path / "empty.ora").write_bytes(b"")
    (tmp_path / "text.ora").write_bytes(b"hello" * 100)
    (tmp_path / "text.psd").write_bytes(b"hello" * 100)
    zipped(tmp_path / "word.ora", {"word/document.xml": b"<a/>"})
    zipped(tmp_path / "krita.ora", {"mimetype": b"application/x-krita", "maindoc.xml": b"<a/>"})
    for name in ("empty.ora", "text.ora", "text.psd", "word.ora", "krita.ora", "missing.ora"):
        assert_refused(take, tmp_path / name)


def small_document() -> LayeredDocument:
    pixels = random_paint((24, 16)).astype(np.float32) / 255
    group = DocumentLayer("guides", layers=(DocumentLayer("guide: a", constant_pixels(pixels), visible=False),))
    return LayeredDocument(
        (24, 16),
        (group, DocumentLayer(PAINT, constant_pixels(pixels)), DocumentLayer(f"{BASE}: a", constant_pixels(pixels))),
        {"layer": "a"},
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a small document in both formats."""
    home = tmp_path_factory.mktemp("small")
    write_ora(home / "a.ora", small_document())
    write_psd(home / "a.psd", small_document())
    return {kind: (home / f"a.{kind}").read_bytes() for kind in ("ora", "psd")}


def read_all(path: Path, most: int = MOST) -> LayeredDocument:
    """Reads a document and all pixels in it."""

    def unpack(layers: tuple[DocumentLayer, ...]) -> None:
        for layer in layers:
            if layer.pixels is not None:
                layer.pixels()
            unpack(layer.layers)

    document = (read_psd if path.suffix == ".psd" else read_ora)(path, most)
    unpack(document.layers)
    return document


@pytest.mark.parametrize("kind", ["ora", "psd"])
def test_a_file_cut_off_anywhere_is_read_or_refused(small: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    data, path, refused = small[kind], tmp_path / f"cut.{kind}", 0
    places = range(0, len(data), 50)
    for place in places:
        path.write_bytes(data[:place])
        try:
            read_all(path)
        except UserError as error:
            refused += 1
            assert error.code in (ExitCode.BAD_INPUT, ExitCode.UNSAFE_FILE)
    # The end of a Photoshop document is the merged picture, which is not needed.
    assert refused == len(places) if kind == "ora" else refused > len(places) / 2


@pytest.mark.parametrize("kind", ["ora", "psd"])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=60)
def test_damaged_bytes_are_read_or_refused(
    small: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(small[kind])
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(data)
    try:
        read_all(path, 1 << 16)
    except UserError as error:
        assert error.code in (ExitCode.BAD_INPUT, ExitCode.UNSAFE_FILE)


BAD_NAMES = ["../x", "a/../../x", "/etc/x", "C:/x", "c:x", "a\\b", "..", "a//b", "./a", "a/./b", "\x01", "//host/x"]


def with_entry(data: bytes, path: Path, name: str, mode: int = 0o100644) -> Path:
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename, info.external_attr = name, mode << 16
        archive.writestr(info, b"x")
    return path


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_archive_are_refused(small: dict[str, bytes], tmp_path: Path, name: str) -> None:
    path = with_entry(small["ora"], tmp_path / "a.ora", name)
    assert_refused(read_all, path, ExitCode.UNSAFE_FILE, why="leads out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ora"]


@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
@settings(max_examples=100)
def test_any_name_is_read_or_refused(
    small: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = with_entry(small["ora"], tmp_path_factory.getbasetemp() / "named.ora", name)
    bad = "\\" in name or name[1:2] == ":" or any(part in ("", ".", "..") for part in name.removesuffix("/").split("/"))
    try:
        read_all(path)
        assert not bad
    except UserError as error:
        assert error.code in (ExitCode.BAD_INPUT, ExitCode.UNSAFE_FILE)


def test_links_and_devices_in_an_archive_are_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    for mode in (0o120777, 0o020666, 0o010666):
        path = with_entry(small["ora"], tmp_path / "a.ora", "link", mode)
        assert_refused(read_all, path, ExitCode.UNSAFE_FILE, why="link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_too_much_in_it_is_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    entries = {"mimetype": MIMETYPE.encode()}
    path = tmp_path / "a.ora"
    zipped(path, {**entries, **{f"data/{n}.png": b"" for n in range(1001)}})
    assert_refused(read_all, path, ExitCode.UNSAFE_FILE, why="entries")
    zipped(path, {**entries, "data/a.png": bytes(40 << 20)})
    assert_refused(read_all, path, ExitCode.UNSAFE_FILE, why="unpacks to")
    assert_refused(lambda path: read_all(path, 1 << 16), path, ExitCode.UNSAFE_FILE, why="unpacks to more")
    with_entry(with_entry(small["ora"], path, "b").read_bytes(), path, "B")
    assert_refused(read_all, path, ExitCode.UNSAFE_FILE, why="twice")
    path.write_bytes(small["ora"])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("c", b"x")
    assert_refused(read_all, path, ExitCode.UNSAFE_FILE, why="unusual")


def described(path: Path, xml: bytes, **entries: bytes) -> Path:
    return zipped(path, {"mimetype": MIMETYPE.encode(), "stack.xml": xml, **entries})


def test_descriptions_that_are_not_what_programs_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ora"
    layer = b'<image w="4" h="4"><stack><layer name="a" src="a" %s/></stack></image>'
    picture = {"a": png(empty((4, 4)))}
    assert read_all(described(path, layer % b"", **picture)).size == (4, 4)
    entity = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]>' + layer % b""
    for xml in (entity, b"<image>" + bytes(b" " * (5 << 20)) + b"</image>"):
        assert_refused(read_all, described(path, xml, **picture), ExitCode.UNSAFE_FILE)
    deep = b'<image w="4" h="4">' + b"<stack>" * 40 + b"</stack>" * 40 + b"</image>"
    many = b'<image w="4" h="4"><stack>' + b'<layer src="a"/>' * 600 + b"</stack></image>"
    huge = b'<image w="40000" h="40000"><stack/></image>'
    far = layer % b'x="99999999"'
    for xml in (deep, many, huge, far):
        assert_refused(read_all, described(path, xml, **picture), ExitCode.UNSAFE_FILE)
    broken = [
        b"",
        b"<image",
        b'<image w="4" h="4"/>',
        b'<image w="4"><stack/></image>',
        b'<image w="x" h="4"><stack/></image>',
        b'<image w="0" h="4"><stack/></image>',
        b'<image w="nan" h="4"><stack/></image>',
        b"\xff\xfe<\0a\0/\0>\0",
        layer % b'opacity="much"',
        b'<image w="4" h="4"><stack><layer name="a" src="../a"/></stack></image>',
    ]
    for xml in broken:
        assert_refused(read_all, described(path, xml, **picture))


def test_pictures_in_an_archive_are_bounded_png_files(tmp_path: Path) -> None:
    xml, path = b'<image w="4" h="4"><stack><layer name="a" src="a"/></stack></image>', tmp_path / "a.ora"
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG")
    for data in (jpeg.getvalue(), b"", b"\x89PNG\r\n\x1a\n", png(random_paint((40, 40)))[:-500]):
        assert_refused(read_all, described(path, xml, a=data))
    large = bytearray(png(empty((4, 4))))
    large[16:24] = struct.pack(">II", 60_000, 60_000)
    large[29:33] = struct.pack(">I", zlib.crc32(large[12:29]))
    assert_refused(read_all, described(path, xml, a=bytes(large)), ExitCode.UNSAFE_FILE)


@pytest.mark.parametrize(
    ("at", "value", "code", "why"),
    [
        (4, struct.pack(">H", 2), ExitCode.BAD_INPUT, ".psd"),
        (4, struct.pack(">H", 7), ExitCode.BAD_INPUT, ".psd"),
        (14, struct.pack(">II", 300_000, 300_000), ExitCode.UNSAFE_FILE, "megapixels"),
        (14, struct.pack(">II", 0, 4), ExitCode.BAD_INPUT, "canvas"),
        (22, struct.pack(">H", 32), ExitCode.BAD_INPUT, "32 bits"),
        (24, struct.pack(">H", 4), ExitCode.BAD_INPUT, "mode 4"),
    ],
)
def test_a_photoshop_header_is_checked_before_anything_else(
    small: dict[str, bytes], tmp_path: Path, at: int, value: bytes, code: ExitCode, why: str
) -> None:
    data = bytearray(small["psd"])
    data[at : at + len(value)] = value
    (tmp_path / "a.psd").write_bytes(data)
    assert_refused(read_all, tmp_path / "a.psd", code, why=why)


def test_a_photoshop_document_of_mode_rgb_with_masks_is_understood(tmp_path: Path) -> None:
    """Photoshop writes RGB documents; a mask there lets through what it is white on."""
    from psd_tools import PSDImage

    pixels = random_paint((20, 12))
    psd = PSDImage.new("RGB", (20, 12))
    layer = psd.create_pixel_layer(Image.fromarray(pixels[..., :3]), name=PAINT)
    mask = np.zeros((12, 20), np.uint8)
    mask[2:9, 3:15] = 255
    layer.create_mask(Image.fromarray(mask))
    psd.save(tmp_path / "a.psd")
    (found,) = read_psd(tmp_path / "a.psd", MOST).layers
    assert found.pixels is not None
    assert np.array_equal(found.pixels()[..., 3], mask / np.float32(255))
    assert np.array_equal(found.pixels()[2:9, 3:15, :3], pixels[2:9, 3:15, :3] / np.float32(255))


def test_what_pixels_alone_do_not_tell_is_refused(true_run: TrueRun, exported: Path, tmp_path: Path, take: Any) -> None:
    pixels = random_paint(size_of(true_run), 11)

    def clip(psd: Any) -> None:
        psd.create_pixel_layer(Image.fromarray(pixels), name="shade").clipping = True

    def multiply(psd: Any) -> None:
        from psd_tools.constants import BlendMode

        psd.create_pixel_layer(Image.fromarray(pixels), name="shade", blend_mode=BlendMode.MULTIPLY)

    for change, why in ((clip, "clipped"), (multiply, "multiply")):
        path = painted_psd(exported / "psd" / "foreground.psd", tmp_path / "a.psd", pixels, change)
        assert_refused(take, path, what=why)


def test_a_photoshop_document_with_too_many_layers_is_refused(small: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.psd").write_bytes(small["psd"])
    read = partial(read_psd, max_pixels=MOST, limits=DocumentLimits(layers=3))
    assert_refused(read, tmp_path / "a.psd", ExitCode.UNSAFE_FILE, why="layers")
