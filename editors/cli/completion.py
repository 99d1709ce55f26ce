"""`unwrap completion SHELL`: a script that completes commands, options and their choices in a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from editors.editors_table import EDITORS, SCENE_EDITORS
from neural_fields.cli.commands import list_flags, refuse_overrides
from neural_fields.cli.export import EXPORTS
from neural_fields.core.errors import ExitCode


@dataclass(frozen=True)
class CompletionCommand:
    """Print a script with which your shell completes commands and options.

    bash: put it where bash looks, or load it in ~/.bashrc. zsh and fish: as a file of their folders of completions.
    """

    examples: ClassVar[tuple[str, ...]] = (
        'eval "$(unwrap completion bash)"',
        "unwrap completion zsh > ~/.zfunc/_unwrap",
        "unwrap completion fish > ~/.config/fish/completions/unwrap.fish",
    )
    shell: Positional[Literal["bash", "zsh", "fish"]]
    """bash, zsh or fish."""


@dataclass(frozen=True)
class Completions:
    """Holds what can follow on a command line.

    Attributes:
        options: the options of each command.
        choices: the values of an option, by "command option".
    """

    options: Mapping[str, list[str]]
    choices: Mapping[str, list[str]]


def find_choices(kind: Any) -> dict[str, list[str]]:
    """Finds the options of a command that have a fixed set of values, and their values."""
    found: dict[str, list[str]] = {}
    for entry in fields(kind):
        value = get_type_hints(kind)[entry.name]
        if is_dataclass(value):
            found |= find_choices(value)
        for part in (value, *get_args(value)):
            if get_origin(part) is Literal:
                found[f"--{entry.name.replace('_', '-')}"] = [str(choice) for choice in get_args(part)]
    return found


def collect_completions(commands: Mapping[str, type]) -> Completions:
    """Collects what can follow each command.

    Args:
        commands: the class of each command.
    """
    options = {name: list_flags(kind) for name, kind in commands.items()}
    options["edit"].append("--editor")
    choices = {
        f"{name} {flag}": values for name, kind in commands.items() for flag, values in find_choices(kind).items()
    }
    choices["edit --editor"] = sorted({*EDITORS, *SCENE_EDITORS})
    return Completions(options, choices)


def write_bash(known: Completions) -> str:
    """Writes the script for bash."""
    values = "\n".join(f'    "{key}") words="{" ".join(some)}" ;;' for key, some in known.choices.items())
    flags = "\n".join(f'      {name}) words="{" ".join(some)}" ;;' for name, some in known.options.items())
    return f"""_unwrap() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(known.options)}" -- "$cur"))
    return
  fi
  case "$command $prev" in
{values}
  esac
  if [ -z "$words" ] && [ "$command" = export ] && [ "$COMP_CWORD" -eq 3 ]; then
    words="{" ".join(EXPORTS)}"
  fi
  if [ -z "$words" ] && [ "${{cur:0:1}}" = "-" ]; then
    case "$command" in
{flags}
    esac
  fi
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
  fi
}}
complete -o default -F _unwrap unwrap"""


def write_zsh(known: Completions) -> str:
    """Writes the script for zsh."""
    values = "\n".join(f'    "{key}") compadd {" ".join(some)}; return ;;' for key, some in known.choices.items())
    flags = "\n".join(f"      {name}) compadd -- {' '.join(some)} ;;" for name, some in known.options.items())
    return f"""#compdef unwrap
_unwrap() {{
  if (( CURRENT == 2 )); then
    compadd {" ".join(known.options)}
    return
  fi
  case "$words[2] $words[CURRENT-1]" in
{values}
  esac
  if [[ "$words[2]" == export ]] && (( CURRENT == 4 )); then
    compadd {" ".join(EXPORTS)}
    return
  fi
  if [[ "$words[CURRENT]" == -* ]]; then
    case "$words[2]" in
{flags}
    esac
  else
    _files
  fi
}}
if [[ "$funcstack[1]" == _unwrap ]]; then
  _unwrap "$@"
else
  compdef _unwrap unwrap
fi"""


def write_fish(known: Completions, commands: Mapping[str, type]) -> str:
    """Writes the script for fish."""
    lines = []
    for name, options in known.options.items():
        sentence = " ".join((commands[name].__doc__ or "").split("\n\n")[0].split())
        lines.append(f"complete -c unwrap -n __fish_use_subcommand -x -a {name} -d {shlex.quote(sentence)}")
        for flag in options:
            values = known.choices.get(f"{name} {flag}")
            given = f" -x -a {shlex.quote(' '.join(values))}" if values else ""
            lines.append(f"complete -c unwrap -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}{given}")
    lines.append(f"complete -c unwrap -n '__fish_seen_subcommand_from export' -a {shlex.quote(' '.join(EXPORTS))}")
    return "\n".join(lines)


def run_completion(command: CompletionCommand, extra: list[str], commands: Mapping[str, type]) -> int:
    """Runs `unwrap completion`.

    Args:
        command: the shell.
        extra: options of a config that were given; there are none here.
        commands: the classes of all commands, by name.
    """
    refuse_overrides(extra, command)
    known = collect_completions(commands)
    if command.shell == "fish":
        print(write_fish(known, commands))
    else:
        print({"bash": write_bash, "zsh": write_zsh}[command.shell](known))
    return ExitCode.OK
