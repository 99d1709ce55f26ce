"""Mappings from (x, y, t) to the canonical plane."""
