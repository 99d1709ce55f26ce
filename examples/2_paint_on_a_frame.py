"""Paints on one frame of the video: the paint moves with the surface and is hidden by objects that pass in front.

python examples/2_paint_on_a_frame.py [FOLDER]     (a folder that example 1 or `unwrap demo` made; default: example)
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from editors import edit
from neural_fields import RenderOptions, Run, render
from neural_fields.data.video.io import probe_video, source_frames

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
run = Run.open(folder / "run")
facts = probe_video(folder / "clip.mp4")

# One frame as a picture. Any program that saves a still of the video works, if the still has the size of the video.
number = facts.frame_count // 10
(frame,) = source_frames(facts, range(number, number + 1))
picture = Image.fromarray(frame)
font = ImageFont.load_default(size=facts.height / 5)
place = (0.66 * facts.width, 0.42 * facts.height)
ImageDraw.Draw(picture).text(place, "hello", fill=(250, 246, 220), anchor="mm", font=font)
picture.save(folder / "painted-frame.png")

# Without `layer`, the layer that fills most of the painted pixels takes the paint; here that is the sea floor anyway.
made = edit(run, folder / "painted-frame.png", frame=number, layer="background")
for note in made.notes:
    print("note:", note)
options = RenderOptions(edits=(made.edit.folder.name,), out=folder / "painted-frame.mp4", overwrite=True)
print(*render(run, options))
