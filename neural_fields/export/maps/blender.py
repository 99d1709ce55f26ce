"""Writes a script that builds the comp in Blender. It follows Blender's reference and was not run in Blender."""

from __future__ import annotations

import json

from neural_fields.export.maps.comps import CompDescription, CompLayer


def build_blender_script(comp: CompDescription) -> str:
    """Returns a script that looks overlays up, lights them and composites them over the source, back to front."""
    source = comp.source
    if source is None:
        source_line = 'shown = tree.nodes.new("CompositorNodeImage").outputs["Image"]  # choose the source in this node'
    else:
        name = source.file if source.is_video else source.file % source.first
        kind = "MOVIE" if source.is_video else "SEQUENCE"
        source_line = f'shown = picture({json.dumps(name)}, "{kind}", {source.first})'
    fps = max(1, round(comp.rate))
    lines = [
        "# Builds the compositor's nodes for these maps. In Blender 4.2 to 4.5: save a new file in this folder, open",
        "# this text in the Text Editor and press Run. Written by Blender's reference, not run in Blender.",
        "import os",
        "",
        "import bpy",
        "",
        f"FIRST, LAST = {comp.frames[0]}, {comp.frames[-1]}",
        _HEAD,
        "scene.frame_start, scene.frame_end = FIRST, LAST",
        f"scene.render.resolution_x, scene.render.resolution_y = {comp.size[0]}, {comp.size[1]}",
        "scene.render.resolution_percentage = 100",
        f"scene.render.fps, scene.render.fps_base = {fps}, {float(fps / comp.rate):.9g}",
        source_line,
    ]
    for layer in reversed(comp.layers):  # back to front
        light = f'"{_first_file(comp, "light", layer)}"' if comp.light else "None"
        files = f'"overlay/{layer.name}.png", "{_first_file(comp, "forward", layer)}", {light}'
        lines.append(f"shown = put_on(shown, {files})")
    lines.append('tree.links.new(shown, tree.nodes.new("CompositorNodeComposite").inputs["Image"])')
    return "\n".join(lines) + "\n"


def _first_file(comp: CompDescription, kind: str, layer: CompLayer) -> str:
    """Returns the file of the first frame."""
    return comp.file_pattern(kind, layer) % comp.frames[0]


_HEAD = '''HERE = os.path.dirname(bpy.data.filepath)
scene = bpy.context.scene
scene.use_nodes = True
scene.view_settings.view_transform = "Raw"  # light and weight belong to the values as the files store them
tree = scene.node_tree
tree.nodes.clear()


def picture(file, kind="FILE", first=None):
    """The output of an image node. `first` is the number in the file that frame 0 of the scene shows."""
    image = bpy.data.images.load(os.path.join(HERE, file))
    image.colorspace_settings.name = "Non-Color"
    image.source = kind
    node = tree.nodes.new("CompositorNodeImage")
    node.image = image
    if first is not None:
        node.frame_start, node.frame_duration = FIRST, LAST - FIRST + 1
        node.frame_offset = FIRST + first - 1
    return node.outputs["Image"]


def put_on(below, overlay, forward, light):
    """An overlay, looked up by a map, lit and laid over what is below."""
    lookup = tree.nodes.new("CompositorNodeMapUV")
    lookup.filter_type = "ANISOTROPIC"
    tree.links.new(picture(overlay), lookup.inputs["Image"])
    tree.links.new(picture(forward, "SEQUENCE", 0), lookup.inputs["UV"])
    shown = lookup.outputs["Image"]
    if light:
        lit = tree.nodes.new("CompositorNodeMixRGB")
        lit.blend_type = "MULTIPLY"
        tree.links.new(shown, lit.inputs[1])
        tree.links.new(picture(light, "SEQUENCE", 0), lit.inputs[2])
        shown = lit.outputs["Image"]
    over = tree.nodes.new("CompositorNodeAlphaOver")
    tree.links.new(below, over.inputs[1])
    tree.links.new(shown, over.inputs[2])
    return over.outputs["Image"]
'''
