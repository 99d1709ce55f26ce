"""Runs the complete workflow from Python: make a clip, train on it, paint on the object's picture, render, measure.

python examples/1_edit_a_clip.py [FOLDER]     (default: example; about half a minute on two cores)
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from editors import edit
from editors.demo import make_clip_metadata
from neural_fields import RenderOptions, TrainOptions, evaluate, render, train
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import write_video

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
folder.mkdir(parents=True, exist_ok=True)

# A turtle over a sea floor, with changing light. To use your own video, remove these two lines.
clip = make_demo_clip(frames=24, width=320, height=180)
write_video(folder / "clip.mp4", clip.render_frames(), make_clip_metadata(clip), overwrite=True)

# A second run of this script continues the training, or finds it finished.
run = train(folder / "clip.mp4", TrainOptions(out=folder / "run", quality="draft")).run

# Any image tool can do this part. The alpha channel of the picture says where the video shows the object.
with Image.open(run.canonical / "foreground.png") as exported:
    picture = exported.convert("RGBA")
x, y, radius = picture.width / 2, picture.height / 2, picture.width / 10
ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(235, 40, 90, 255))
picture.save(folder / "painted.png")

made = edit(run, folder / "painted.png", layer="foreground")
(video,) = render(run, RenderOptions(edits=(made.edit.folder.name,), out=folder / "edited.mp4", overwrite=True))
print(f"{video}: the fit has {evaluate(run)['psnr']:.1f} dB")
