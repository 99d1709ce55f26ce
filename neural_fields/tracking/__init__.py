"""Points and labels of one frame, on all frames."""
