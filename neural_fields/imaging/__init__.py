"""Images: files, alpha, resampling, blending, grading, hole filling."""
