"""Diffusion editors: each published method is a file over the one wrapper of diffusers (`wrapper.py`)."""
