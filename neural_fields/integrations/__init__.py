"""Plug-ins for other programs' Python."""
