"""Layered documents: OpenRaster and Photoshop."""
