"""Global options may stand anywhere on the command line: here they are moved to where the parser looks for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hsm_signer.errors import ConfigError

END_OF_OPTIONS = "--"  # POSIX.1-2017, 12.2 guideline 10


class UsageError(ConfigError):
    """The command line itself is wrong."""

    code = "usage"


def find_command(arguments: Sequence[str], global_options: Mapping[str, bool]) -> str | None:
    """Return the first argument that is neither a global option nor the value of one, if it looks like a command.

    Args:
        arguments: without the program's name.
        global_options: their spellings, and whether each takes a value.
    """
    rest = iter(arguments)
    for argument in rest:
        if argument not in global_options and argument.partition("=")[0] not in global_options:
            return None if argument.startswith("-") else argument
        if global_options.get(argument):
            next(rest, None)
    return None


def global_options_first(arguments: Sequence[str], program: Any) -> list[str]:
    """Return the arguments with the global options before the command.

    What follows `--`, and the values of the command's own options, stay where they are.

    Args:
        arguments: without the program's name.
        program: the group that the parser runs, with at least the command that `arguments` name.

    Raises:
        UsageError: a global option has no value.
    """
    global_options = options_with_values(program)
    moved: list[str] = []
    kept: list[str] = []
    command = program
    rest = iter(arguments)
    for argument in rest:
        own = {} if command is program else options_with_values(command)
        name, _, _ = argument.partition("=")
        if argument == END_OF_OPTIONS:
            kept += [argument, *rest]
        elif name in global_options and name not in own:
            needs_value = argument == name and global_options[name]
            value = _value(rest, needs_value)
            if needs_value and not value:
                raise UsageError(f"Option '{name}' requires an argument.", hint="See hsm-signer --help.")
            moved += [argument, *value]
        else:
            kept += [argument, *_value(rest, own.get(argument, False))]
            command = getattr(command, "commands", {}).get(argument, command)
    return [*moved, *kept]


def options_with_values(command: Any) -> dict[str, bool]:
    """Return the spellings of a command's options, and whether each takes a value."""
    return {
        spelling: not (option.is_flag or option.count)
        for option in command.params
        if option.param_type_name == "option"
        for spelling in [*option.opts, *option.secondary_opts]
    }


def _value(rest: Iterator[str], takes_value: bool) -> list[str]:
    return [value for value in [next(rest, None)] if value is not None] if takes_value else []
