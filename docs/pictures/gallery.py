"""Makes the gallery of the README: one panel of each picture of the pages on editing, which pages.py makes.

python docs/pictures/gallery.py
"""

from pathlib import Path

from compose import GAP, HERE, LABEL, WIDTH, row
from PIL import Image

PANELS = 3  # of equal width in a row of a picture
SHOWN = {  # label: picture, row and column of the panel
    "paint on a frame": ("frame-edit.png", 0, 2),
    "place a logo or a text": ("place.png", 0, 1),
    "adjust color and light": ("adjust.png", 0, 2),
    "remove an object": ("remove.png", 0, 1),
    "replace a background": ("replace.png", 0, 0),
    "drag a part of an object": ("drag.png", 0, 1),
    "change a shape": ("shape.png", 0, 1),
    "paint in a style": ("style.png", 0, 1),
    "track points": ("tracks.png", 0, 1),
}


def cut_panel(path: Path, line: int, column: int) -> Image.Image:
    """Cuts one panel out of a picture that `compose.row` made.

    Args:
        path: the picture.
        line: row of panels, from 0.
        column: panel in the row, from 0.
    """
    with Image.open(path) as sheet:
        width = (WIDTH - GAP * (PANELS - 1)) // PANELS
        height = round(width * 9 / 16)
        x, y = column * (width + GAP), line * (height + LABEL + GAP) + LABEL
        return sheet.convert("RGB").crop((x, y, x + width, y + height))


def main() -> None:
    """Makes gallery.png."""
    panels = [(label, cut_panel(HERE / name, line, column)) for label, (name, line, column) in SHOWN.items()]
    rows = [row(panels[k : k + PANELS], 200) for k in range(0, len(panels), PANELS)]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in rows) + GAP * (len(rows) - 1)), "white")
    for number, part in enumerate(rows):
        sheet.paste(part, (0, number * (part.height + GAP)))
    sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(HERE / "gallery.png", optimize=True)


if __name__ == "__main__":
    main()
