"""Names of layers that masks make."""

from __future__ import annotations

import re

from neural_fields.core.errors import bad_input


def check_layer_name(name: str, where: str, fix: str) -> None:
    """Refuses a name that no layer in front can have.

    Args:
        name: the name.
        where: the flag that gave it, for the message.
        fix: a flag that would work, for the message.

    Raises:
        UserError: other characters than letters, digits, - and _; or "background" (exit 3).
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        why = "a name has letters, digits, - and _ only: it becomes a file name"
        raise bad_input(f'"{name}" cannot name a layer', where=where, why=why, fix=fix)
    if name == "background":
        raise bad_input(
            'a mask layer cannot be called "background"',
            where=where,
            why="the background is what no mask claims; give masks for the objects in front of it",
            fix=fix,
        )
