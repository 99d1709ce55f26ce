"""The edit stack as rendering reads it."""
