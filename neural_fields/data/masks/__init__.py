"""Layer masks: reading, motion segmentation, refinement, propagation."""
