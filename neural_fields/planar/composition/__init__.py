"""The planar model: its parts joined."""
