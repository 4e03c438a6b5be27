"""The error tree: each class has its code and the documented exit status, and nothing is lost between processes."""

import ast
import copy
import pickle
import re
import traceback
from collections.abc import Callable
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


# A test may have defined more classes.
KINDS = [kind for kind in tree(HsmSignerError) if kind.__module__.startswith("hsm_signer.")]


def test_every_class_of_the_module_is_in_the_tree() -> None:
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert classes <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_classes_have_the_same_code(kind: type[HsmSignerError]) -> None:
    assert [other for other in KINDS if other.code == kind.code] == [kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_is_words_in_lower_case_joined_by_underscores(kind: type[HsmSignerError]) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", kind.code)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not HsmSignerError])
def test_every_class_belongs_to_one_family_and_has_its_exit_status(kind: type[HsmSignerError]) -> None:
    families = [family for family in STATUS_OF_FAMILY if issubclass(kind, family)]
    assert [STATUS_OF_FAMILY[family] for family in families] == [kind.exit_status]


@pytest.mark.parametrize(("family", "members"), FAMILY.items())
def test_a_family_has_its_members_and_no_others(family: type[HsmSignerError], members: str) -> None:
    # The command line adds classes that are not listed here.
    found = {kind.__name__ for kind in tree(family) if kind.__module__ == errors.__name__}
    assert found == {family.__name__, *members.split()}


def test_an_error_of_no_family_exits_like_an_internal_error() -> None:
    assert HsmSignerError.exit_status == 70


def state(error: HsmSignerError) -> tuple[object, ...]:
    """Everything that can be seen of an error. Two errors are never equal themselves."""
    return type(error), str(error), error.args, vars(error), error.code, error.exit_status


EXAMPLES = [
    *(kind("What was found.", hint="What to do.") for kind in KINDS),
    *(kind("What was found.") for kind in KINDS),
    errors.ConfigError("Two are missing.", hint="Set them:", commands=("--tenant TENANT", "--key URI")),
    UriError("Malformed.", hint="Fix it.", position=0),
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
def test_an_error_prints_as_its_message_and_keeps_the_hint_separate(kind: type[HsmSignerError]) -> None:
    error = kind("What was found.", hint="What to do.")
    assert (str(error), error.message, error.hint) == ("What was found.", "What was found.", "What to do.")


def shown(error: BaseException) -> str:
    """What Python prints of an error that ends a program."""
    return "".join(traceback.format_exception(error))


def test_a_traceback_shows_the_hint_and_the_commands_below_the_message() -> None:
    error = EntraError("Two are missing.", hint="Set them:", commands=("--tenant TENANT", "--key URI"))
    expected = "EntraError: Two are missing.\nhint: Set them:\n  --tenant TENANT\n  --key URI\n"
    assert shown(error) == f"hsm_signer.errors.{expected}"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_a_traceback_shows_the_hint_once_after_copying_and_pickling(again: Callable[[Exception], Exception]) -> None:
    error = EntraError("Refused.", hint="Upload it.")
    assert shown(again(again(error))).count("Upload it.") == 1


def test_a_traceback_of_an_error_without_a_hint_ends_with_the_message() -> None:
    assert shown(EntraError("Refused.")) == "hsm_signer.errors.EntraError: Refused.\n"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy])
def test_a_note_on_a_copy_is_not_on_the_original(again: Callable[[Exception], Exception]) -> None:
    error = EntraError("Refused.", hint="Upload it.")
    again(error).add_note("the caller's own")
    assert "the caller's own" not in shown(error)


def test_what_was_not_given_is_none() -> None:
    error = EntraError("Refused.")
    assert (error.hint, error.error, error.aadsts, error.correlation_id, error.trace_id) == (None,) * 5


def test_an_error_about_a_whole_uri_has_no_position() -> None:
    assert UriError("Malformed.").position is None


PACKAGE = Path(errors.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTIONS = [node for module in MODULES.values() for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]


def _name(node: ast.expr) -> str:
    """Return the last part of a name: of ``ConfigError`` and of ``errors.ConfigError``."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _takes_hint(node: ast.AST) -> bool:
    """Return whether a function, or making an object of a class, takes a hint to hand it on."""
    if isinstance(node, ast.ClassDef):
        return any(_takes_hint(member) for member in node.body)
    return isinstance(node, ast.FunctionDef) and any(argument.arg == "hint" for argument in node.args.kwonlyargs)


def _helpers(module: ast.Module) -> set[str]:
    definitions = (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {node.name for node in definitions if _takes_hint(node)} - {"__init__"}


KIND_NAMES = {kind.__name__ for kind in KINDS}
PUBLIC_HELPERS = {name for module in MODULES.values() for name in _helpers(module) if not name.startswith("_")}


def _may_be_nothing(hint: ast.expr) -> bool:
    """Return whether an expression may give no hint. An error's own hint, and a parameter, are checked elsewhere."""
    match hint:
        case ast.Constant(value=value):
            return not value
        case ast.IfExp(body=body, orelse=other):
            return _may_be_nothing(body) or _may_be_nothing(other)
        case ast.BoolOp(op=ast.Or(), values=values):
            return _may_be_nothing(values[-1])
        case ast.Call(func=ast.Attribute(attr="get"), args=[_]):
            return True
        case ast.Call(func=function):
            returned = [each.returns for each in FUNCTIONS if each.name == _name(function)]
            return any(each is not None and "None" in ast.unparse(each) for each in returned)
    return False


def _made_without_a_hint(module: ast.Module) -> list[int]:
    """Return the lines where an error is made that does not say what to do."""
    makers = KIND_NAMES | PUBLIC_HELPERS | _helpers(module)
    lines = []
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
            made = _name(node.func) in makers or (isinstance(node.func, ast.Call) and _name(node.func.func) == "type")
            if any(map(_may_be_nothing, hints)) or (made and not hints):
                lines.append(node.lineno)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_name(target) == "hint" for target in targets) and _may_be_nothing(node.value):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", [path for path in MODULES if path != "errors.py"])
def test_every_error_says_what_to_do(path: str) -> None:
    assert _made_without_a_hint(MODULES[path]) == []


@pytest.mark.parametrize(
    "code",
    [
        "raise ConfigError('x')",
        "raise errors.ConfigError('x')",
        "raise UriError('x', position=0)",
        "raise UriError('x', hint=None)",
        "raise DeviceError('x', hint='')",
        "raise DeviceError('x', hint='Wait.' if y else None)",
        "raise DeviceError('x', hint=HINTS.get(y))",
        "raise DeviceError('x', hint=nearest(y, z))",
        "hint = None\nraise DeviceError('x', hint=hint)",
        "def _malformed(what, *, hint): ...\nraise _malformed('x')",
        "raise Unreadable('x')",
        "raise type(error)('x')",
    ],
)
def test_an_error_that_does_not_say_what_to_do_is_found(code: str) -> None:
    assert len(_made_without_a_hint(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "raise ConfigError('x', hint='Set y.')",
        "raise DeviceError('x', hint=HINTS.get(y, 'Wait.'))",
        "raise DeviceError('x', hint=nearest(y, z) or 'Use one of these.')",
        "raise DeviceError('x', hint=error.hint)",
    ],
)
def test_an_error_that_says_what_to_do_is_not_found(code: str) -> None:
    assert _made_without_a_hint(ast.parse(code)) == []
