"""Captures of 3D scenes: cameras, skeletons and the files they come from."""
