"""Canonical pictures, uv maps and charts: the files that a trained planar model writes."""
