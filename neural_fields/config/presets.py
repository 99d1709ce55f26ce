"""The presets that come with the program: their names and files. This module imports no heavy package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word

Quality = Literal["draft", "normal", "final"]
VOLUME_KIND = "volume"  # what `kind` is in the YAML of a preset of 3D scenes


def preset_folder() -> Path:
    """Returns the folder of the presets: inside an installed package, or `configs/` of a source checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def all_presets() -> list[str]:
    """Lists the names of the presets that come with the program.

    Example:
        >>> "atlas" in all_presets()
        True
    """
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


@cache
def planar_presets() -> tuple[str, ...]:
    """Lists the presets of planar models; the others are of 3D scenes."""
    from neural_fields.config.plain_yaml import load_yaml

    return tuple(name for name in all_presets() if "kind" not in load_yaml(preset_folder() / f"{name}.yaml"))


def preset_path(name: str) -> Path:
    """Returns the file of a preset.

    Raises:
        UserError: there is no preset of that name (exit 3, suggests the nearest).

    Example:
        >>> preset_path("atlass")
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: no preset is called 'atlass'
          why   presets: ...
          try   --config atlas
    """
    path = preset_folder() / f"{name}.yaml"
    if name in all_presets():
        return path
    guess = nearest_word(name, all_presets())
    raise UserError(
        ExitCode.BAD_INPUT,
        f"no preset is called '{name}'",
        why=f"presets: {', '.join(all_presets())}; anything else must be a .yaml file",
        fix=f"--config {guess or 'atlas'}",
    )


def find_config_file(name: str) -> Path:
    """Returns the file of a config: a path to a YAML file, or the file of a preset.

    Raises:
        UserError: there is no preset of that name.
    """
    return Path(name) if name.endswith((".yaml", ".yml")) else preset_path(name)


def load_config_values(name: str) -> dict[str, Any]:
    """Loads the plain values of a preset or of a YAML file.

    Raises:
        UserError: there is no such preset or file, or it is not plain YAML.
    """
    from neural_fields.config.plain_yaml import load_yaml

    return load_yaml(find_config_file(name))


def is_volume_config(name: str) -> bool:
    """Tells whether a preset or a YAML file is for 3D scenes.

    Args:
        name: the name of a preset, or a path that ends in .yaml or .yml.

    Raises:
        UserError: there is no such preset or file (exit 3).

    Example:
        >>> is_volume_config("hosnerf"), is_volume_config("atlas")
        (True, False)
    """
    return load_config_values(name).get("kind") == VOLUME_KIND


def volume_presets() -> list[str]:
    """Lists the presets of 3D scenes."""
    return [name for name in all_presets() if is_volume_config(name)]


def require_valid(holds: bool, message: str) -> None:
    """Refuses settings that make no sense; the loader puts the dotted path before the message.

    Raises:
        ValueError: `holds` is false.
    """
    if not holds:
        raise ValueError(message)
