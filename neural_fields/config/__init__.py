"""Configs: dataclasses, the strict loader, flags."""
