"""Editors of 3D scenes: they recolor, restyle, remove or replace the person or the background."""
