"""Options that several commands share. Those that are settings come from the table of settings."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from hsm_signer.cli.output import Output
from hsm_signer.config.profile import load_profile
from hsm_signer.config.settings import SETTINGS, Setting
from hsm_signer.errors import CertificateNotFound

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Format of the result.")]

OutputFileOption = Annotated[
    Path | None,
    typer.Option("--output-file", help="Write the result to this file, mode 0600, atomically.", metavar="PATH"),
]


def profile_options(
    *panels: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    load: Callable[..., object] = load_profile,
    **defaults: object,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of settings, and call it with the profile that results from them.

    Args:
        panels: which settings the command takes: "Device", "Assertion", "Exchange", "Graph".
        settings: names of further settings, with the help for this command.
        load: makes of the options what the command is called with; takes what `load_profile` takes.
        defaults: values of `Profile` fields for this command, if they are set nowhere.

    Returns:
        A decorator for a function whose first parameter is the profile.
    """
    helps = {
        **{setting.name: setting.help for setting in SETTINGS.values() if setting.panel in panels},
        **settings,
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **values: Any) -> None:
            given = {name: _given(SETTINGS[name], values.pop(name)) for name in helps}
            profile = load(given, config=context.obj.config, name=context.obj.profile, defaults=defaults)
            command(profile, **values)

        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for parameter in list(inspect.signature(command, eval_str=True).parameters.values())[1:]
            ),
            *(_parameter(SETTINGS[name], text) for name, text in helps.items()),
        ]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # typer reads a command's options from its signature.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def read_certificate_file(file: Path) -> bytes:
    """Return the content of a certificate file that an option or argument names.

    Raises:
        CertificateNotFound: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateNotFound(
            f"The certificate {file} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from None


def _given(setting: Setting, value: object) -> object:
    """Return the value of a setting, or None if its option is absent. An absent flag is not False."""
    return (not setting.negated if setting.metavar is None else value) if value else None


def _parameter(setting: Setting, text: str) -> inspect.Parameter:
    names = [name for name in (setting.variable, setting.azure) if name]
    variables = f" \\[env: {', '.join(names)}]" if names else ""
    option = typer.Option(
        setting.option,
        help=text + variables,
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
