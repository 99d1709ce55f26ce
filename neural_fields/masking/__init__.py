"""Masks of a video from what a user points at: hints, folders of masks, `unwrap mask`."""
