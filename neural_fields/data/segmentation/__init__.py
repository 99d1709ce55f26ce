"""Objects that a user points at: from hints on some frames to a mask in every frame."""
