"""What scripts outside this repository rely on, compared with what is recorded in ``contract.json``.

A removal or a change breaks somebody's script. Additions break none, and are recorded on purpose:

    HSM_SIGNER_RECORD_CONTRACT=1 pytest tests/cli/test_contract.py

The file then shows in review what is new. It leaves out what scripts cannot see: in which modules classes live, the
order of options, and the values in results.
"""

import dataclasses
import enum
import importlib
import inspect
import json
import os
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import hsm_signer
from hsm_signer import errors, testing
from hsm_signer.cli.app import make_program
from hsm_signer.errors import HsmSignerError
from hsm_signer.testing import EntraEmulator, SoftHsm
from tests.support.names import CLIENT, PIN, TENANT, WRONG_PIN
from tests.support.program import Program, Result

FILE = Path(__file__).with_name("contract.json")
RECORD = "HSM_SIGNER_RECORD_CONTRACT"
CONTEXT_MANAGER = ("__enter__", "__exit__", "__aenter__", "__aexit__")
JSON_TYPES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    types.NoneType: "null",
}


def options() -> dict[str, dict[str, str]]:
    """Return the parameters of each command, by its full name; "" is the program itself."""
    program = typer.main.get_command(make_program([]))
    return {path: dict(map(_parameter, command.params)) for path, command in _commands("", program)}


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{path} {name}".strip(), inner)


def _parameter(parameter: Any) -> tuple[str, str]:
    """Return the spellings of a parameter, and the facts that matter to scripts."""
    positional = parameter.param_type_name == "argument"
    choices = getattr(parameter.type, "choices", None)
    default = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
    facts = {
        "argument": positional,
        "flag": not positional and parameter.is_flag,
        "value": not positional and not parameter.is_flag,
        "repeatable": getattr(parameter, "multiple", False) or parameter.nargs == -1,
        f"{parameter.nargs} at a time": parameter.nargs not in (1, -1),
        "required": parameter.required,
        f"one of {' '.join(map(str, choices or ()))}": choices is not None,
        f"default {default}": isinstance(default, str | int | float),  # and no object that stands for none
    }
    spellings = parameter.name if positional else " ".join(sorted([*parameter.opts, *parameter.secondary_opts]))
    return spellings, ", ".join(fact for fact, holds in facts.items() if holds)


