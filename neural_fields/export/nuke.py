"""A Nuke script that puts painted overlays on a clip with exported maps: written by Nuke's reference, not run."""

from __future__ import annotations

import re
from collections.abc import Iterator

from neural_fields.export.comps import Comp, CompLayer

_HERE = r"\[file dirname \[value root.name]]"  # Nuke works it out when it reads a file, so that the folder may move


def nuke_script(comp: Comp) -> str:
    """A script that puts the overlays on the source: their maps, light, weight and sum, over the source, written.

    In a script a node takes its inputs from the top of a stack, the first input (B of a merge, the picture of an
    STMap) from the very top.
    """
    return "\n".join(_nuke_nodes(comp)) + "\n"


def _nuke_nodes(comp: Comp) -> Iterator[str]:
    yield from _nuke_root(comp)
    for column, layer in enumerate(comp.layers):
        yield from _nuke_layer(comp, layer, 220 * column)
        if column:
            yield _node("Merge2", f"sum_{column}", 220 * column, 420, inputs=2, operation="plus")
    yield _nuke_source(comp, -220)
    yield "set Nsource [stack 0]"
    yield _node("Merge2", "over_source", -220, 500, inputs=2, operation="over")
    result = f'"{_HERE}/result/result.%0{comp.digits}d.png"'
    yield _node("Write", "result", -220, 580, file=result, file_type="png", raw="true", create_directories="true")
    for column, layer in enumerate(comp.layers):
        yield from _nuke_views(comp, layer, 220 * (column + len(comp.layers) + 1))


def _nuke_root(comp: Comp) -> Iterator[str]:
    width, height = comp.size
    yield "version 12.0 v1"
    yield _node(
        "Root",
        None,
        inputs=0,
        frame=comp.frames[0],
        first_frame=comp.frames[0],
        last_frame=comp.frames[-1],
        lock_range="true",
        fps=f"{float(comp.rate):.6g}",
        format=f'"{width} {height} 0 0 {width} {height} {comp.pixel_aspect:g} unwrap"',
    )


def _nuke_layer(comp: Comp, layer: CompLayer, x: int) -> Iterator[str]:
    """The overlay of one layer as it lies in the frame: premultiplied, lit, and weighed by A of the map."""
    if comp.light:
        yield _nuke_maps(comp, "light", layer, comp.size, x + 110, 260)
    yield _nuke_maps(comp, "forward", layer, comp.size, x + 110, 60)
    yield f"set N{_word(layer.name)} [stack 0]"
    yield f"push $N{_word(layer.name)}"
    yield _nuke_picture("overlay", layer, x, 0)
    yield _node("Premult", f"premult_{_word(layer.name)}", x, 100)
    yield _node("STMap", f"in_frame_{_word(layer.name)}", x, 180, inputs=2, uv="rgb")
    yield _node("Merge2", f"weight_{_word(layer.name)}", x, 260, inputs=2, operation="mask")
    if comp.light:
        yield _node("Merge2", f"lit_{_word(layer.name)}", x, 340, inputs=2, operation="multiply")


def _nuke_views(comp: Comp, layer: CompLayer, x: int) -> Iterator[str]:
    """Things to look at, which the result does not need: the layer alone, and the frame laid out flat."""
    yield f"push $N{_word(layer.name)}"
    yield _nuke_picture("canonical", layer, x, 0)
    yield _node("STMap", f"layer_{_word(layer.name)}", x, 180, inputs=2, uv="rgb")
    if comp.inverse:
        yield _nuke_maps(comp, "inverse", layer, layer.flat_size, x, 300)
        yield "push $Nsource"
        yield _node("STMap", f"unwrapped_{_word(layer.name)}", x, 420, inputs=2, uv="rgb")


def _nuke_source(comp: Comp, x: int) -> str:
    source = comp.source
    if source is None:
        return _node("Read", "source", x, 0, inputs=0, label='"set the source here"')
    # "start at" puts the first frame of the file at frame 0, which is how Unwrap counts.
    last = source.first + source.count - 1
    return _node(
        "Read",
        "source",
        x,
        0,
        inputs=0,
        file=f'"{_HERE}/{source.file}"',
        format=_format(comp.size),
        first=source.first,
        last=last,
        frame_mode='"start at"',
        frame=0,
        origfirst=source.first,
        origlast=last,
        origset="true",
        raw="true",
    )


def _nuke_maps(comp: Comp, kind: str, layer: CompLayer, size: tuple[int, int], x: int, y: int) -> str:
    first, last = comp.frames[0], comp.frames[-1]
    return _node(
        "Read",
        f"{kind}_{_word(layer.name)}",
        x,
        y,
        inputs=0,
        file_type="exr",
        file=f'"{_HERE}/{comp.files(kind, layer)}"',
        format=_format(size),
        first=first,
        last=last,
        origfirst=first,
        origlast=last,
        origset="true",
        on_error="black",  # frames between those of --every have no map, and so no overlay
        raw="true",
    )


def _nuke_picture(kind: str, layer: CompLayer, x: int, y: int) -> str:
    file = f'"{_HERE}/{kind}/{layer.name}.png"'
    name = f"{kind}_{_word(layer.name)}"
    return _node("Read", name, x, y, inputs=0, file_type="png", file=file, format=_format(layer.size), raw="true")


def _node(kind: str, name: str | None, x: int | None = None, y: int | None = None, /, **knobs: object) -> str:
    """One node of a Nuke script."""
    lines = [f"{kind} {{"] + [f" {knob} {value}" for knob, value in knobs.items()]
    if name is not None:
        lines += [f" name {name}", f" xpos {x}", f" ypos {y}"]
    return "\n".join([*lines, "}"])


def _format(size: tuple[int, int]) -> str:
    width, height = size
    return f'"{width} {height} 0 0 {width} {height} 1 "'


def _word(name: str) -> str:
    """A layer's name as a part of the name of a node."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)
