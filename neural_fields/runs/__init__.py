"""Runs on disk: paths, checkpoints, locks, the source."""
