"""Textures, opacities and gains."""
