"""Losses of planar models."""
