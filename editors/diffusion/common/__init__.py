"""Shared parts of diffusion editors: canvases, regions, keyframes, attention, score distillation."""
