"""Examples for the help of each editor: what follows its name on the command line."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "sds": ('--layer foreground --model MODEL --prompt "blue dots"',),
    "text2live": ('--layer foreground --model MODEL --prompt "blue dots"',),
    "inpaint": (
        '--model MODEL --prompt "blue dots"',
        '--model MODEL --prompt "a red door" --layer background --mask door.png',
        '--model MODEL --prompt "a lake" --layer background --region "a meadow"',
    ),
    "img2img": (
        '--model MODEL --prompt "a watercolor of a car"',
        '--model MODEL --prompt "autumn" --layer background --strength 0.4',
    ),
    "controlnet": ('--model MODEL --prompt "a wooden car" --control edges=FOLDER',),
    "videdit": ('--model MODEL --control FOLDER --prompt "a retro neon jeep"',),
    "mediated": (
        '--model MODEL --prompt "blue dots"',
        '--model MODEL --prompt "blue dots" --keyframes 3,10,20 --attention first',
    ),
    "stablevideo": ('--model MODEL --prompt "a wooden car"',),
    "tokenflow": ('--model MODEL --prompt "an oil painting of a car"',),
    "instruct": (
        '--model MODEL --prompt "turn the car into a taxi"',
        '--model MODEL --prompt "make it winter" --layer background',
    ),
    "pnp": (
        '--model MODEL --prompt "a watercolor of a car"',
        '--model MODEL --prompt "snow" --layer background --attention 0.3',
    ),
    "p2p": ('--model MODEL --source-prompt "a red car on a road" --prompt "a blue car on a road"',),
    "shape": (
        "--frame 0 --pairs-file pairs.csv",
        "--frame 0 --flow moved.npy",
    ),
    "shape_aware": (
        '--model MODEL --prompt "a jeep"',
        "--frame 20 --edited frame20.png",
    ),
    "place": (
        '--image logo.png --box "240,290,130,80" --frame 25',
        '--image number.png --quad "1290,618 1482,622 1476,742 1290,752"',
        '--image logo.png --frame 12 --box "300,120,80,40"',
    ),
    "drag": (
        '--frame 25 --drag "495,150>550,130"',
        '--frame 25 --drag "191,289>140,240" --radius 250',
        '--frame 15 --drag "1340,465>1340,380" --hold "1250,800" --hold "1720,800"',
    ),
    "style": (
        "--weights mosaic.pth --layer turtle --layer background",
        "--weights candy.bin --side 640 --layer background",
        "--weights udnie.safetensors --strength 0.6 --mask region.png",
    ),
    "adjust": (
        "--exposure -1 --saturation 0.4 --layer background",
        "--hue 120 --mask region.png",
        '--curve "0,0 0.3,0.2 0.7,0.85 1,1"',
    ),
    "lift": ("--function looks.py:warm --layer background",),
    "remove": (
        "--layer foreground",
        "--start 2s --fade-in 0.5s",
    ),
    "replace": (
        "--image beach.jpg",
        "--image clouds.mp4 --still",
        "--image wood.png --layer foreground --lit",
    ),
    "frames": ("--frames styled/ --mask mask.png --layer background",),
    "unwrapped": ("--clip painted.mov --layer foreground",),
}
SCENE_EXAMPLES: dict[str, tuple[str, ...]] = {
    "dynvideo_e": (
        '--model MODEL --prompt "a person in a red coat"',
        "--reference painted.png --reference-view 12",
        '--prompt "a clown" --model MODEL',
    ),
    "volume_style": ("--style painting.jpg --features vgg16-397923af.pth",),
    "remove": ("",),
    "replace": ("--weights runs/other/checkpoints/001000/model.safetensors",),
}
