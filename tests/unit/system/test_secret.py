"""Secrets are shown by no repr, and exceptions that passed a boundary of ours have no variables to show."""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from hsm_signer.system.secret import Secret, hidden_locals, revealed


def variables(error: BaseException | None) -> dict[str, object]:
    """Everything in the frames that an exception passed through, but for those of these tests."""
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


def test_a_secret_is_no_string_that_a_reporter_would_show() -> None:
    assert not isinstance(Secret("4711"), str)


def test_the_secrets_of_a_mapping_are_revealed_and_the_rest_is_as_it_was() -> None:
    assert revealed({"a": Secret("4711"), "b": "text", "c": 1}) == {"a": "4711", "b": "text", "c": 1}


def test_variables_would_be_seen() -> None:
    with pytest.raises(ValueError, match="4") as caught:
        fail()
    assert variables(caught.value) == {"pin": "4711"}


def test_what_fails_below_has_no_variables_and_still_says_where() -> None:
    with pytest.raises(ValueError, match="4") as caught, hidden_locals():
        fail()
    assert variables(caught.value) == {}
    assert "in fail" in "".join(traceback.format_exception(caught.value))


def test_a_decorated_function_has_none_either() -> None:
    @hidden_locals()
    def sign() -> None:
        assertion = "eyJ"
        fail(assertion)

    with pytest.raises(ValueError, match="3") as caught:
        sign()
    assert "eyJ" not in map(str, variables(caught.value).values())


def test_a_cause_has_none_even_where_it_is_suppressed() -> None:
    with pytest.raises(KeyError) as caught, hidden_locals():
        fail_in_turn()
    assert isinstance(caught.value.__context__, ValueError)
    assert variables(caught.value.__context__) == {}


def test_members_of_a_group_have_none() -> None:
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


def test_chains_that_bite_their_tail_end() -> None:
    def fail_in_a_circle() -> None:
        one, other = ValueError(), KeyError()
        one.__context__, other.__context__ = other, one
        raise one

    with pytest.raises(ValueError, match=r"^$"), hidden_locals():
        fail_in_a_circle()


def test_what_the_caller_is_handling_keeps_its_variables() -> None:
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
def test_what_ends_a_program_has_none_either(kind: type[BaseException]) -> None:
    def interrupted(pin: str = "4711") -> None:
        raise kind

    with pytest.raises(kind) as caught, hidden_locals():
        interrupted()
    assert variables(caught.value) == {}


def test_an_error_of_another_thread_has_none_while_that_thread_goes_on() -> None:
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


def test_a_generator_that_is_closed_while_an_exception_passes_empties_its_frames() -> None:
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
