"""Clips and scenes whose truth is known."""
