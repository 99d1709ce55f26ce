"""Unwrap: a video as a few still pictures that can be edited. See `neural_fields.api` for the Python verbs."""

__version__ = "0.1.0"
