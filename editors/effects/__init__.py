"""Editors that need no diffusion model, one a file."""
