"""The planar family: mapping, texture, opacity and gain, joined into one model."""
