"""Rendering: a stack of edits as passes over frames."""
