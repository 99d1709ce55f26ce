"""Runs an exported comp in Blender's Python: `python blender_comp.py EXPORT FRAME ...` writes EXPORT/blender.npy."""

import runpy
import sys
from pathlib import Path

import bpy
import numpy as np


def main(folder: Path, frames: list[int]) -> None:
    """Asks for what an unsaved file says, builds the comp in a saved one, and renders frames."""
    bpy.ops.wm.read_factory_settings()
    before = bpy.context.scene.view_settings.view_transform
    try:
        runpy.run_path(str(folder / "comp_blender.py"))
    except RuntimeError as error:
        assert "save this file" in str(error), error
    else:
        raise AssertionError("an unsaved file has no place")
    assert bpy.context.scene.view_settings.view_transform == before, "an error changes nothing"

    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "comp.blend"))
    runpy.run_path(str(folder / "comp_blender.py"))
    scene, found = bpy.context.scene, []
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGB"
    scene.render.filepath = str(folder / "blender.png")
    for frame in frames:
        scene.frame_set(frame)
        bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(scene.render.filepath)
        image.colorspace_settings.name = "Non-Color"
        found.append(np.array(image.pixels[:]).reshape(image.size[1], image.size[0], 4)[::-1, :, :3])
        bpy.data.images.remove(image)
    np.save(folder / "blender.npy", np.stack(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
