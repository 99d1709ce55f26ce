"""Editors of scenes in space: the person or the background, recoloured, restyled, taken away or replaced."""
