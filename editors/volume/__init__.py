"""Editors of 3D scenes: the person or the background, recolored, restyled, taken away or replaced."""
