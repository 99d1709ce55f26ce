"""Canonical images, uv maps and charts: what a trained planar model leaves on disk."""
