"""Diffusion models: loading, devices, noise schedules and sampling loops."""
