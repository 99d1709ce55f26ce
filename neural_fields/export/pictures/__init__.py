"""Canonical pictures, guides, mattes and flat clips for other programs."""
