"""Training of planar and volume models."""
