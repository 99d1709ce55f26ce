"""Editors: ways to change a canonical image. Nothing in `neural_fields` imports this package."""
