"""Initialization of the parts of a planar model, before the first gradient step."""
