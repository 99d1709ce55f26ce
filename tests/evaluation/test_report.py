"""The report: its numbers against closed forms, its page against a parser."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.coords import frame_box, frame_xy
from neural_fields.core.even_spread import spread_indices
from neural_fields.core.progress import Progress
from neural_fields.data.flow.compute import FlowField, resize_mask, resize_vectors
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import read_video
from neural_fields.evaluation import metrics
from neural_fields.evaluation.evaluate_planar import evaluate
from neural_fields.evaluation.options import EvalOptions
from neural_fields.evaluation.report import Report, TrainingCost, begin_full_survey, write_report
from neural_fields.evaluation.report.drift import DEFAULTS as DRIFT_SETTINGS
from neural_fields.evaluation.report.drift import measure_drift
from neural_fields.evaluation.report.heat_maps import DEFAULTS as HEAT_SETTINGS
from neural_fields.evaluation.report.heat_maps import classify_risk, draw_canonical, draw_heat_maps
from neural_fields.evaluation.report.map_distortion import measure_distortion
from neural_fields.evaluation.report.page import render_page
from neural_fields.evaluation.report.survey import DEFAULTS as SURVEY_SETTINGS
from neural_fields.evaluation.report.survey import LayerHeatMaps, Survey
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.appearance.gain import NoGainConfig
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import LayerSamples, composite_layers
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.mappings.grid import GridMapping
from neural_fields.runs.run import Run, append_metrics
from neural_fields.training.bake import bake_maps
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 64, 36
SIZE = (WIDTH, HEIGHT)
ALL = np.ones((HEIGHT, WIDTH), bool)


def identity() -> np.ndarray:
    return frame_xy(*SIZE).numpy()


# --- stretch and fold-over ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("x", "y"), [(1.0, 1.0), (3.0, 3.0), (2.0, 1.0), (0.5, 4.5)])
def test_an_affine_map_is_stretched_by_the_root_of_its_aspect_and_never_folded(x: float, y: float, sign: int) -> None:
    turn = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    found = measure_distortion(identity() * np.array([x, sign * y], np.float32) @ turn, ALL)
    assert np.allclose(found.stretch, math.sqrt(max(x, y) / min(x, y)), rtol=1e-3)
    assert found.valid.all() and not found.folded.any()  # a layer that is mirrored as a whole is not folded


def test_the_part_that_runs_backwards_is_folded_and_hidden_pixels_do_not_count() -> None:
    uv = identity()
    uv[..., 0] = np.abs(uv[..., 0] + 0.5)  # folds a quarter of the frame over
    seen = ALL.copy()
    seen[: HEIGHT // 2] = False
    found = measure_distortion(uv, seen)
    assert np.array_equal(found.valid.any(1), np.arange(HEIGHT - 1) >= HEIGHT // 2)
    assert found.folded[:, : WIDTH // 4 - 1].all() and not found.folded[:, WIDTH // 4 + 1 :].any()


def test_stretch_is_relative_to_the_usual_place_of_the_same_frame() -> None:
    uv = identity()
    uv[:, WIDTH // 2 :, 0] += 2 * (
        uv[:, WIDTH // 2 :, 0] - uv[0, WIDTH // 2, 0]
    )  # the right half is three times as wide
    uv[:, 40:48, 0] = uv[:, 40:41, 0]  # and has a tear without any width
    found = measure_distortion(uv, ALL).stretch
    assert np.allclose(found[:, : WIDTH // 2 - 1], 1, atol=0.01)
    assert np.allclose(found[:, 50:], 3, atol=0.01) and (found[:, 40:47] == 16).all()


# --- tracking: points against optical flow --------------------------------------------------------------------------


def moving_maps(folder: Path, frames: int, velocity: tuple[float, float]) -> Maps:
    """Baked maps of one layer that moves by `velocity` pixels a frame."""
    model = build_model(
        PlanarConfig(gain=NoGainConfig()),
        ModelShape(*SIZE, frames, (LayerShape("floor", Box(-2.0, -2.0, 2.0, 2.0), 64, 64),)),
    )
    mapping = model.mappings[0]
    assert isinstance(mapping, GridMapping)
    with torch.no_grad():
        for t in range(frames):
            mapping.homography[t, :2, 2] = -t * torch.tensor(velocity) * 2 / max(SIZE)
    return bake_maps(Run.create(folder / "run"), model.eval(), 0)


def constant_flow(frames: int, velocity: tuple[float, float]) -> FlowField:
    ok = np.ones((frames - 1, HEIGHT, WIDTH), bool)
    vectors = np.broadcast_to(np.array(velocity, np.float16), (*ok.shape, 2))
    return FlowField(vectors, -vectors, ok, ok)


@pytest.mark.parametrize("slip", [0.0, 0.5])
def test_points_drift_by_what_the_canonical_slips_against_the_flow(tmp_path: Path, slip: float) -> None:
    maps = moving_maps(tmp_path, 12, (1.5 + slip, 0.5))
    found = measure_drift(maps, constant_flow(12, (1.5, 0.5)), 4)["floor"]
    assert found.span == DRIFT_SETTINGS.span_frames and found.points > 1000
    assert found.next_frame == pytest.approx(slip, abs=0.01) and found.far == pytest.approx(
        DRIFT_SETTINGS.span_frames * slip, abs=0.02
    )
    assert found.steady == (1.0 if slip == 0 else 0.0)  # 4 pixels of 64


def test_how_far_points_may_slip_grows_with_the_frame(tmp_path: Path) -> None:
    exact = replace(DRIFT_SETTINGS, flow_error_px=0.0)  # then a hundredth of the longer side, 0.64 pixels
    for slip, steady in ((0.07, 1.0), (0.09, 0.0)):  # by 0.56 and 0.72 pixels in eight frames
        maps = moving_maps(tmp_path / str(slip), 9, (slip, 0.0))
        assert measure_drift(maps, constant_flow(9, (0.0, 0.0)), 1, settings=exact)["floor"].steady == steady


def test_points_that_the_flow_loses_are_left_out(tmp_path: Path) -> None:
    maps, flow = moving_maps(tmp_path, 3, (1.0, 0.0)), constant_flow(3, (1.0, 0.0))
    lost = measure_drift(maps, replace(flow, forward_ok=~flow.forward_ok), 4)["floor"]
    assert (lost.next_frame, lost.far, lost.steady, lost.points) == (None, None, None, 0)
    assert measure_drift(maps, flow, 4)["floor"].span == 2  # a short clip is followed as far as it goes


def test_a_point_is_lost_where_one_of_the_pixels_around_it_has_no_flow(tmp_path: Path) -> None:
    maps, flow = moving_maps(tmp_path, 3, (0.5, 0.0)), constant_flow(3, (0.5, 0.0))
    torn = flow.forward_ok.copy()
    torn[:, :, WIDTH // 2] = False
    found, kept = (measure_drift(maps, replace(flow, forward_ok=ok), 1)["floor"] for ok in (torn, flow.forward_ok))
    assert kept.points - found.points == 2 * HEIGHT  # those on that column, and those that come half way to it


# --- the survey -----------------------------------------------------------------------------------------------------


def samples(uv: np.ndarray, weight: np.ndarray) -> LayerSamples:
    """Samples of one layer over a background that covers what is left."""
    rows = torch.from_numpy(np.stack([weight, 1 - weight], -1).reshape(-1, 2).astype(np.float32))
    planes = torch.from_numpy(np.stack([uv, uv], 2).reshape(-1, 2, 2).astype(np.float32))
    return LayerSamples(torch.zeros(len(rows), 2, 3), rows, planes, None)


def surveyed(frames: int = 4, error: int = 10, shift: float = 0.0) -> Survey:
    """A layer on the left half of frames that are wrong by `error` levels; the canvas pans by `shift` a frame."""
    box = replace(frame_box(*SIZE), u1=1 + 3 * shift)
    survey = Survey({"front": box, "back": box}, SIZE, range(frames), range(frames), 2.0)
    source = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    for t in range(frames):
        uv = identity() + np.array([t * shift, 0], np.float32)
        survey.add_frame(
            t, source, source + np.uint8(error), samples(uv, np.arange(WIDTH) < WIDTH // 2 + np.zeros((HEIGHT, 1)))
        )
    return survey


def test_coverage_counts_the_frames_that_show_a_place() -> None:
    survey = surveyed(shift=0.5)  # a quarter of a frame a frame
    frames = survey.compute_layer_maps(survey.layers[0], 4).frames
    quarter = frames.shape[1] * 0.5 / 3.5
    middles = [int((i + 0.5) * quarter) for i in range(7)]
    assert [int(frames[5, x]) for x in middles] == [1, 2, 2, 2, 1, 0, 0]
    assert survey.layers[0].pixels == survey.layers[1].pixels == 4 * HEIGHT * WIDTH // 2


def test_a_survey_of_some_frames_speaks_for_all() -> None:
    survey = surveyed()
    assert survey.compute_layer_maps(survey.layers[1], 40).frames.max() == 40


def test_the_residual_is_the_error_and_an_undistorted_layer_has_no_heat() -> None:
    survey = surveyed()
    front, back = (survey.compute_layer_maps(layer, 4) for layer in survey.layers)
    assert np.nanmin(front.residual) == pytest.approx(10) == np.nanmax(front.residual)
    assert np.nanmax(front.stretch) == pytest.approx(1, abs=1e-3) and np.nanmax(front.fold) == 0
    assert np.isnan(front.residual[:, WIDTH // 4 + 2 :]).all() and np.isnan(back.residual[:, : WIDTH // 4 - 2]).all()
    assert survey.psnr[0] == pytest.approx(20 * math.log10(255 / 10))
    assert survey.layers[0].psnr == pytest.approx(survey.psnr)


def test_the_worst_frames_are_from_different_parts_of_the_clip() -> None:
    count = 5 * SURVEY_SETTINGS.parts
    survey = Survey({}, SIZE, range(count), [], 2.0)
    source, nothing = np.zeros((HEIGHT, WIDTH, 3), np.uint8), samples(identity(), ALL)
    errors = {7: 90, 8: 95, 9: 92, 33: 50, 50: 60}
    for t in range(count):
        survey.add_frame(t, source, source + np.uint8(errors.get(t, 3)), nothing)
    worst = survey.worst_frames(3)
    assert [shown.t for shown in worst] == [8, 50, 33]
    assert (worst[0].error == 95).all() and len(survey.thumbnails) == 10


@pytest.mark.parametrize(("count", "most"), [(1, 8), (7, 8), (100, 8)])
def test_frames_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    chosen = spread_indices(count, most)
    assert len(chosen) == min(count, most) and chosen[0] == 0 and chosen[-1] == count - 1


# --- pictures -------------------------------------------------------------------------------------------------------


def flat_maps(**changes: float) -> LayerHeatMaps:
    start = {"frames": 9.0, "stretch": 1.0, "fold": 0.0, "residual": 0.0} | changes
    return LayerHeatMaps(**{name: np.full((4, 6), value) for name, value in start.items()})


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, 0), ({"stretch": 1.45}, 0), ({"stretch": 1.55}, 1), ({"stretch": 1.95}, 1), ({"stretch": 2.05}, 2),
        ({"fold": 0.009}, 0), ({"fold": 0.011}, 1), ({"fold": 0.09}, 1), ({"fold": 0.11}, 2), ({"residual": 19.0}, 0),
        ({"residual": 21.0}, 1), ({"residual": 39.0}, 1), ({"residual": 41.0}, 2), ({"frames": 3.0}, 0),
        ({"frames": 2.0}, 1), ({"frames": 0.0, "fold": 1.0}, -1),
        ({"stretch": math.nan, "residual": math.nan, "fold": math.nan}, 0),
    ],
)  # fmt: skip
def test_a_place_is_as_risky_as_the_worst_that_is_known_of_it(changes: dict[str, float], level: int) -> None:
    assert (classify_risk(flat_maps(**changes), 9) == level).all()


def test_a_still_is_not_risky_for_having_one_frame() -> None:
    assert (classify_risk(flat_maps(frames=1.0), 1) == 0).all()


def test_a_huge_canonical_image_is_shown_small_and_unseen_places_are_checkered() -> None:
    image = CanonicalImage(np.ones((30, 3000, 4), np.float32), Box(-1.0, -1.0, 1.0, 1.0), "wide")
    image.rgba[:, 1500:, 3] = 0
    shown = draw_canonical(image)
    assert shown.shape == (12, HEAT_SETTINGS.canonical_side_px, 3)
    assert (shown[:, : HEAT_SETTINGS.canonical_side_px // 2] == 255).all() and len(
        np.unique(shown[:, HEAT_SETTINGS.canonical_side_px // 2 + 1 :])
    ) == 2
    maps = flat_maps()
    maps.frames[:, 3:] = 0
    for name, picture in draw_heat_maps(image, maps, 9).items():
        assert max(picture.shape) <= 640, name
        assert len(np.unique(picture[:, 320:].reshape(-1, 3), axis=0)) == 2, name


# --- the page of a run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fit of a turtle over a sea floor, with a hostile name and what `train` said of it."""
    home = tmp_path_factory.mktemp("home")
    clip = make_demo_clip(10, WIDTH, HEIGHT)
    (home / "clip <b>").mkdir()
    for number, frame in enumerate(clip.frames):
        cv2.imwrite(str(home / "clip <b>" / f"{number}.png"), frame[..., ::-1])
    np.save(home / "mask.npy", clip.masks[0])
    options = TrainOptions(
        out=home / "run & <i>", masks=(f"turtle={home / 'mask.npy'}",), frames="2:10", overrides={"training.steps": 12}
    )
    seen: list[Progress] = []
    run = train(home / "clip <b>", options, seen.append).run
    notes = [progress.note for progress in seen if progress.stage == "report" and progress.note]
    append_metrics(run, {"note": notes[0]})
    assert len(notes) == 2 and notes[0].endswith(str(run.report))
    assert notes[0].startswith(("Good fit.", "Usable with care.", "Poor fit."))
    assert notes[1] == f"Does each layer hold its object? Look at {run.layers_picture}"
    return run


