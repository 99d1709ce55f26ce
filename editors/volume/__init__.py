"""Editors of 3D scenes: the person or the background, recoloured, restyled, taken away or replaced."""
