"""The wheel, built, installed in a clean environment and started from another folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "PYTEST"))}


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    pytest.importorskip("hatchling", reason="the extra 'dev' is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds the wheel and sees, but does not copy, the dependencies."""
    uv = pytest.importorskip("uv", reason="the extra 'dev' is not installed")
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    binaries = folder / "bin"
    run(
        uv.find_uv_bin(), "pip", "install", "--offline", "--no-deps", "--python", binaries / "python", wheel, cwd=folder
    )
    # A line in a .pth file adds the folder but does not read the .pth files in it: this checkout stays out of sight.
    site = Path(
        run(binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


def test_the_wheel_holds_the_two_packages_and_nothing_else_to_import(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"neural_fields", "editors"}
    assert {"neural_fields/py.typed", "editors/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(
        name.endswith((".py", ".yaml", ".html.j2", ".css", "py.typed")) for name in names if ".dist-info/" not in name
    )


def test_every_module_and_template_of_the_checkout_travels(wheel: Path) -> None:
    files = [path for package in ("neural_fields", "editors") for path in (ROOT / package).rglob("*.*")]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in (".py", ".j2", ".css")}
    assert {"neural_fields/evaluation/report/page.html.j2", "editors/live/watch.html.j2"} <= names
    assert names <= set(zipfile.ZipFile(wheel).namelist())


def test_presets_are_read_from_the_installed_package(installed: Path, tmp_path: Path) -> None:
    code = """if True:
        import json, sys
        from neural_fields.config.presets import all_presets, planar_presets, preset_path
        names = all_presets(), str(preset_path("atlas")), "torch" in sys.modules
        from neural_fields.config.presets import volume_presets
        from neural_fields.planar.config import load_planar_config
        from neural_fields.volume.config import load_volume_config
        configs = [load_planar_config(name) for name in planar_presets()]
        configs += [load_volume_config(name) for name in volume_presets()]
        print(json.dumps(names))
    """
    names, path, torch_loaded = json.loads(run(installed / "python", "-c", code, cwd=tmp_path))
    assert names == sorted(preset.stem for preset in (ROOT / "configs").glob("*.yaml"))
    assert Path(path).is_relative_to(installed.parent)
    assert not torch_loaded


def test_help_lists_the_commands_without_loading_heavy_packages(installed: Path, tmp_path: Path) -> None:
    words = set(re.findall(r"[a-z]+", run(installed / "unwrap", "--help", cwd=tmp_path)))
    assert {"train", "edit", "edits", "undo", "redo", "render", "eval", "info", "doctor", "demo"} <= words
    code = """if True:
        import contextlib, io, sys
        from editors.cli.main import main
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            main(["--help"])
        print(*({"torch", "torchvision", "cv2", "av", "scipy", "lpips"} & sys.modules.keys()))
    """
    assert run(installed / "python", "-c", code, cwd=tmp_path).strip() == ""


def test_train_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    command = ["train", "clip.mp4", "--out", "runs/x", "--size", "64x36", "--training.steps", "5", "--masks", "none"]
    command += ["--training.solver", "adam"]  # a new environment would have to compile the loops of the other solver
    run(installed / "unwrap", *command, cwd=tmp_path)
    made = tmp_path / "runs" / "x"
    assert (made / "run.yaml").is_file()
    assert (made / "canonical" / "background.png").stat().st_size > 0
    assert json.loads((made / "source.json").read_text())["frame_count"] == 6


def write_clip(path: Path) -> None:
    """Six frames of a smooth texture that moves two pixels a frame."""
    import av

    y, x = np.mgrid[0:72, 0:160]
    texture = np.stack([np.sin(x / 5) + np.cos(y / 7), np.sin((x + y) / 9), np.cos(x / 11) * np.sin(y / 4)], -1)
    pixels = (127 + 60 * texture.clip(-2, 2)).astype(np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        for shift in range(0, 12, 2):
            picture = np.ascontiguousarray(pixels[:, shift : shift + 128])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
