"""Names of layers that masks make."""

from __future__ import annotations

import unicodedata

from neural_fields.core.errors import bad_input


def check_layer_name(name: str, where: str, fix: str) -> None:
    """Refuses a name that no layer in front can have.

    Args:
        name: the name.
        where: the flag that gave it, for the message.
        fix: a flag that would work, for the message.

    Raises:
        UserError: other characters than letters of any script, digits, - and _, too many, or "background" (exit 3).
    """
    # Letters of any script, with the marks that belong to them.
    named = bool(name) and all(sign in "-_" or unicodedata.category(sign)[0] in "LMN" for sign in name)
    if not named or name[0] in "-_" or len(name.encode()) > 100:
        why = "a name has letters, digits, - and _ only, at most 100 bytes: it becomes a file name"
        raise bad_input(f'"{name}" cannot name a layer', where=where, why=why, fix=fix)
    if name == "background":
        raise bad_input(
            'a mask layer cannot be called "background"',
            where=where,
            why="the background is what no mask claims; give masks for the objects in front of it",
            fix=fix,
        )
