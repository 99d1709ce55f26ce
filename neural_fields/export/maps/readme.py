"""Writes the README beside exported maps: how to read their numbers, and how to use them in each program."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from itertools import pairwise

from neural_fields.export.maps.comps import CompDescription


def readme_text(comp: CompDescription) -> str:
    """Returns the text, in plain words, for the program that the maps were written for."""
    convention, program = comp.convention, comp.convention.program
    first, last = comp.frames[0], comp.frames[-1]
    skips = any(b - a > 1 for a, b in pairwise(comp.frames))
    width, height = comp.size
    files = [
        f"The first frame of the source has the number {comp.first_number}, here and in tracks of the same run. "
        f"These are {first} to {last}{', with some left out' if skips else ''}, {width} x {height} pixels."
    ]
    for layer in comp.layers:
        (width, height), (flat_width, flat_height) = layer.size, layer.unwrapped_size
        painted = "transparent; what you paint here appears in the video, {} x {}".format(*layer.overlay_size)
        rows = [
            (f"canonical/{layer.name}.png", f"the canonical picture of the layer, {width} x {height}"),
            (f"overlay/{layer.name}.png", painted),
        ]
        if comp.forward:
            rows.append(
                (comp.file_pattern("forward", layer), "position of each pixel of a frame on the canonical picture")
            )
        if comp.inverse:
            what = f"position in the frame of each texel of a {flat_width} x {flat_height} picture"
            rows.append((comp.file_pattern("inverse", layer), what))
        if comp.light:
            rows.append((comp.file_pattern("light", layer), "the light in a frame: RGB is multiplied by it"))
        files += ["", *(f"    {name:<36}{what}" for name, what in rows)]
    files += ["", "stmap.json says all this for programs."]

    numbers = [
        "Let x, y be a position in a picture of W x H pixels, counted in pixels to the right and down from its top "
        "left corner; the center of its first pixel is (0.5, 0.5). A map is looked up at its own pixels, and holds "
        "there, in 32-bit floats:",
        "",
    ]
    if convention.pixels:
        numbers += [
            "    array[0] = x - 0.5    array[1] = y - 0.5    array[2] = A",
            "",
            "Arrays are float32 [3, rows, columns]. The center of the first pixel is (0, 0), as cv2.remap counts. "
            "Forward maps count pixels of the canonical picture.",
        ]
    else:
        down, blue = "1 - y / H" if convention.from_bottom else "y / H", "A" if convention.mask_in_blue else "0"
        numbers += [
            f"    R = x / W    G = {down}    B = {blue}    A",
            "",
            f"So (0, 0) is the {convention.origin.replace('-', ' ')} corner of the picture and (1, 1) the opposite "
            "one, and the picture may have any size: an overlay that is finer than its canonical picture is looked up "
            "by the same map. RGB is not multiplied by A.",
        ]
    if comp.forward:
        numbers.append("A of a forward map is how much of the pixel the layer fills; 0 beyond the canonical picture.")
    if comp.inverse:
        numbers.append(
            "A of an inverse map is how much of the layer the frame shows there; 0 where it is hidden, beyond the "
            "frame, or where the layer folds, so that one texel has several places."
        )
    numbers.append("Where A is 0 the other numbers mean nothing.")

    sections = [
        (f"Maps for {program}", files),
        ("How the numbers are to be read", numbers),
        (f"In {program}", _STEPS[program](comp)),
    ]
    if comp.forward:
        sections.append(("What differs from `unwrap render`", [_LIMITS]))
    texts = []
    for title, parts in sections:
        # Paragraphs and steps are wrapped; what is set in by four spaces stays as it is.
        lines = [f"{title.upper()}\n"]
        for part in parts:
            if part.startswith("    "):
                lines.append(part)
            else:
                indent = "   " if part[:1].isdigit() else ""
                lines.append(textwrap.fill(part, 100, subsequent_indent=indent, break_long_words=False))
        texts.append("\n".join(lines))
    return "\n\n".join(texts) + "\n"


def _nuke_steps(comp: CompDescription) -> list[str]:
    """Explains how the maps are used in Nuke."""
    if not comp.forward:
        return ["STMap with the frame as src, an inverse map as stmap and UV channels rgb gives the layer laid flat."]
    parts = [
        "Open comp.nk from this folder. It looks the overlays up (STMap: input src is the overlay, input stmap the "
        f"map, UV channels rgb), weighs them by A of the map{', lights them' if comp.light else ''}, adds them up "
        "and puts the sum over the source. Paint overlay/NAME.png, or put a RotoPaint behind its Read. The nodes "
        f"layer_NAME show a layer alone{', unwrapped_NAME the frame laid flat' if comp.inverse else ''}.",
        "All Reads are raw, because light and weight belong to the values as the files store them: set the viewer "
        "process to none or raw. The script was written by Nuke's reference and has not been run in Nuke.",
    ]
    if comp.source is None:
        parts.append(
            "The source is not named in the script: choose it in the Read called source, its first frame at "
            f"{comp.first_number}."
        )
    return parts


def _fusion_steps(comp: CompDescription) -> list[str]:
    """Explains how the maps are used in Fusion."""
    kind, picture = ("forward", "overlay/NAME.png") if comp.forward else ("inverse", "the frame")
    parts = [
        f"1. Load {kind}/NAME.*.exr. In the Loader's Format tab (MediaIn: its OpenEXR tab) set U to R and V to G; "
        "keep A.",
        f"2. Add a Texture node (Deep Pixel). Its Input is that Loader and its Texture {picture}"
        f"{', loaded with Post-Multiply by Alpha' if comp.forward else ''}.",
    ]
    if comp.forward:
        light = "Multiply its colors by the light, then merge" if comp.light else "Merge"
        parts.append(
            f"3. {light} it over the source, with A of the map as the effect mask of the Merge. Take all values as the "
            "files store them, without gamma or gamut."
        )
    else:
        parts.append("3. A of the map is the matte of what comes out.")
    return [*parts, "These steps follow Fusion's manual and have not been tried in Fusion."]


def _blender_steps(comp: CompDescription) -> list[str]:
    """Explains how the maps are used in Blender."""
    if not comp.forward:
        what = "Compositor: Map UV with the frame as Image and the inverse map (image sequence, Non-Color) as UV."
        return [what, "Blender takes the blue channel of a UV map as its mask."]
    return [
        "Save a new file in this folder and run comp_blender.py in it: pictures are found from the place of that file. "
        "The script was run in Blender 4.2, 4.4, 4.5 and 5.0. Its nodes, which take the place of those of the scene:",
        "1. overlay/NAME.png and forward/NAME.*.exr (image sequence), both with the color space Non-Color, the alpha "
        "mode Channel Packed and the view transform Raw: light and weight belong to the values in the files.",
        "2. Alpha Convert: the overlay is premultiplied. (With the alpha mode Straight, Blender does so itself up to "
        "version 4.3 and does not from 4.4 on.)",
        "3. Map UV: the overlay is its Image, the sequence its UV. Blender takes the blue channel of a UV map as "
        "its mask and multiplies by it, so that the result is premultiplied.",
        f"4. {'Multiply by the light (Mix, Multiply), then ' if comp.light else ''}Alpha Over: the source below, "
        "this above; its factor is 0 in frames without a map.",
        "Blender enlarges the colors of H.264 in its own way: at colored edges, painted or not, it shows values that "
        "differ from those of Unwrap by up to 45 of 255. A source of pictures is the same to the last bit.",
    ]


def _after_effects_steps(comp: CompDescription) -> list[str]:
    """Explains how the maps are used in After Effects."""
    return [
        "After Effects itself has nothing that looks a picture up in a map of positions; plug-ins do (RE:Map is "
        "one). Set the project to 32 bits per channel, or positions are off by pixels, and interpret the maps "
        "without color management. They count from the top left corner, as After Effects does; if your plug-in "
        "counts from the bottom left, export with --for nuke. Multiply what it gives by A of the "
        f"map{' and its colors by the light' if comp.light else ''}.",
        "None of this has been tried in After Effects. Without a plug-in, `unwrap export RUN unwrapped` gives a "
        "clip of a layer laid flat.",
    ]


def _opencv_steps(comp: CompDescription) -> list[str]:
    """Explains how the maps are used in OpenCV."""
    layer, number = comp.layers[0], comp.frames[0]
    kind = "forward" if comp.forward else "inverse"
    parts = ["    import cv2, numpy as np", f'    x, y, a = np.load("{comp.file_pattern(kind, layer) % number}")']
    if not comp.forward:
        return [*parts, "    flat = cv2.remap(frame, x, y, cv2.INTER_LINEAR) * a[..., None]"]
    parts += [
        f'    overlay = cv2.imread("overlay/{layer.name}.png", cv2.IMREAD_UNCHANGED) / np.float32(255)',
        "    overlay[..., :3] *= overlay[..., 3:]  # premultiply before a lookup",
        "    rows, columns = overlay.shape[:2]  # it may be finer than the canonical picture, whose pixels x, y count",
        f"    x, y = (x + 0.5) * columns / {layer.size[0]} - 0.5, (y + 0.5) * rows / {layer.size[1]} - 0.5",
        "    seen = cv2.remap(overlay, x, y, cv2.INTER_LINEAR) * a[..., None]",
    ]
    if comp.light:
        parts.append(
            f'    seen[..., :3] *= np.load("{comp.file_pattern("light", layer) % number}")[..., ::-1]  # RGB to BGR'
        )
    return [*parts, "    result = seen[..., :3] + frame * (1 - seen[..., 3:])  # frame: BGR in 0 to 1"]


_STEPS: dict[str, Callable[[CompDescription], list[str]]] = {
    "Nuke": _nuke_steps,
    "Fusion": _fusion_steps,
    "Blender": _blender_steps,
    "After Effects": _after_effects_steps,
    "OpenCV": _opencv_steps,
}

_LIMITS = (
    "Where one layer fills a pixel, the overlay times the light over the source is what `unwrap render` shows. "
    "Where layers share a pixel, at the rim of an object, render replaces that layer's part of the source alone; a "
    "comp has only the mixture. Programs also filter in their own ways where an overlay has more texels than the "
    "frame has pixels."
)
