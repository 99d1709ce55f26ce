"""Slow motion, other rates, freezes."""
