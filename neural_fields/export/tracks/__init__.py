"""Point tracks and label maps for other programs."""
