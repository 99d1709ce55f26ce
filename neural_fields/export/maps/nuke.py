"""Writes a Nuke script that puts painted overlays on a clip by exported maps: follows Nuke's reference, not run."""

from __future__ import annotations

import re

from neural_fields.export.maps.comps import CompDescription, CompLayer

_HERE = r"\[file dirname \[value root.name]]"  # Nuke works it out when it reads a file, so that the folder may move


def build_nuke_script(comp: CompDescription) -> str:
    """Returns a script that composites the overlays over the source: their maps, light, weight and sum, and a Write.

    In a script a node takes its inputs from the top of a stack, the first input (B of a merge, the picture of an
    STMap) from the very top.
    """
    width, height = comp.size
    root = _format_node(
        "Root",
        None,
        inputs=0,
        frame=comp.frames[0],
        first_frame=comp.frames[0],
        last_frame=comp.last_number,
        lock_range="true",
        fps=f"{float(comp.rate):.6g}",
        format=f'"{width} {height} 0 0 {width} {height} {comp.pixel_aspect:g} unwrap"',
    )
    nodes = ["version 12.0 v1", root]
    for column, layer in enumerate(comp.layers):
        # The overlay is put into the frame: premultiplied, lit, and weighted by A of the map.
        name, x = _to_node_name(layer.name), 220 * column
        if comp.light:
            nodes.append(_read_maps_node(comp, "light", layer, comp.size, x + 110, 260))
        nodes.append(_read_maps_node(comp, "forward", layer, comp.size, x + 110, 60))
        nodes += [f"set N{name} [stack 0]", f"push $N{name}", _read_picture_node("overlay", layer, x, 0)]
        nodes.append(_format_node("Premult", f"premult_{name}", x, 100))
        nodes.append(_format_node("STMap", f"in_frame_{name}", x, 180, inputs=2, uv="rgb"))
        nodes.append(_format_node("Merge2", f"weight_{name}", x, 260, inputs=2, operation="mask"))
        if comp.light:
            nodes.append(_format_node("Merge2", f"lit_{name}", x, 340, inputs=2, operation="multiply"))
        if column:
            nodes.append(_format_node("Merge2", f"sum_{column}", 220 * column, 420, inputs=2, operation="plus"))

    # The source is read, and the sum of the layers put over it.
    source = comp.source
    if source is None:
        nodes.append(_format_node("Read", "source", -220, 0, inputs=0, label='"set the source here"'))
    else:
        # "start at" puts the first frame of the file where the maps have it.
        last = source.first + source.count - 1
        read = _format_node(
            "Read",
            "source",
            -220,
            0,
            inputs=0,
            file=f'"{_HERE}/{source.file}"',
            format=_format_size(comp.size),
            first=source.first,
            last=last,
            frame_mode='"start at"',
            frame=comp.first_number,
            origfirst=source.first,
            origlast=last,
            origset="true",
            raw="true",
        )
        nodes.append(read)
    nodes.append("set Nsource [stack 0]")
    nodes.append(_format_node("Merge2", "over_source", -220, 500, inputs=2, operation="over"))
    result = f'"{_HERE}/result/result.%0{comp.digits}d.png"'
    nodes.append(
        _format_node("Write", "result", -220, 580, file=result, file_type="png", raw="true", create_directories="true")
    )

    # Nodes to look at, which the result does not need: each layer alone, and the frame unwrapped.
    for column, layer in enumerate(comp.layers):
        name, x = _to_node_name(layer.name), 220 * (column + len(comp.layers) + 1)
        nodes += [f"push $N{name}", _read_picture_node("canonical", layer, x, 0)]
        nodes.append(_format_node("STMap", f"layer_{name}", x, 180, inputs=2, uv="rgb"))
        if comp.inverse:
            nodes += [_read_maps_node(comp, "inverse", layer, layer.unwrapped_size, x, 300), "push $Nsource"]
            nodes.append(_format_node("STMap", f"unwrapped_{name}", x, 420, inputs=2, uv="rgb"))
    return "\n".join(nodes) + "\n"


def _read_maps_node(comp: CompDescription, kind: str, layer: CompLayer, size: tuple[int, int], x: int, y: int) -> str:
    """Returns the node that reads the numbered maps or lights of a layer."""
    first, last = comp.frames[0], comp.frames[-1]
    return _format_node(
        "Read",
        f"{kind}_{_to_node_name(layer.name)}",
        x,
        y,
        inputs=0,
        file_type="exr",
        file=f'"{_HERE}/{comp.file_pattern(kind, layer)}"',
        format=_format_size(size),
        first=first,
        last=last,
        origfirst=first,
        origlast=last,
        origset="true",
        on_error="black",  # frames between those of --every have no map, and so no overlay
        raw="true",
    )


def _read_picture_node(kind: str, layer: CompLayer, x: int, y: int) -> str:
    """Returns the node that reads a picture of a layer."""
    file = f'"{_HERE}/{kind}/{layer.name}.png"'
    size = layer.overlay_size if kind == "overlay" else layer.size
    name = f"{kind}_{_to_node_name(layer.name)}"
    return _format_node("Read", name, x, y, inputs=0, file_type="png", file=file, format=_format_size(size), raw="true")


def _format_node(kind: str, name: str | None, x: int | None = None, y: int | None = None, /, **knobs: object) -> str:
    """Formats one node of a Nuke script."""
    lines = [f"{kind} {{"] + [f" {knob} {value}" for knob, value in knobs.items()]
    if name is not None:
        lines += [f" name {name}", f" xpos {x}", f" ypos {y}"]
    return "\n".join([*lines, "}"])


def _format_size(size: tuple[int, int]) -> str:
    """Formats a (width, height) as a Nuke format."""
    width, height = size
    return f'"{width} {height} 0 0 {width} {height} 1 "'


def _to_node_name(name: str) -> str:
    """Converts a layer's name to a part of the name of a node."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)
