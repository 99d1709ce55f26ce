"""Losses of planar models, and their analytic gradients."""
