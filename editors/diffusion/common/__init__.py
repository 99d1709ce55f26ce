"""What diffusion editors share: canvases, regions, keyframes, attention, score distillation."""