class Checked(HTMLParser):
    """Collects what a page holds and checks that its tags close."""

    VOID = ("meta", "img", "br", "line")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def pictures(text: str) -> dict[str, np.ndarray]:
    found = [attrs for tag, attrs in Checked(text).tags if tag == "img"]
    data = {attrs["alt"]: base64.b64decode(attrs["src"].removeprefix("data:image/jpeg;base64,")) for attrs in found}
    return {name: cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_COLOR) for name, value in data.items()}


def test_the_page_of_a_run_stands_alone_and_shows_every_layer(fitted: Run) -> None:
    text = fitted.report.read_text(encoding="utf-8")
    checked = Checked(text)
    assert not {"script", "link", "iframe", "i", "object"} & {tag for tag, _ in checked.tags}
    beside_pictures = re.sub(r"base64,[\w+/=]+", "", text)  # any four letters may turn up in the bytes of a picture
    assert not [word for word in ("http", "url(", "@import") if word in beside_pictures]
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for tag, attrs in checked.tags if tag == "img")
    assert "run & <i>: report" in checked.words and "clip <b>" in checked.words  # as text, not as tags
    shown = pictures(text)
    for layer in ("turtle", "background"):
        for name in ("canonical picture", "risk", "coverage", "stretch", "fold", "residual"):
            assert shown[f"{name} of layer {layer}"].std() > 0
    order = [attrs["alt"] for tag, attrs in checked.tags if tag == "img"]
    assert order[0] == "layers on frames"  # right after the verdict; heat maps are folded away
    assert text.index("Next steps") < text.index("Quality of each frame") and "<details><summary>Where edits" in text
    sheet = cv2.imread(str(fitted.layers_picture))
    assert sheet is not None and sheet.shape[0] > shown["layers on frames"].shape[0]
    assert sum(name.startswith("error of frame") for name in shown) == 3
    assert "frame 2" in shown and "frame 9" in shown  # numbers of the source
    assert sum(tag == "rect" for tag, _ in checked.tags) == 8  # a bar for each frame
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_eval_says_the_same_in_numbers(fitted: Run) -> None:
    result = evaluate(fitted, EvalOptions(html=True))
    report = result["report"]
    assert report["path"] == str(fitted.report) and report["title"] in fitted.report.read_text(encoding="utf-8")
    assert report["frames_looked_at"] == 8 and report["verdict"] in ("good", "care", "bad")
    assert report["psnr"] == pytest.approx(result["psnr"], abs=1e-3)
    worst = report["worst_frames"][0]
    assert worst["psnr"] == pytest.approx(min(result["psnr_per_frame"]), abs=1e-3)
    assert worst["frame"] == 2 + int(np.argmin(result["psnr_per_frame"]))
    for layer, numbers in report["layers"].items():
        assert numbers["psnr"] == pytest.approx(result["psnr_per_layer"][layer], abs=1e-3)
        assert sum(numbers["risk"].values()) == pytest.approx(1, abs=1e-4)
        assert numbers["points"]["span"] == 7
    assert report["layers"]["turtle"]["pixel_share"] + report["layers"]["background"]["pixel_share"] == pytest.approx(1)
    assert "report" not in evaluate(fitted)


