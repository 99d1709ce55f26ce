"""The commands that need no editor."""
