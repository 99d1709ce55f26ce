"""Several painted frames make one edit: together they are the mark, and one that differs leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pytest

from editors.inputs.painted_frames import LiftedFrame, lift_frames, merge_votes
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.placed_picture import Paint
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.synthetic.planar_clips import PaintedMark
from neural_fields.evaluation import metrics
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.overlay_pass import OverlayPass
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow


def mark(color: tuple[float, float, float] = (0.9, 0.2, 0.1), box: Box | None = None, frame: int = 0) -> PaintedMark:
    """A soft disc with stripes in it."""
    y, x = np.mgrid[:96, :96]
    alpha = np.clip((44 - np.hypot(x - 47.5, y - 47.5)) / 6, 0, 1)
    shade = 1 - 0.35 * (np.sin(x / 7) > 0)
    rgba = np.concatenate([shade[..., None] * np.array(color), alpha[..., None]], axis=-1)
    return PaintedMark(rgba.astype(np.float32), box or Box(-0.5, -0.1, -0.25, 0.15), "foreground", frame)


def picture(frame: np.ndarray) -> Picture:
    rgba = np.concatenate([frame.astype(np.float32) / 255, np.ones((*frame.shape[:2], 1), np.float32)], axis=-1)
    return Picture(rgba, had_alpha=False, lossy=False, source="painted.png")


def lifted(true_run: TrueRun, painted: dict[int, np.ndarray], layer: str | None = "foreground") -> dict[str, Paint]:
    pictures = {number: picture(frame) for number, frame in painted.items()}
    return dict(lift_frames(require_planar(true_run.run, "the test"), pictures, layer))


def rendered(true_run: TrueRun, overlays: Mapping[str, Paint]) -> list[np.ndarray]:
    maps = Maps.open(true_run.run.maps)
    pictures = {name: canonical.read_pristine(true_run.run.canonical, name) for name in maps.layers}
    renderer = OverlayPass(maps, pictures, overlays, frames=range(len(true_run.clip.frames)))
    return [renderer.render_frame(t, frame) for t, frame in enumerate(true_run.clip.frames)]


def fidelity(true_run: TrueRun, overlays: Mapping[str, Paint], truth: np.ndarray) -> float:
    """PSNR where the true edit changes something, over all frames."""
    changed = np.stack([cv2.absdiff(a, b).max(axis=-1) > 2 for a, b in zip(truth, true_run.clip.frames, strict=True)])
    return metrics.psnr(np.stack(rendered(true_run, overlays)), truth, changed)


def notes_on(first: np.ndarray, *others: np.ndarray) -> tuple[str, ...]:
    """What is said of frames that see a layer equally well and were painted so, straight RGBA."""
    votes = [
        LiftedFrame(number, Overlay(rgba.astype(np.float32), BOX), np.ones(rgba.shape[:2], np.float32), 1)
        for number, rgba in enumerate((first, *others))
    ]
    return merge_votes("foreground", votes).notes


BOX = Box(0.0, 0.0, 1.0, 1.0)


def test_frames_are_said_to_differ_where_their_solid_paint_has_clearly_another_color() -> None:
    paint = np.zeros((40, 40, 4))
    paint[5:35, 5:35] = (0.5, 0.5, 0.5, 1)
    far, near, few, edge = paint.copy(), paint.copy(), paint.copy(), paint.copy()
    far[5:35, 5:20, :3] = 0.7
    near[5:35, 5:20, :3] = 0.55
    few[6:8, 6:8, :3] = 0.9
    edge[5:35, 5:20] = (0.9, 0.9, 0.9, 0.3)
    (note,) = notes_on(paint, far, paint)
    assert note.startswith("frame 1 differs from frames 0 and 2 on ")
    for other in (near, few, edge):
        assert notes_on(paint, other, paint) == ()


def test_an_unknown_layer_is_refused_before_any_work(true_run: TrueRun) -> None:
    with pytest.raises(UserError, match="no layer 'sky'") as unknown:
        lifted(true_run, {0: true_run.clip.frames[0]}, "sky")
    assert "foreground, background" in unknown.value.why


@pytest.fixture(scope="module")
def truth(true_run: TrueRun) -> np.ndarray:
    return true_run.clip.render_edited([mark()])


def test_one_mark_painted_on_three_frames_is_that_mark_in_all_frames(true_run: TrueRun, truth: np.ndarray) -> None:
    together = lifted(true_run, {k: truth[k] for k in (1, 5, 9)})
    alone = [fidelity(true_run, lifted(true_run, {k: truth[k]}), truth) for k in (1, 5, 9)]
    found = fidelity(true_run, together, truth)
    assert found > 32 and found > float(np.mean(alone))
    assert not any("differs" in note for note in together["foreground"].notes)


def test_two_frames_that_were_painted_alike_are_no_worse_than_the_better_of_them(
    true_run: TrueRun, truth: np.ndarray
) -> None:
    alone = [fidelity(true_run, lifted(true_run, {k: truth[k]}), truth) for k in (2, 8)]
    assert fidelity(true_run, lifted(true_run, {k: truth[k] for k in (2, 8)}), truth) > min(alone) - 0.2


def test_one_frame_of_three_that_differs_leaves_no_trace_and_is_named(true_run: TrueRun, truth: np.ndarray) -> None:
    wrong = true_run.clip.render_edited([mark((0.1, 0.3, 0.9))])
    overlays = lifted(true_run, {1: truth[1], 5: wrong[5], 9: truth[9]})
    right = lifted(true_run, {k: truth[k] for k in (1, 5, 9)})
    assert fidelity(true_run, overlays, truth) > fidelity(true_run, right, truth) - 2
    rgba = overlays["foreground"].rgba
    inside = cv2.erode((rgba[..., 3] > 0.9).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert (rgba[inside][:, 0] > rgba[inside][:, 2] + 0.2).all()
    told = [note for note in overlays["foreground"].notes if "differs" in note]
    assert len(told) == 1 and told[0].startswith("frame 5 differs from frames 1 and 9 on ")


def test_of_two_frames_that_differ_one_is_followed_as_a_whole_and_the_other_named(
    true_run: TrueRun, truth: np.ndarray
) -> None:
    wrong = true_run.clip.render_edited([mark((0.1, 0.3, 0.9))])
    found = lifted(true_run, {1: truth[1], 9: wrong[9]})["foreground"]
    solid = cv2.erode((found.rgba[..., 3] > 0.9).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert solid.sum() > 100
    reddish = found.rgba[solid][:, 0] > found.rgba[solid][:, 2]
    assert reddish.all() or not reddish.any()
    (told,) = [note for note in found.notes if "differs" in note]
    assert told.startswith("frame 9 differs from frame 1" if reddish.all() else "frame 1 differs from frame 9")


def test_what_was_painted_in_one_frame_only_stays(true_run: TrueRun, truth: np.ndarray) -> None:
    left = true_run.clip.render_edited([mark(box=Box(-0.56, -0.04, -0.44, 0.08))])
    right = true_run.clip.render_edited([mark(box=Box(-0.36, -0.04, -0.24, 0.08))])
    painted = {1: left[1], 5: right[5], 9: right[9]}
    both = true_run.clip.render_edited(
        [mark(box=Box(-0.56, -0.04, -0.44, 0.08)), mark(box=Box(-0.36, -0.04, -0.24, 0.08))]
    )
    overlays = lifted(true_run, painted)
    assert fidelity(true_run, overlays, both) > 28
    assert not any("differs" in note for note in overlays["foreground"].notes)


def test_frames_may_belong_to_different_layers(true_run: TrueRun, truth: np.ndarray) -> None:
    corner = mark(box=Box(-0.95, -0.5, -0.7, -0.25))
    ground = true_run.clip.render_edited([PaintedMark(corner.picture, corner.box, "background")])
    overlays = lifted(true_run, {1: truth[1], 9: ground[9]}, layer=None)
    assert set(overlays) == {"foreground", "background"}


def test_a_frame_that_the_run_has_not_is_refused_before_any_work(true_run: TrueRun, truth: np.ndarray) -> None:
    with pytest.raises(UserError, match="frame 99 is not part of this run") as refused:
        lifted(true_run, {1: truth[1], 99: truth[2]})
    assert refused.value.code == ExitCode.BAD_INPUT and "--frame 11" in refused.value.fix


def test_a_frame_without_a_change_is_refused(true_run: TrueRun, truth: np.ndarray) -> None:
    with pytest.raises(UserError, match="no change found"):
        lifted(true_run, {1: truth[1], 5: true_run.clip.frames[5]})
