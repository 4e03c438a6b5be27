"""Which step of a rotation comes next, and that no order of steps leaves an application without a working key."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.config.keyfile import KeyEntry, KeyFile
from hsm_signer.crypto import PublicKey
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.rotation.plan import (
    Observed,
    Step,
    after,
    certificate_fits,
    complete_uri,
    days_left,
    first_change,
    is_due,
    next_label,
    next_step,
    plan,
    retired_key,
    with_until,
)
from hsm_signer.x509.certificate import Certificate

OLD = KeyEntry(Pkcs11Uri(token="t", id=b"old"), key_id="1")
NEW = KeyEntry(Pkcs11Uri(token="t", id=b"new"), registered=False)
REGISTERED = replace(NEW, registered=True, key_id="2")

WHOLE = [
    Step.NAME,
    Step.GENERATE,
    Step.CERTIFY,
    Step.REGISTER,
    Step.PROVE,
    Step.SWITCH,
    Step.UNREGISTER,
]

NOW, GRACE = 1_750_000_000, 4200

filed = st.builds(
    KeyEntry,
    st.binary(min_size=1, max_size=4).map(lambda key_id: Pkcs11Uri(token="t", id=key_id)),
    st.booleans(),
    st.none() | st.just("id"),
    until=st.none() | st.integers(NOW - GRACE, NOW + GRACE),
    delete=st.booleans(),
)
observations = st.builds(
    Observed,
    st.builds(
        KeyFile,
        current=filed.map(lambda key: replace(key, registered=True)),
        next=st.none() | filed,
        retired=st.lists(filed, max_size=2).map(tuple),
    ),
    start=st.booleans(),
    has_key=st.booleans(),
    has_certificate=st.booleans(),
    proven=st.booleans(),
    delete_old=st.booleans(),
    cancel=st.booleans(),
    unwritten=st.booleans(),
    now=st.just(NOW),
    grace=st.sampled_from([0, GRACE]),
)


def test_a_rotation_from_the_beginning_takes_every_step_in_order() -> None:
    assert plan(Observed(KeyFile(OLD), start=True)) == [*WHOLE, Step.KEEP]


def test_the_old_key_is_deleted_on_request() -> None:
    assert plan(Observed(KeyFile(OLD), start=True, delete_old=True)) == [*WHOLE, Step.DELETE]


def test_without_a_request_no_rotation_starts() -> None:
    assert plan(Observed(KeyFile(OLD), start=False)) == []


def test_a_key_file_is_started_even_if_no_rotation_is() -> None:
    assert plan(Observed(KeyFile(OLD), start=False, unwritten=True)) == [Step.ADOPT]
    assert plan(Observed(KeyFile(OLD), start=True, unwritten=True)) == [*WHOLE, Step.KEEP]


@given(observations)
def test_nothing_else_is_done_where_only_a_key_file_is_wanted(observed: Observed) -> None:
    assert plan(replace(observed, adopt=True)) == [Step.ADOPT] * observed.unwritten


@pytest.mark.parametrize(("hours", "due"), [(-1, True), (0, True), (30 * 24 - 1, True), (30 * 24, False)])
def test_a_rotation_is_due_once_fewer_whole_days_are_left_than_the_warning_names(
    certificate: Certificate, hours: int, due: bool
) -> None:
    now = certificate.not_after - timedelta(hours=hours)
    assert is_due(days_left(certificate, now), 30) is due


@pytest.mark.parametrize(
    ("observed", "step"),
    [
        pytest.param(Observed(KeyFile(OLD, NEW), start=False), Step.GENERATE, id="named only"),
        pytest.param(Observed(KeyFile(OLD, NEW), start=False, has_key=True), Step.CERTIFY, id="key only"),
        pytest.param(
            Observed(KeyFile(OLD, NEW), start=False, has_key=True, has_certificate=True), Step.REGISTER, id="certified"
        ),
        pytest.param(
            Observed(KeyFile(OLD, REGISTERED), start=False, has_key=True, has_certificate=True),
            Step.PROVE,
            id="registered",
        ),
        pytest.param(
            Observed(KeyFile(OLD, REGISTERED), start=False, has_key=True), Step.ABANDON, id="its certificate is gone"
        ),
        pytest.param(Observed(KeyFile(OLD, REGISTERED), start=False), Step.ABANDON, id="it is gone"),
        pytest.param(Observed(KeyFile(REGISTERED, retired=(OLD,)), start=False), Step.UNREGISTER, id="switched"),
        pytest.param(
            Observed(KeyFile(REGISTERED, retired=(replace(OLD, registered=False),)), start=False),
            Step.KEEP,
            id="unregistered",
        ),
    ],
)
def test_a_rotation_that_was_cut_off_continues_with_the_next_step(observed: Observed, step: Step) -> None:
    assert next_step(observed) is step


def test_a_registered_key_that_was_lost_is_removed_from_entra_before_a_new_rotation_starts() -> None:
    lost = Observed(KeyFile(OLD, REGISTERED), start=False)
    assert plan(lost) == [Step.ABANDON, Step.UNREGISTER, Step.KEEP, *WHOLE, Step.KEEP]


@given(observations)
def test_every_state_leads_to_one_registered_key_and_nothing_left_over(observed: Observed) -> None:
    steps = plan(observed)
    assert len(steps) < 30
    for step in steps:
        observed = after(step, observed)
    assert observed.file == KeyFile(observed.file.current, object_id=observed.file.object_id)
    assert observed.file.current.registered


@given(observations)
def test_the_current_key_is_always_registered_and_only_a_proven_key_replaces_it(
    observed: Observed,
) -> None:
    while (step := next_step(observed)) is not None:
        if step is Step.SWITCH:
            assert observed.proven
            assert observed.has_key
            assert observed.has_certificate
        following = after(step, observed)
        assert following.file.current.registered
        assert step is Step.SWITCH or following.file.current == observed.file.current
        observed = following


@given(observations)
def test_no_credential_is_removed_before_its_grace_period_ends(observed: Observed) -> None:
    since: dict[Pkcs11Uri, float] = {}
    while (step := next_step(observed)) is not None:
        if step is Step.SWITCH:
            since[observed.file.current.uri] = observed.now
        if step is Step.UNREGISTER:
            old = retired_key(step, observed)
            assert (old.until or 0) <= observed.now
            assert since.get(old.uri, -math.inf) + observed.grace <= observed.now
        if step is Step.WAIT:
            assert all(key.registered and (key.until or 0) > observed.now for key in observed.file.retired)
        observed = after(step, observed)


def test_after_the_switch_the_old_key_stays_registered_for_the_grace_period() -> None:
    observed = Observed(KeyFile(OLD), start=True, delete_old=True, now=NOW, grace=GRACE)
    assert plan(observed) == [*WHOLE[:-1], Step.WAIT, Step.UNREGISTER, Step.DELETE]


def test_a_key_marked_for_deletion_is_deleted_by_the_run_that_finishes_the_rotation() -> None:
    over = replace(OLD, until=NOW, delete=True)
    assert plan(Observed(KeyFile(REGISTERED, retired=(over,)), start=False, now=NOW)) == [Step.UNREGISTER, Step.DELETE]


@pytest.mark.parametrize(
    ("key", "grace", "until"),
    [
        (OLD, GRACE, NOW + GRACE),
        (replace(OLD, until=NOW + 1), GRACE, NOW + 1),
        (replace(OLD, until=NOW + 1), 0, NOW),
        (replace(OLD, registered=False), GRACE, None),
    ],
)
def test_a_retired_key_keeps_its_recorded_time_or_its_grace_period_starts_now(
    key: KeyEntry, grace: int, until: int | None
) -> None:
    assert with_until(KeyFile(REGISTERED, retired=(key,)), NOW, grace).retired == (replace(key, until=until),)


@given(observations)
def test_a_key_is_deleted_from_the_device_only_after_it_was_removed_from_entra(observed: Observed) -> None:
    while (step := next_step(observed)) is not None:
        if step in (Step.DELETE, Step.KEEP):
            assert not retired_key(step, observed).registered
        observed = after(step, observed)


def test_a_key_that_is_named_is_neither_made_nor_certified_again() -> None:
    named = Observed(KeyFile(OLD), start=True, named=True, has_key=True, has_certificate=True)
    assert plan(named) == [step for step in [*WHOLE, Step.KEEP] if step not in (Step.GENERATE, Step.CERTIFY)]
    assert plan(replace(named, has_certificate=False))[1] is Step.CERTIFY


@pytest.mark.parametrize(
    ("observed", "step"),
    [
        pytest.param(Observed(KeyFile(OLD), start=True), Step.GENERATE, id="from the beginning"),
        pytest.param(
            Observed(KeyFile(OLD), start=True, named=True, has_key=True), Step.CERTIFY, id="named, without certificate"
        ),
        pytest.param(
            Observed(KeyFile(OLD), start=True, named=True, has_key=True, has_certificate=True), None, id="named, whole"
        ),
        pytest.param(
            Observed(KeyFile(OLD), start=True, named=True, has_key=True, has_certificate=True, delete_old=True),
            Step.DELETE,
            id="the old key at the end",
        ),
        pytest.param(Observed(KeyFile(OLD, REGISTERED), start=False), None, id="given up first"),
    ],
)
def test_what_a_device_would_refuse_later_is_known_before(observed: Observed, step: Step | None) -> None:
    assert first_change(observed) is step


@pytest.mark.parametrize(
    ("observed", "steps"),
    [
        pytest.param(Observed(KeyFile(OLD, NEW), start=False), [], id="named only"),
        pytest.param(Observed(KeyFile(OLD, NEW), start=False, has_key=True), [Step.KEEP], id="generated"),
        pytest.param(
            Observed(KeyFile(OLD, NEW), start=False, has_key=True, has_certificate=True),
            [Step.UNREGISTER, Step.KEEP],
            id="certified, perhaps registered",
        ),
        pytest.param(
            Observed(KeyFile(OLD, REGISTERED), start=False, has_key=True, has_certificate=True, delete_old=True),
            [Step.UNREGISTER, Step.DELETE],
            id="registered",
        ),
        pytest.param(Observed(KeyFile(OLD, REGISTERED), start=False), [Step.UNREGISTER, Step.KEEP], id="lost"),
    ],
)
def test_what_was_done_for_a_key_that_is_given_up_is_undone(observed: Observed, steps: list[Step]) -> None:
    assert plan(replace(observed, cancel=True)) == [Step.CANCEL, *steps]


def test_without_a_next_key_there_is_nothing_to_give_up() -> None:
    assert plan(Observed(KeyFile(OLD), start=False, cancel=True)) == []


def test_no_other_key_is_deleted_when_the_next_one_is_given_up() -> None:
    retired = KeyEntry(Pkcs11Uri(token="t", id=b"older"), registered=False)
    observed = Observed(KeyFile(OLD, NEW, (retired,)), start=False, has_key=True, cancel=True, delete_old=True)
    assert plan(observed) == [Step.CANCEL, Step.KEEP, Step.DELETE]


def test_a_key_to_be_deleted_stays_on_a_device_that_cannot_be_changed() -> None:
    old = replace(OLD, registered=False, delete=True)
    assert plan(Observed(KeyFile(REGISTERED, retired=(old,)), start=False, writable=False)) == [Step.KEEP]


def test_a_key_named_by_the_caller_comes_before_the_rest_of_the_last_rotation() -> None:
    assert plan(Observed(KeyFile(OLD, retired=(REGISTERED,)), start=False, named=True))[0] is Step.NAME


# Any file that a person could write: each entry is one of a few keys, by one of its URIs.
SPELLINGS = {
    uri: name
    for name in ("one", "two", "three", "gone")
    for uri in (
        Pkcs11Uri(object=name),
        Pkcs11Uri(token="t", object=name),
        Pkcs11Uri(id=name.encode()),
        Pkcs11Uri(token="t", object=name, id=name.encode()),
    )
}
spelled = st.builds(KeyEntry, st.sampled_from([*SPELLINGS]), st.booleans())
files = st.builds(KeyFile, current=spelled, next=st.none() | spelled, retired=st.lists(spelled, max_size=3).map(tuple))
NUMBERS = {name: number for number, name in enumerate(("one", "two", "three", "made"), 1)}


@given(
    file=files,
    delete_old=st.booleans(),
    named=st.none() | st.sampled_from([*SPELLINGS]),
    certified=st.booleans(),
    cancel=st.booleans(),
)
def test_whatever_the_key_file_says_the_current_key_stays_on_the_device_and_registered(
    file: KeyFile, delete_old: bool, named: Pkcs11Uri | None, certified: bool, cancel: bool
) -> None:
    names = dict(SPELLINGS)
    current = names[file.current.uri]
    device, entra = {"one", "two", "three"}, {"one", current}
    if current == "gone" or (file.next is not None and names[file.next.uri] == current and not cancel):
        return  # refused: `test_current_key`
    start = file.next is None and not file.retired and not cancel
    switches = named is not None and names[named] != current and not cancel
    observed = Observed(file, start, switches, delete_old=delete_old, cancel=cancel)
    while True:
        uris = [key.uri for key in (observed.file.current, observed.file.next, *observed.file.retired) if key]
        keys = {uri: PublicKey(NUMBERS[names[uri]], 65537) for uri in uris if names[uri] in device}
        has_key = observed.file.next is not None and observed.file.next.uri in keys
        observed = replace(observed, keys=keys, has_key=has_key, has_certificate=has_key and certified)
        if (step := next_step(observed)) is None:
            break
        match step:
            case Step.NAME:
                following = named or Pkcs11Uri(object="made")
                names.setdefault(following, "made")
                observed = after(step, observed, KeyEntry(following, registered=False))
                continue
            case Step.GENERATE if observed.file.next and names[observed.file.next.uri] != "made":
                break  # the key does not exist: the run ends
            case Step.GENERATE:
                device.add("made")
            case Step.CERTIFY:
                certified = True
            case Step.REGISTER if observed.file.next:
                entra.add(names[observed.file.next.uri])
            case Step.PROVE if observed.file.next and names[observed.file.next.uri] not in entra:
                break  # Entra refuses the key: the run ends
            case Step.UNREGISTER:
                entra.discard(names[retired_key(step, observed).uri])
            case Step.DELETE:
                device.discard(names[retired_key(step, observed).uri])
        observed = after(step, observed)
        current = names[observed.file.current.uri]
        assert current in device
        assert current in entra


@pytest.mark.parametrize(
    ("uri", "current", "expected"),
    [
        ("pkcs11:object=b", "pkcs11:token=t;object=a;id=%01", "pkcs11:token=t;object=b"),
        ("pkcs11:token=u;id=%02", "pkcs11:token=t;serial=1;object=a", "pkcs11:token=u;serial=1;id=%02"),
        ("pkcs11:id=%02", "pkcs11:id=%01?pin-source=file:/p", "pkcs11:id=%02?pin-source=file:/p"),
        ("pkcs11:id=%02", "pkcs11:id=%01?module-name=a", "pkcs11:id=%02?module-name=a"),
        ("pkcs11:id=%02?module-path=/m", "pkcs11:id=%01?module-name=a", "pkcs11:id=%02?module-path=/m"),
    ],
)
def test_the_uri_of_the_next_key_is_completed_from_the_current_keys(uri: str, current: str, expected: str) -> None:
    assert complete_uri(Pkcs11Uri.parse(uri), Pkcs11Uri.parse(current)) == Pkcs11Uri.parse(expected)


@pytest.mark.parametrize(
    ("current", "taken", "label"),
    [
        ("app", set(), "app-20261123"),
        ("app-20250101", set(), "app-20261123"),
        ("app-20250101-3", set(), "app-20261123"),
        ("app", {"app-20261123"}, "app-20261123-2"),
        ("app-20261123", {"app-20261123", "app-20261123-2"}, "app-20261123-3"),
        ("", set(), "key-20261123"),
    ],
)
def test_the_next_label_is_the_current_label_with_the_date(current: str, taken: set[str], label: str) -> None:
    assert next_label(current, frozenset(taken), "20261123") == label


# Self-signed, and valid for 365 days around `now`.


@pytest.mark.parametrize(("days", "will"), [(364, False), (365, True), (366, True)])
def test_an_unregistered_certificate_that_is_valid_for_longer_than_requested_is_not_reused(
    certificate: Certificate, now: datetime, days: int, will: bool
) -> None:
    assert certificate_fits(certificate, NEW, days, now) is will


def test_a_registered_certificate_is_reused_whatever_validity_is_requested(
    certificate: Certificate, now: datetime
) -> None:
    assert certificate_fits(certificate, REGISTERED, 1, now)


@pytest.mark.parametrize("filed", [NEW, REGISTERED])
def test_an_expired_certificate_is_not_reused(certificate: Certificate, now: datetime, filed: KeyEntry) -> None:
    assert not certificate_fits(certificate, filed, 365, now + timedelta(days=200))
