"""A repr shows no secret, and `hidden_locals` empties the variables of an exception that passes through it."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from hsm_signer.system.secret import Secret, hidden_locals, revealed


def variables(error: BaseException | None) -> dict[str, object]:
    """The variables in all frames that an exception passed through, except those of the tests themselves."""
    found: dict[str, object] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__ if error else None):
        if not frame.f_code.co_name.startswith("test_"):
            found |= frame.f_locals
    return found


def fail(pin: str = "4711") -> None:
    raise ValueError(len(pin))


def fail_in_turn(pin: str = "4711") -> None:
    try:
        fail(pin)
    except ValueError:
        raise KeyError from None


def test_a_secret_is_not_in_its_repr() -> None:
    assert "4711" not in f"{Secret('4711')} {Secret('4711')!r} {[Secret('4711')]}"


def test_a_secret_is_not_a_string_so_an_error_reporter_does_not_show_it() -> None:
    assert not isinstance(Secret("4711"), str)


def test_revealing_a_mapping_reveals_its_secrets_and_keeps_the_rest() -> None:
    assert revealed({"a": Secret("4711"), "b": "text", "c": 1}) == {"a": "4711", "b": "text", "c": 1}


def test_without_hidden_locals_the_variables_can_be_seen() -> None:
    with pytest.raises(ValueError, match="4") as caught:
        fail()
    assert variables(caught.value) == {"pin": "4711"}


def test_an_exception_loses_its_variables_and_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="4") as caught, hidden_locals():
        fail()
    assert variables(caught.value) == {}
    assert "in fail" in "".join(traceback.format_exception(caught.value))


def test_an_exception_from_a_decorated_function_loses_its_variables() -> None:
    @hidden_locals()
    def sign() -> None:
        assertion = "eyJ"
        fail(assertion)

    with pytest.raises(ValueError, match="3") as caught:
        sign()
    assert "eyJ" not in map(str, variables(caught.value).values())


def test_a_suppressed_cause_loses_its_variables_too() -> None:
    with pytest.raises(KeyError) as caught, hidden_locals():
        fail_in_turn()
    assert isinstance(caught.value.__context__, ValueError)
    assert variables(caught.value.__context__) == {}


def test_the_members_of_an_exception_group_lose_their_variables() -> None:
    def fail_together() -> None:
        errors = []
        for pin in ("4711", "0815"):
            try:
                fail(pin)
            except ValueError as error:
                errors.append(error)
        raise ExceptionGroup("both", errors)

    with pytest.raises(ExceptionGroup) as caught, hidden_locals():
        fail_together()
    assert [variables(error) for error in caught.value.exceptions] == [{}, {}]


def test_a_circular_chain_of_exceptions_does_not_loop_forever() -> None:
    def fail_in_a_circle() -> None:
        one, other = ValueError(), KeyError()
        one.__context__, other.__context__ = other, one
        raise one

    with pytest.raises(ValueError, match=r"^$"), hidden_locals():
        fail_in_a_circle()


def test_an_exception_that_the_caller_was_already_handling_keeps_its_variables() -> None:
    def work(order: str = "theirs") -> None:
        raise LookupError(order)

    def report() -> None:
        try:
            work()
        except LookupError:
            with hidden_locals():
                fail()

    with pytest.raises(ValueError, match="4") as caught:
        report()
    assert isinstance(caught.value.__context__, LookupError)
    assert variables(caught.value.__context__)["order"] == "theirs"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exceptions_that_end_a_program_lose_their_variables_too(kind: type[BaseException]) -> None:
    def interrupted(pin: str = "4711") -> None:
        raise kind

    with pytest.raises(kind) as caught, hidden_locals():
        interrupted()
    assert variables(caught.value) == {}


def test_an_error_from_another_thread_loses_its_variables_while_that_thread_still_runs() -> None:
    failed, go_on = threading.Event(), threading.Event()
    errors: list[ValueError] = []

    def work() -> None:
        try:
            fail()
        except ValueError as error:
            errors.append(error)
            failed.set()
            go_on.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    failed.wait(10)
    try:
        with pytest.raises(ValueError, match="4") as caught, hidden_locals():
            raise errors[0]
        assert "pin" not in variables(caught.value)
    finally:
        go_on.set()
        thread.join()


def test_closing_a_generator_while_an_exception_passes_empties_its_variables() -> None:
    def flow() -> Iterator[None]:
        with hidden_locals():
            yield

    def use(send: Callable[[], None]) -> None:
        running = flow()
        next(running)
        try:
            send()
        finally:
            running.close()  # type: ignore[attr-defined]  # a generator

    with pytest.raises(ValueError, match="4") as caught:
        use(fail)
    assert "pin" not in variables(caught.value)
    assert sys.exception() is None