def test_eval_reconstructs_every_frame_once(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reconstruct = PlanarModel.sample_frame
    asked: list[int] = []

    def count_frames(model: PlanarModel, t: int, size: tuple[int, int]) -> LayerSamples:
        asked.append(t)
        return reconstruct(model, t, size)

    monkeypatch.setattr(PlanarModel, "sample_frame", count_frames)
    result = evaluate(fitted, EvalOptions(html=True))
    assert asked == list(range(8))

    # The figures of the single pass are those of the measures on whole clips.
    opened = require_planar(fitted, "the test")
    source, flow = opened.video.frames, opened.flow
    shown = [reconstruct_frame(opened.model, t) for t in range(8)]
    assert flow is not None
    forward = [resize_vectors(vectors, SIZE) for vectors in flow.forward]
    ok = [resize_mask(mask, SIZE) for mask in flow.forward_ok]
    assert result["warp_error"] == metrics.warp_error(shown, forward, ok)
    assert result["source_warp_error"] == metrics.warp_error(source, forward, ok)
    assert result["psnr_per_frame"] == [round(value, 4) for value in metrics.psnr_per_frame(shown, source)]
    assert result["ssim"] == round(float(np.mean([metrics.ssim(a, b) for a, b in zip(shown, source, strict=True)])), 5)


def reconstruct_frame(model: PlanarModel, t: int) -> np.ndarray:
    with torch.no_grad():
        colors = composite_layers(model.sample_frame(t, SIZE)).clamp(0, 1).view(HEIGHT, WIDTH, 3)
    return (colors * 255).round().to(torch.uint8).numpy()


def test_a_layer_that_is_never_seen_does_not_stop_the_page(fitted: Run) -> None:
    opened = require_planar(fitted, "the test")
    model = opened.model
    source = read_video(Path(fitted.path.parent / "clip <b>"), fitted.cache, "64x36", "2:10").frames
    survey = begin_full_survey(opened)
    for t in range(8):
        found = model.sample_frame(t, SIZE)
        assert found.uv is not None
        hidden = torch.tensor([0.0, 1.0]).expand(len(found.weight), 2)
        survey.add_frame(t, source[t], source[t], replace(found, weight=hidden, uv=found.uv.detach()))
    report = write_report(opened, survey, source, opened.flow, TrainingCost(1, None, None))
    assert report.verdict.level == "care" and "exact" in render_page(report)
    assert report.to_json()["layers"]["turtle"]["risk"] == {"green": 0, "yellow": 0, "red": 0}
    words = Checked(fitted.report.read_text(encoding="utf-8")).words
    assert "Layer 'turtle' is never visible." in words and "No frame shows this layer." in words


def test_a_hostile_layer_name_stays_text(fitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Report] = []

    def keep_report(report: Report) -> str:
        kept.append(report)
        return render_page(report)

    monkeypatch.setattr("neural_fields.evaluation.report.render_page", keep_report)
    evaluate(fitted, EvalOptions(html=True))
    hostile = "<script>alert(1)</script>\"'{{ 1 }}"
    views = [replace(view, measurements=replace(view.measurements, name=hostile)) for view in kept[0].layers]
    text = render_page(replace(kept[0], layers=tuple(views)))
    checked = Checked(text)
    assert "script" not in {tag for tag, _ in checked.tags} and f"Layer {hostile}" in checked.words
    assert f"canonical picture of layer {hostile}" in pictures(text)


def test_a_still_gets_a_report_too(tmp_path: Path) -> None:
    (tmp_path / "still").mkdir()
    cv2.imwrite(str(tmp_path / "still/0.png"), make_demo_clip(1, WIDTH, HEIGHT).frames[0])
    options = TrainOptions(out=tmp_path / "run", overrides={"training.steps": 4})
    run = train(tmp_path / "still", options).run
    words = Checked(run.report.read_text(encoding="utf-8")).words
    assert ": 1 frame, 64x36, preset atlas" in words
    assert evaluate(run, EvalOptions(html=True))["report"]["layers"]["background"]["points"] is None
