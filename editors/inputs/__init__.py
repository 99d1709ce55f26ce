"""Edits from pictures, frames, documents and unwrapped clips that people painted."""
