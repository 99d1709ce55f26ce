"""Metrics, and the evaluation of runs and edits."""
