"""Writes a script that builds the comp in Blender; `tests/faults/test_clients.py` runs it where `bpy` is installed."""

from __future__ import annotations

from neural_fields.export.maps.comps import CompDescription


def build_blender_script(comp: CompDescription) -> str:
    """Returns a script that looks overlays up, lights them and composites them over the source, back to front."""
    source, numbers = comp.source, comp.frames
    shown = "None  # choose it in the node that has no picture"
    if source is not None:
        file = source.file if source.is_video else source.file % source.first
        shown = repr((file, "MOVIE" if source.is_video else "SEQUENCE", comp.first_number, source.count, source.first))
    kinds = ("forward", "light") if comp.light else ("forward",)
    rows = [
        (
            layer.overlay_size[0] // layer.size[0],
            f"overlay/{layer.name}.png",
            *(comp.file_pattern(kind, layer) % numbers[0] for kind in kinds),
        )
        for layer in reversed(comp.layers)
    ]
    fps = max(1, round(comp.rate))
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    lines = [
        "# Builds the compositor's nodes for these maps, in Blender 4.2 to 5.0: save a new file in this folder, open",
        "# this text in the Text Editor and press Run.",
        "import os",
        "",
        "import bpy",
        "",
        f"FIRST, LAST, STEP = {numbers[0]}, {numbers[-1]}, {step}  # of the frames that have maps",
        f"END = {comp.last_number}",
        f"SIZE = {comp.size}",
        f"RATE = {fps}, {float(fps / comp.rate):.9g}",
        f"SOURCE = {shown}",
        f"LAYERS = {rows}  # back to front; first, how much finer the overlay is than the canonical picture",
        _SCRIPT,
    ]
    return "\n".join(lines)


_SCRIPT = '''HERE = os.path.dirname(bpy.data.filepath)

# All that can go wrong is asked before anything in the file is changed.
if bpy.app.version < (4, 2):
    raise RuntimeError("this script needs Blender 4.2 or newer, and this is %s" % bpy.app.version_string)
if not HERE:
    raise RuntimeError("save this file into the folder of the export first: its pictures are found from there")
files = [row[0] for row in [SOURCE] if row] + [file for row in LAYERS for file in row[1:]]
missing = [file for file in files if not os.path.isfile(os.path.join(HERE, file))]
if missing:
    raise RuntimeError("not found from %s: %s. Save this file into the folder of the export" % (HERE, missing[0]))

NEW = bpy.app.version >= (5, 0)  # comps are node groups, and some nodes have other names
scene = bpy.context.scene
view = scene.view_settings  # light and weight belong to the values as the files store them
view.view_transform, view.look, view.exposure, view.gamma, view.use_curve_mapping = "Raw", "None", 0, 1, False
scene.render.dither_intensity = 0
if NEW:
    tree = scene.compositing_node_group = bpy.data.node_groups.new("unwrap", "CompositorNodeTree")
    tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
else:
    scene.use_nodes = True
    tree = scene.node_tree
    tree.nodes.clear()


def add_node(kind, *inputs):
    """A node with links to some of its inputs, by their numbers."""
    node = tree.nodes.new(kind)
    for number, output in inputs:
        tree.links.new(output, node.inputs[number])
    return node


def read_picture(file, kind="FILE", start=FIRST, count=LAST - FIRST + 1, number=FIRST):
    """The output of an image node. From frame `start` on it shows `count` pictures, the first of which has `number`."""
    image = bpy.data.images.load(os.path.join(HERE, file))
    image.colorspace_settings.name = "Non-Color"
    image.source = kind
    image.alpha_mode = "CHANNEL_PACKED"  # in its other modes versions differ in whether they premultiply
    node = add_node("CompositorNodeImage")
    node.image = image
    if kind != "FILE":
        node.frame_start, node.frame_duration, node.frame_offset = start, count, number - 1
    return node.outputs["Image"]


def put_on(below, finer, overlay, forward, light=None):
    """An overlay, looked up by a map, lit and laid over what is below."""
    premultiplied = add_node("CompositorNodePremulKey", (0, read_picture(overlay)))
    lookup = add_node("CompositorNodeMapUV", (0, premultiplied.outputs[0]), (1, read_picture(forward, "SEQUENCE")))
    if NEW:
        lookup.inputs["Interpolation"].default_value = "Bilinear"
    else:  # before 4.4, the filter blurs what is fine
        lookup.filter_type = "NEAREST" if finer > 3 and bpy.app.version < (4, 4) else "ANISOTROPIC"
    shown = lookup.outputs[0]
    if light:
        light = read_picture(light, "SEQUENCE")
        lit = tree.nodes.new("ShaderNodeMix" if NEW else "CompositorNodeMixRGB")
        if NEW:
            lit.data_type = "RGBA"
        lit.blend_type = "MULTIPLY"
        factor, one, other = [socket for socket in lit.inputs if socket.enabled]
        factor.default_value = 1
        tree.links.new(shown, one)
        tree.links.new(light, other)
        shown = next(socket for socket in lit.outputs if socket.enabled)
    over = tree.nodes.new("CompositorNodeAlphaOver")
    under, top = [socket for socket in over.inputs if socket.type == "RGBA"]
    tree.links.new(below, under)
    tree.links.new(shown, top)
    # Frames without a map show the source.
    factor = next(socket for socket in over.inputs if socket.identifier == "Fac")
    has_map = "(frame >= %d) * (frame <= %d) * (fmod(frame - %d, %d) == 0)" % (FIRST, LAST, FIRST, STEP)
    factor.driver_add("default_value").driver.expression = has_map
    return over.outputs["Image"]


scene.frame_start, scene.frame_end = FIRST, END
scene.render.resolution_x, scene.render.resolution_y = SIZE
scene.render.resolution_percentage = 100
scene.render.fps, scene.render.fps_base = RATE
shown = read_picture(*SOURCE) if SOURCE else add_node("CompositorNodeImage").outputs["Image"]
for row in LAYERS:
    shown = put_on(shown, *row)
add_node("NodeGroupOutput" if NEW else "CompositorNodeComposite", (0, shown))
'''
