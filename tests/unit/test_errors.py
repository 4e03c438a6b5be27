"""The error tree: a code for each class, the documented exit status, and nothing lost between processes."""

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest

from hsm_signer import errors
from hsm_signer.cli import app
from hsm_signer.errors import EntraError, HsmSignerError, UriError

# The documented table: a service manager restarts on some and not on others.
STATUS_OF_FAMILY: dict[type[HsmSignerError], int] = {
    errors.ConfigError: 2,
    errors.DeviceError: 3,
    errors.PinError: 4,
    errors.KeyLookupError: 5,
    errors.NetworkError: 6,
    errors.EntraError: 7,
    errors.DeviceTimeout: 8,
    errors.OutputError: 74,
    app.InternalError: 70,
}
FAMILY = {
    errors.ConfigError: "UriError ScopeError JwtError",
    errors.DeviceError: "ModuleLoadError DeviceNotFound DeviceAmbiguous DeviceGone LoginInterrupted DeviceReadOnly "
    "MechanismUnsupported SignatureInvalid TouchMissed",
    errors.PinError: "PinIncorrect PinLocked PinLastTry PinRefusedBefore PinOutcomeUnknown PinUnavailable",
    errors.KeyLookupError: "KeyNotFound KeyAmbiguous KeyExists KeyUnfit CertificateNotFound CertificateExists "
    "CertificateMismatch CertificateUnusable",
}


def tree(kind: type[HsmSignerError]) -> list[type[HsmSignerError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in tree(child))]


# A test may have made classes of its own.
KINDS = [kind for kind in tree(HsmSignerError) if kind.__module__.startswith("hsm_signer.")]


def test_every_class_of_the_module_is_in_the_tree() -> None:
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert classes <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_has_a_code_of_its_own(kind: type[HsmSignerError]) -> None:
    assert [other for other in KINDS if other.code == kind.code] == [kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_is_a_word_that_programs_can_compare(kind: type[HsmSignerError]) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", kind.code)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not HsmSignerError])
def test_every_class_belongs_to_one_family_and_has_its_exit_status(kind: type[HsmSignerError]) -> None:
    families = [family for family in STATUS_OF_FAMILY if issubclass(kind, family)]
    assert [STATUS_OF_FAMILY[family] for family in families] == [kind.exit_status]


@pytest.mark.parametrize(("family", "members"), FAMILY.items())
def test_a_family_has_its_members_and_no_others(family: type[HsmSignerError], members: str) -> None:
    # What the command line adds is its own.
    found = {kind.__name__ for kind in tree(family) if kind.__module__ == errors.__name__}
    assert found == {family.__name__, *members.split()}


def test_what_nobody_explained_is_a_bug_of_ours() -> None:
    assert HsmSignerError.exit_status == 70


def state(error: HsmSignerError) -> tuple[object, ...]:
    """All that can be seen of an error; two of them are never equal themselves."""
    return type(error), str(error), error.args, vars(error), error.code, error.exit_status


EXAMPLES = [
    *(kind("What was found.", hint="What to do.") for kind in KINDS),
    *(kind("What was found.") for kind in KINDS),
    UriError("Malformed.", hint="Mend it.", position=0),
    EntraError(
        "Refused.",
        hint="Upload it.",
        error="invalid_client",
        aadsts=700027,
        correlation_id="11111111-2222-3333-4444-555555555555",
        trace_id="66666666-7777-8888-9999-000000000000",
    ),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_an_error_survives_pickling(error: HsmSignerError) -> None:
    assert state(pickle.loads(pickle.dumps(error))) == state(error)  # noqa: S301  # our own


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_an_error_survives_copying(error: HsmSignerError) -> None:
    assert state(copy.copy(error)) == state(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_says_its_message_and_keeps_the_hint_apart(kind: type[HsmSignerError]) -> None:
    error = kind("What was found.", hint="What to do.")
    assert (str(error), error.message, error.hint) == ("What was found.", "What was found.", "What to do.")


def test_what_was_not_given_is_none() -> None:
    error = EntraError("Refused.")
    assert (error.hint, error.error, error.aadsts, error.correlation_id, error.trace_id) == (None,) * 5


def test_a_uri_without_a_place_to_blame_has_no_position() -> None:
    assert UriError("Malformed.").position is None


def _made_without_a_hint() -> list[str]:
    package = Path(errors.__file__).parent
    families = {name for name, value in vars(errors).items() if isinstance(value, type)} | {
        "UsageError",
        "InternalError",
    }
    return [
        f"{path.relative_to(package)}:{node.lineno} {node.func.id}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in families
        if not any(keyword.arg == "hint" for keyword in node.keywords)
    ]


def test_every_error_says_what_to_do() -> None:
    assert _made_without_a_hint() == []