def error_tree() -> dict[str, dict[str, object]]:
    """Return exit status, classes and attributes of every error, by its code."""
    for module in pkgutil.walk_packages(hsm_signer.__path__, "hsm_signer."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {
        kind.code: {
            "exit_status": kind.exit_status,
            "classes": [each.__name__ for each in kind.__mro__ if each.__module__ != "builtins" or each is ValueError],
            "attributes": sorted(vars(kind("What was found."))),
        }
        for kind in _tree(HsmSignerError)
        if kind.__module__.startswith("hsm_signer.")  # a test may have made classes of its own
    }


def _tree(kind: type[HsmSignerError]) -> Iterator[type[HsmSignerError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def public(*examples: object) -> dict[str, object]:
    """Return what programs import, and how they call it.

    Args:
        examples: of classes that set their attributes in the constructor.
    """
    attributes = {type(each): list(vars(each)) for each in examples}
    promised = {name: getattr(hsm_signer, name) for name in hsm_signer.__all__}
    for_tests = {name: getattr(testing, name) for name in getattr(testing, "__all__", dir(testing))}
    return {
        "hsm_signer": {name: _members(value, attributes) for name, value in promised.items()},
        "hsm_signer.errors": {name: value.code for name, value in vars(errors).items() if _is_error(value)},
        "hsm_signer.testing": {
            name: _members(value, attributes)
            for name, value in for_tests.items()
            if isinstance(value, type | types.UnionType) and not _is_error(value)
        },
    }


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, HsmSignerError)


def _members(value: object, attributes: dict[type, list[str]]) -> object:
    """Return the public members of a class, those of our own bases included, and how each is called."""
    if not isinstance(value, type):
        return sorted(each.__name__ for each in typing.get_args(value)) or type(value).__name__
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    found: dict[str, object] = {
        name: "attribute" for name in [*fields, *attributes.get(value, [])] if not name.startswith("_")
    }
    for name in dir(value):
        owner = next(each for each in (*value.__mro__, type) if name in vars(each))
        if owner.__module__.startswith("hsm_signer") and (name in CONTEXT_MANAGER or not name.startswith("_")):
            member = inspect.getattr_static(value, name)
            bound = isinstance(member, classmethod | staticmethod)
            called = name not in CONTEXT_MANAGER and (bound or callable(member))
            found[name] = _call(getattr(value, name), own=not bound) if called else "attribute"
    return {"()": _call(value), **found}


def _call(function: Callable[..., object], *, own: bool = False) -> dict[str, str]:
    """Return the parameters that a caller sees, with their numbers where those matter.

    Args:
        own: the first is the instance.
    """
    found = {"awaited": "yes"} if inspect.iscoroutinefunction(function) else {}
    for number, parameter in enumerate(list(inspect.signature(function).parameters.values())[own:], 1):
        if typing.get_origin(parameter.annotation) is typing.Unpack:  # keywords, declared as a TypedDict
            (declared,) = typing.get_args(parameter.annotation)
            found |= dict.fromkeys(declared.__annotations__, "keyword_only, optional")
            continue
        optional = "" if parameter.default is parameter.empty else ", optional"
        by_name = parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)
        name = parameter.name if by_name else f"{number} {parameter.name}"
        found[name] = f"{parameter.kind.name.lower()}{optional}"
    return found


def documents(program: Program) -> dict[str, dict[str, str]]:
    """Return the form of each JSON document that the commands print, for a new device and application."""
    found: dict[str, list[object]] = {}
    with SoftHsm(label="vault", pin=PIN) as vault, EntraEmulator(https=False) as entra:
        key = vault.add_identity("app", b"\x01")
        assert key.certificate is not None
        vault.import_key(ec.generate_private_key(ec.SECP256R1()), "elliptic", b"\x02")
        stranger = vault.issue_certificate(rsa.generate_private_key(65537, 2048).public_key())
        vault.add_certificate(stranger, "stranger", b"\x03")
        entra.register(CLIENT, key.certificate, tenant=TENANT)
        (program.directory / "app.der").write_bytes(key.certificate)
        (program.directory / "config.toml").write_text(
            f"""[profile.default]
            tenant = "{TENANT}"
            client_id = "{CLIENT}"
            authority = "{entra.authority}"
            scope = "https://graph.microsoft.com/.default"
            key = "{key.uri}"
            module = "{vault.module}"
            pin_source = "env:DEVICE_PIN"
            grace = 600
            """
        )
        environment = {"HSM_SIGNER_CONFIG": "config.toml", "WRONG_PIN": WRONG_PIN, **vault.environment}

        def run(command: str, *more: str, stdin: str = "", form: str = "json") -> Result:
            words = [*command.split(), "-o", form, *more]
            result = program(*words, stdin=stdin, environment=environment)
            assert result.status == 0, result.stderr
            found.setdefault(f"{command} -o {form}", []).append(result.json)
            return result

        def fail(code: str, *arguments: str) -> None:
            result = program(*arguments, "-o", "json", environment=environment)
            assert result.error["code"] == code
            found.setdefault("error", []).append({"error": result.error})

        run("token")
        run("token", form="exec-credential")
        jwt = run("assertion").json["jwt"]
        run("assertion", "--send-chain")
        run("decode", jwt)
        run("verify", "--certificate", "app.der", stdin=jwt)
        run("explain", "AADSTS700027")
        run("explain", "AADSTS999999")  # which is not known
        looked_through = run("device list", "--module", str(vault.module)).json["modules"][0]
        # The machine may have other modules, and may have a name for this one.
        looked_through["name"] = looked_through["name"] or "softhsm2"
        found["device list -o json"] = [{"modules": [looked_through]}]
        run("device show --login")
        run("doctor")

        made = run("key generate", "--label", "made").json["uri"]
        run("certificate request", "--key", made, "--subject", "CN=made")
        created = run("certificate create", "--key", made, "--subject", "CN=made").json
        (program.directory / "made.pem").write_text(created["pem"])
        run("certificate import", "--key", made, "--replace", "made.pem")
        run("certificate export")
        run("certificate show")
        run("key list")
        run("key delete", "--key", made, "--certificate", "--yes")

        rolling = ("--key", "file:key.json")
        run("rotate --dry-run", *rolling, "--current", key.uri, "--now")
        program("rotate", "--adopt", key.uri, *rolling, environment=environment)
        run("rotate --warn-days 7", *rolling)  # which is not due
        entra.restrict_certificates(issuer=stranger)
        fail("entra_error", "rotate", *rolling, "--now")  # with commands to give
        entra.restrict_certificates()
        run("rotate", *rolling)
        run("rotate --dry-run", *rolling)
        run("rotate --check", *rolling)

        with program.start("emulator", "--certificate", "app.der", "-o", "json") as emulator:
            assert emulator.stdout is not None
            found["emulator -o json"] = [json.loads(emulator.stdout.readline())]
            emulator.terminate()
            emulator.communicate(timeout=60)
        fail("usage", "tokn")
        fail("entra_error", "token", "--client-id", "11111111-2222-4333-8444-555555555555")
        fail("pin_incorrect", "assertion", "--pin-source", "env:WRONG_PIN")
        run("device forget-pin-failures")
    return {command: _form(each) for command, each in found.items()}


def _form(documents: list[object]) -> dict[str, str]:
    """Return the types of each value in documents of one kind, by its place in them: ``keys[].label``."""
    kinds: dict[str, set[str]] = {}
    for place, kind in (each for document in documents for each in _places("", document)):
        kinds.setdefault(place, set()).add(kind)
    return {place: " or ".join(sorted(each)) for place, each in kinds.items()}


def _places(place: str, value: object) -> Iterator[tuple[str, str]]:
    yield place, JSON_TYPES[type(value)]
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _places(f"{place}.{name}".lstrip("."), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(f"{place}[]", inner)


@pytest.mark.parametrize("section", ["options", "errors", "public", "json"])
def test_what_scripts_rely_on_is_what_is_recorded(
    section: str, program: Program, softhsm: SoftHsm, entra: EntraEmulator
) -> None:
    looking: dict[str, Callable[[], object]] = {
        "options": options,
        "errors": error_tree,
        "public": lambda: public(softhsm, entra),
        "json": lambda: documents(program),
    }
    found = looking[section]()
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get(RECORD):
        FILE.write_text(json.dumps({**recorded, section: found}, indent=1, sort_keys=True) + "\n")
        return
    before, now = set(_lines(recorded.get(section, {}))), set(_lines(found))
    changes = sorted([(line, "-") for line in before - now] + [(line, "+") for line in now - before])
    if changes:
        pytest.fail(
            f"In {section!r} of {FILE.name}, - is what somebody's script relies on, and + is new. "
            f"If it is meant, record it: {RECORD}=1 pytest tests/cli/test_contract.py\n"
            + "\n".join(f"{sign} {line}" for line, sign in changes),
            pytrace=False,
        )


def _lines(value: object, *place: str) -> Iterator[str]:
    """Return a tree as lines, each with its path."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _lines(inner, *place, name)
    else:
        yield f"{' > '.join(place)}: {json.dumps(value)}"
