"""Options that several commands share, made once from the table of settings."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hsm_signer.config.profile import load_profile
from hsm_signer.config.settings import SETTINGS, Setting


class Output(StrEnum):
    """For people or for programs."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the result on stdout.")]


def takes_profile(*panels: str, **defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some panels, and call it with the profile they add up to.

    Args:
        panels: "Device", "Assertion", "Exchange", "Graph".
        defaults: where they are not those of `Profile`.

    Returns:
        A decorator for a function whose first parameter is the profile.
    """
    settings = [setting for setting in SETTINGS.values() if setting.panel in panels]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **values: Any) -> None:
            given = {setting.name: _given(setting, values.pop(setting.name)) for setting in settings}
            profile = load_profile(given, config=context.obj.config, name=context.obj.profile, defaults=defaults)
            command(profile, **values)

        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
                if name != "profile"
            ),
            *(_parameter(setting) for setting in settings),
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # typer reads a command's options from its signature.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _given(setting: Setting, value: object) -> object:
    """Return what was given for a setting, or None; a flag's absence is not False."""
    return (not setting.negated if setting.metavar is None else value) if value else None


def _parameter(setting: Setting) -> inspect.Parameter:
    names = [name for name in (setting.variable, setting.azure) if name]
    variables = f" \\[env: {', '.join(names)}]" if names else ""
    option = typer.Option(
        setting.option,
        help=setting.help + variables,
        metavar=setting.metavar,
        rich_help_panel=setting.panel,
        show_default=False,
    )
    kind: Any = bool if setting.metavar is None else list[str] | None if setting.repeatable else str | None
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if setting.metavar is None else None,
        annotation=Annotated[kind, option],
    )


OutputFileOption = Annotated[
    Path | None,
    typer.Option("--output-file", help="Write the result to this file, mode 0600, atomically.", metavar="PATH"),
]
