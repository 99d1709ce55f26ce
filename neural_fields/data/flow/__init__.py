"""Optical flow: computing, reading, shot boundaries."""
