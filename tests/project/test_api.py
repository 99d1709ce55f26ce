"""The verbs from Python: what the two packages offer, how little it costs to import them, and that they do the job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import editors
import neural_fields
from editors.demo import make_clip_metadata
from neural_fields.data.synthetic.planar_clips import make_translation_clip
from neural_fields.data.video.io import read_video, write_video

ROOT = Path(__file__).resolve().parents[2]
FRAMES, WIDTH, HEIGHT = 6, 64, 36


@pytest.mark.parametrize("package", [neural_fields, editors])
def test_every_name_that_is_offered_is_there_and_explains_itself(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
        assert name in dir(package)


@pytest.mark.parametrize("package", [neural_fields, editors])
def test_a_name_that_is_not_offered_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        package.fitt  # noqa: B018 - the access is the test


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = (
        "import sys, neural_fields, editors\n"
        "from neural_fields import Run, TrainOptions, UserError\n"
        "TrainOptions(seconds=1)\n"
        "print(sorted({'torch', 'numpy', 'cv2', 'av', 'scipy', 'torchvision'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_threads_are_chosen_before_torch_is_loaded_and_a_choice_of_the_user_stays() -> None:
    code = (
        "import os, sys\n"
        "from neural_fields.core.threads import available_cores, prepare_threads\n"
        "for chosen in ({}, {'OMP_WAIT_POLICY': 'ACTIVE', 'OMP_NUM_THREADS': '3'}):\n"
        "    for name in ('OMP_WAIT_POLICY', 'OMP_NUM_THREADS'): os.environ.pop(name, None)\n"
        "    os.environ.update(chosen)\n"
        "    prepare_threads()\n"
        "    print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'])\n"
        "os.environ.pop('OMP_WAIT_POLICY')\n"
        "from editors import undo\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules, min(8, available_cores()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    ours, theirs, imported = done.stdout.splitlines()
    policy, loaded, cores = imported.split()
    assert (ours, theirs, policy, loaded) == (f"PASSIVE {cores}", "ACTIVE 3", "PASSIVE", "False"), done.stderr


@pytest.mark.slow
def test_a_clip_is_trained_on_edited_rendered_and_measured(tmp_path: Path) -> None:
    from editors import edit, redo, undo
    from neural_fields import RenderOptions, Run, TrainOptions, UserError, evaluate, render, train
    from neural_fields.core.errors import ExitCode

    clip = make_translation_clip(FRAMES, WIDTH, HEIGHT, velocity=(2, 1))
    write_video(tmp_path / "clip.mp4", clip.render_frames(), make_clip_metadata(clip))
    options = TrainOptions(out=tmp_path / "run", masks=("none",), overrides={"training.steps": 8})
    run = train(tmp_path / "clip.mp4", options).run
    with Image.open(run.canonical / "background.png") as exported:
        painted = exported.copy()
    middle = (painted.width // 2 - 6, painted.height // 2 - 5, painted.width // 2 + 6, painted.height // 2 + 5)
    painted.paste((255, 0, 255, 255), middle)
    painted.save(tmp_path / "painted.png")

    assert edit(run.path, tmp_path / "painted.png", layer="background").edit.number == 1
    (video,) = render(Run.open(run.path), RenderOptions(out=tmp_path / "edited.mp4"))
    before, after = (
        np.asarray(read_video(path, tmp_path / "seen").frames, float) for path in (tmp_path / "clip.mp4", video)
    )
    assert (np.abs(after - before).max(-1) > 100).sum((1, 2)).min() > 30  # in every frame
    assert evaluate(run)["psnr"] > 25
    assert undo(run).edit.name == "painted" and redo(run).edit.name == "painted"
    with pytest.raises(UserError, match="no layer 'sky'"):
        edit(run, tmp_path / "painted.png", layer="sky")
    with pytest.raises(UserError, match="neither a layer nor a frame") as caught:
        edit(run, tmp_path / "painted.png")
    assert caught.value.code == ExitCode.BAD_INPUT and "--layer background" in caught.value.fix
