"""Diffusion editors, one per file."""
