"""Control pictures of ControlNets, as flags name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editors.options.wrong_setting import wrong_setting_error

CONTROL_KINDS = ("edges", "soft-edges", "depth", "pose", "picture")


@dataclass(frozen=True)
class ControlRequest:
    """Describes a ControlNet and the kind of its control picture.

    Attributes:
        kind: one of `CONTROL_KINDS`.
        model: folder of the ControlNet, or its name on the hub.
        scale: strength of its influence; 1 as trained.
    """

    kind: str
    model: str
    scale: float = 1.0


def parse_control(text: str) -> ControlRequest:
    """Parses `--control KIND=FOLDER` or `KIND=FOLDER@SCALE`.

    Args:
        text: the value of the flag.

    Raises:
        UserError: another form, an unknown kind, or a negative scale (exit 2).

    Example:
        >>> parse_control("edges=models/canny@0.8")
        ControlRequest(kind='edges', model='models/canny', scale=0.8)
    """
    kind, equals, rest = text.partition("=")
    model, at, number = rest.rpartition("@")
    try:
        scale = float(number) if at else 1.0
    except ValueError:
        model, at, scale = rest, "", 1.0
    model = model if at else rest
    if not equals or not model or kind not in CONTROL_KINDS:
        raise wrong_setting_error(
            "control",
            text,
            f"it is KIND=FOLDER, and the kinds are: {', '.join(CONTROL_KINDS)}",
            "--control edges=FOLDER@0.8",
        )
    if not 0 <= scale < float("inf"):
        raise wrong_setting_error("control", text, "the number behind @ is 0 or more", f"--control {kind}={model}@1")
    return ControlRequest(kind, model, scale)


def parse_control_pictures(texts: Sequence[str]) -> dict[str, Path]:
    """Parses `--control-picture KIND=FILE`.

    Args:
        texts: the values of the flag.

    Returns:
        Paths of the files, by kind.

    Raises:
        UserError: another form or an unknown kind (exit 2).
    """
    found = {}
    for text in texts:
        kind, equals, file = text.partition("=")
        if not equals or not file or kind not in CONTROL_KINDS:
            fix = "--control-picture pose=pose.png"
            raise wrong_setting_error(
                "control-picture", text, f"it is KIND=FILE, and the kinds are: {', '.join(CONTROL_KINDS)}", fix
            )
        found[kind] = Path(file)
    return found
