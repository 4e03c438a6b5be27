"""The program: global options, the commands, and how every way to end becomes an exit status."""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hsm_signer.cli.arguments import UsageError, find_command, global_options_first
from hsm_signer.cli.output import ReaderGone, print_error, print_result
from hsm_signer.cli.signals import Terminated, handle_termination
from hsm_signer.errors import ConfigError, HsmSignerError, OutputError
from hsm_signer.system.own_process import keep_memory_private
from hsm_signer.version import __version__

INTERRUPTED = 130

# The class of every usage error. typer 0.28 is the first to export a class above it.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[1]


class LogFormat(StrEnum):
    """Formats of the log."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class GlobalOptions:
    """Global options that every command reads, in `typer.Context.obj`."""

    config: Path | None
    profile: str | None


class InternalError(HsmSignerError):
    """A bug in hsm-signer."""

    code = "internal_error"


# The module of each command, in the order of the help.
COMMANDS = {
    "init": "init",
    "token": "token",
    "assertion": "assertion",
    "assertion-file": "assertion_file",
    "decode": "decode",
    "verify": "verify",
    "explain": "explain",
    "device": "device",
    "rotate": "rotate",
    "key": "key",
    "certificate": "certificate",
    "doctor": "doctor",
    "emulator": "emulator",
}


# Those of `options` but --version, and whether each takes a value.
GLOBAL_OPTIONS = {"--config": True, "--profile": True, "--verbose": False, "-v": False, "--log-format": True}


def _show_version(wanted: bool) -> None:
    if wanted:
        print_result(f"hsm-signer {__version__}")
        raise typer.Exit


def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with profiles. Default: $XDG_CONFIG_HOME/hsm-signer/config.toml, then "
            "/etc/hsm-signer/config.toml. \\[env: HSM_SIGNER_CONFIG]",
            metavar="FILE",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Profile to use. Default: default. \\[env: HSM_SIGNER_PROFILE]", metavar="NAME"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each step on stderr.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Format of warnings and logs on stderr.")] = LogFormat.TEXT,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Get access tokens from Microsoft Entra ID with a private key that never leaves its PKCS#11 device.

    If something does not work, run hsm-signer doctor: it says what is wrong and how to fix it.
    """
    from hsm_signer.cli.log import configure_logging
    from hsm_signer.cli.module_output import keep_modules_apart

    keep_modules_apart(verbose=verbose)
    configure_logging(verbose=verbose, as_json=log_format is LogFormat.JSON)
    context.obj = GlobalOptions(config, profile)


def make_program(arguments: Sequence[str]) -> typer.Typer:
    """Return the program with the commands that `arguments` may mean.

    Making a command costs milliseconds, most of them for its options, so only the one that `arguments` name is made.
    Where they name none, the user needs help, completion or the right spelling, and all are made.
    """
    program = typer.Typer(
        name="hsm-signer",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="A value comes from the option, else from its HSM_SIGNER variable, else from the profile, else from its "
        "AZURE variable, else from the default.",
    )
    program.callback()(options)
    command = find_command(arguments, GLOBAL_OPTIONS)
    for home in [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"hsm_signer.cli.commands.{home}").register(program)
    return program


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status. Nothing escapes: every error is explained on stderr.

    Args:
        arguments: without the program's name.
    """
    as_json = _wants_json(arguments)
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _colour_only_terminals()
        program = typer.main.get_command(make_program(arguments))
        status = program.main(global_options_first(arguments, program), prog_name="hsm-signer", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except HsmSignerError as error:
        print_error(error, as_json=as_json)
        return error.exit_status
    except ReaderGone:
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Terminated as ending:
        return ending.status
    except typer.Exit as ending:
        return ending.exit_code
    except SystemExit:
        # typer exits like this if nobody reads its help. For results, `print_result` raises ReaderGone.
        return 0
    except _CommandLineError as error:
        return _usage_error(error, as_json)
    except Exception as error:
        explained = _unforeseen(error)
        print_error(explained, as_json=as_json)
        return explained.exit_status


def run_and_exit() -> NoReturn:
    """Run the command line of this process and end it.

    It skips the interpreter's finalizers: they would call C_Finalize, which python-pkcs11 does with the GIL held, and a
    module that hangs there could not be interrupted. All sessions are closed by then, which logs out.
    """
    keep_memory_private()
    handle_termination()
    _occupy_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: not every locale is UTF-8
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while an error was explained
        status = INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _colour_only_terminals() -> None:
    """Print help without colours in a pipe: typer colours it if GITHUB_ACTIONS, FORCE_COLOR or PY_COLORS is set."""
    if sys.stdout is None or not sys.stdout.isatty():
        os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"  # read once, when typer first formats something


def _occupy_standard_descriptors() -> None:
    # If a standard descriptor is closed, the next file or socket gets its number, and receives what we print.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Return whether errors should be JSON, too. Decided before parsing, because parsing may fail."""
    pairs = zip(arguments, [*arguments, ""][1:], strict=True)
    return any(
        argument in ("-ojson", "--output=json") or (argument in ("-o", "--output") and value == "json")
        for argument, value in pairs
    )


def _usage_error(error: Exception, as_json: bool) -> int:
    message = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "hsm-signer")
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
        return ConfigError.exit_status
    print_error(UsageError(" ".join(message.split()), hint=f"See {command} --help."), as_json=as_json)
    return ConfigError.exit_status


def _unforeseen(error: Exception) -> HsmSignerError:
    # typer prints the help itself, not with `print_result`.
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return OutputError(f"The output could not be written: {error.strerror}.", hint="Is a disk full?")
    # Say where it happened, not what: the text of an unexpected exception may hold a secret.
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return InternalError(
        f"This is a bug in hsm-signer {__version__}: {type(error).__name__} at {places}.",
        hint="Please report it, with this line.",
    )
