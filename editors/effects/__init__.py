"""Editors that need no diffusion model, one per file."""
