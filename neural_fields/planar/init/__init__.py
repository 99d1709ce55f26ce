"""The start of a planar model, before the first gradient step."""
