"""Canonical images, guides, mattes and flat clips for other programs."""
