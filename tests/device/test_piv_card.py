"""The virtual card by itself: it answers like a YubiKey."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stacks.piv_attestation import FIRMWARE, FORM_FACTOR, POLICIES, SERIAL, make_attesting_key
from tests.support.stacks.piv_card import ATTESTATION, AUTHENTICATION, SIGNATURE, PivCard, PivKey

PIN = "123456"
OWN_KEYS = {
    reference: PivKey(rsa.generate_private_key(public_exponent=65537, key_size=2048), name * 200)
    for reference, name in ((AUTHENTICATION, b"9a"), (SIGNATURE, b"9c"))
}
KEYS = {**OWN_KEYS, ATTESTATION: PivKey(*make_attesting_key(), generated=False)}
MESSAGE = b"header.claims"

SELECT = bytes.fromhex("00a4040005a00000030800")
RIGHT, WRONG = PIN.encode() + b"\xff\xff", b"654321\xff\xff"


def make_card(touched: Callable[[], bool] = lambda: True) -> PivCard:
    card = PivCard(KEYS, PIN, 12345678, touched)
    assert status(card.transmit(SELECT)) == 0x9000
    return card


def status(response: bytes) -> int:
    return int.from_bytes(response[-2:], "big")


def verify(card: PivCard, pin: bytes = b"") -> int:
    return status(card.transmit(bytes((0x00, 0x20, 0x00, 0x80, len(pin))) + pin if pin else b"\x00\x20\x00\x80"))


def sign(card: PivCard, reference: int = AUTHENTICATION) -> bytes:
    """Return the response to GENERAL AUTHENTICATE over the block for MESSAGE, in one command of extended length."""
    info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(MESSAGE).digest()
    block = b"\x00\x01" + b"\xff" * (256 - len(info) - 3) + b"\x00" + info
    template = bytes.fromhex("7c82010682008182") + (256).to_bytes(2, "big") + block
    header = bytes((0x00, 0x87, 0x07, reference, 0x00)) + len(template).to_bytes(2, "big")
    return card.transmit(header + template + b"\x00\x00")


def get_data(card: PivCard, tag: str) -> bytes:
    """Return a data object."""
    name = bytes.fromhex(tag)
    response = card.transmit(bytes((0x00, 0xCB, 0x3F, 0xFF, len(name) + 2, 0x5C, len(name))) + name + b"\x00")
    return whole(card, response)


def whole(card: PivCard, response: bytes) -> bytes:
    """Return an answer, put together from as many pieces as the card gives it in."""
    data = response[:-2]
    while response[-2] == 0x61:
        response = card.transmit(bytes((0x00, 0xC0, 0x00, 0x00, response[-1])))
        data += response[:-2]
    assert status(response) == 0x9000
    return data


def attest(card: PivCard, reference: int) -> x509.Certificate:
    return x509.load_der_x509_certificate(whole(card, card.transmit(bytes((0x00, 0xF9, reference, 0x00, 0x00)))))


class TestApplication:
    def test_select_returns_the_name_of_the_application(self) -> None:
        response = make_card().transmit(SELECT)
        assert bytes.fromhex("4f06000010000100") in response
        assert status(response) == 0x9000

    def test_an_unknown_application_is_not_found(self) -> None:
        assert status(make_card().transmit(bytes.fromhex("00a4040005a000000001"))) == 0x6A82

    def test_nothing_works_before_select(self) -> None:
        card = PivCard(KEYS, PIN, 12345678)
        assert verify(card, RIGHT) == 0x6D00
        assert card.presented == 0

    @pytest.mark.parametrize(
        ("instruction", "answer"), [("fd", "050403"), ("f8", f"{12345678:08x}")], ids=["version", "serial"]
    )
    def test_yubico_commands_are_answered(self, instruction: str, answer: str) -> None:
        assert make_card().transmit(bytes.fromhex(f"00{instruction}000000")) == bytes.fromhex(answer + "9000")

    @pytest.mark.parametrize(("reference", "policy"), [(AUTHENTICATION, 2), (SIGNATURE, 3)])
    def test_metadata_show_the_pin_policy_of_a_key(self, reference: int, policy: int) -> None:
        card = make_card()
        assert bytes((0x02, 0x02, policy)) in card.transmit(bytes((0x00, 0xF7, 0x00, reference, 0x00)))

    def test_metadata_show_the_remaining_tries(self) -> None:
        card = make_card()
        verify(card, WRONG)
        assert card.transmit(bytes.fromhex("00f7008000")) == bytes.fromhex("050100060203029000")


class TestData:
    @pytest.mark.parametrize(("reference", "tag"), [(AUTHENTICATION, "5fc105"), (SIGNATURE, "5fc10a")])
    def test_a_long_object_is_returned_in_pieces(self, reference: int, tag: str) -> None:
        certificate = KEYS[reference].certificate
        assert certificate is not None
        assert get_data(make_card(), tag)[8 : 8 + len(certificate)] == certificate

    def test_an_unknown_object_is_not_found(self) -> None:
        assert status(make_card().transmit(bytes.fromhex("00cb3fff055c035fc10100"))) == 0x6A82


class TestAttestation:
    def test_the_attestation_key_signs_a_certificate_for_a_key_that_the_card_generated(self) -> None:
        card = make_card()
        attesting = x509.load_der_x509_certificate(get_data(card, "5fff01")[8:-5])
        attested = attest(card, AUTHENTICATION)
        attested.verify_directly_issued_by(attesting)
        assert attested.public_key() == KEYS[AUTHENTICATION].private_key.public_key()
        assert attested.subject.rfc4514_string() == "CN=YubiKey PIV Attestation 9a"
        assert attested.issuer.rfc4514_string() == "CN=Yubico PIV Attestation"

    @pytest.mark.parametrize(("reference", "policies"), [(AUTHENTICATION, "0201"), (SIGNATURE, "0301")])
    def test_an_attestation_describes_the_yubikey_and_the_key(self, reference: int, policies: str) -> None:
        extensions = attest(make_card(), reference).extensions
        told = {each.oid.dotted_string: each.value.public_bytes().hex() for each in extensions}
        serial = f"0204{12345678:08x}"
        assert told == {FIRMWARE: "050403", SERIAL: serial, POLICIES: policies, FORM_FACTOR: "01"}

    def test_each_attestation_is_a_different_certificate(self) -> None:
        card = make_card()
        assert attest(card, AUTHENTICATION).serial_number != attest(card, AUTHENTICATION).serial_number

    @pytest.mark.parametrize("reference", [AUTHENTICATION, ATTESTATION, 0x82])
    def test_an_imported_key_or_an_empty_slot_has_no_attestation(self, reference: int) -> None:
        card = make_card()
        card.change_keys({**KEYS, AUTHENTICATION: replace(KEYS[AUTHENTICATION], generated=False)})
        assert status(card.transmit(bytes((0x00, 0xF9, reference, 0x00, 0x00)))) == 0x6A80

    @pytest.mark.parametrize(("generated", "origin"), [(True, 1), (False, 2)])
    def test_metadata_show_where_a_key_was_generated(self, generated: bool, origin: int) -> None:
        card = make_card()
        card.change_keys({**KEYS, AUTHENTICATION: replace(KEYS[AUTHENTICATION], generated=generated)})
        assert bytes((0x03, 0x01, origin)) in card.transmit(bytes((0x00, 0xF7, 0x00, AUTHENTICATION, 0x00)))

    def test_the_attestation_key_signs_nothing_else(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        assert status(sign(card, ATTESTATION)) == 0x6A86


class TestPin:
    def test_after_three_wrong_pins_the_right_one_is_refused_too(self) -> None:
        card = make_card()
        assert [verify(card, WRONG) for _ in range(3)] == [0x63C2, 0x63C1, 0x63C0]
        assert verify(card, RIGHT) == 0x6983
        assert card.presented == 4

    def test_after_a_change_the_old_pin_is_wrong(self) -> None:
        card = make_card()
        card.change_pin("654321")
        assert (verify(card, RIGHT), verify(card, WRONG)) == (0x63C2, 0x9000)

    def test_the_right_pin_restores_all_tries(self) -> None:
        card = make_card()
        verify(card, WRONG)
        assert verify(card, RIGHT) == 0x9000
        assert card.tries == 3

    def test_asking_for_the_remaining_tries_costs_none(self) -> None:
        card = make_card()
        assert verify(card) == 0x63C3
        verify(card, RIGHT)
        assert verify(card) == 0x9000
        assert (card.tries, card.presented) == (3, 1)

    def test_a_pin_without_padding_costs_no_try(self) -> None:
        card = make_card()
        assert verify(card, PIN.encode()) == 0x6A80
        assert card.tries == 3

    def test_a_power_cycle_keeps_the_count_of_wrong_pins_and_ends_the_login(self) -> None:
        card = make_card()
        verify(card, WRONG)
        card.power_up()
        card.transmit(SELECT)
        assert verify(card) == 0x63C2
        verify(card, RIGHT)
        card.power_up()
        card.transmit(SELECT)
        assert verify(card) == 0x63C3

    def test_selecting_the_application_again_ends_the_login(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        card.transmit(SELECT)
        assert verify(card) == 0x63C3

    def test_a_wrong_pin_ends_the_login(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        verify(card, WRONG)
        assert status(sign(card)) == 0x6982


class TestSignature:
    def require_valid(self, response: bytes, reference: int) -> None:
        assert status(response) == 0x9000
        public_key = KEYS[reference].private_key.public_key()
        public_key.verify(response[-258:-2], MESSAGE, padding.PKCS1v15(), hashes.SHA256())

    def test_9a_signs_any_number_of_times_after_one_pin(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        for _ in range(3):
            self.require_valid(sign(card), AUTHENTICATION)

    @pytest.mark.parametrize("reference", [AUTHENTICATION, SIGNATURE])
    def test_no_key_signs_without_the_pin(self, reference: int) -> None:
        assert status(sign(make_card(), reference)) == 0x6982

    def test_9c_refuses_a_second_signature_without_the_pin(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        self.require_valid(sign(card, SIGNATURE), SIGNATURE)
        assert status(sign(card, SIGNATURE)) == 0x6982
        verify(card, RIGHT)
        self.require_valid(sign(card, SIGNATURE), SIGNATURE)

    def test_9c_requires_the_pin_after_a_signature_of_9a(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        sign(card)
        assert status(sign(card, SIGNATURE)) == 0x6982

    def test_a_chain_of_commands_signs_like_one_long_command(self) -> None:
        card = make_card()
        verify(card, RIGHT)
        template = bytes.fromhex("7c820106820081820100") + b"\x00" * 255 + b"\x02"
        first = card.transmit(bytes.fromhex("1087079aff") + template[:255])
        last = card.transmit(bytes((0x00, 0x87, 0x07, 0x9A, len(template) - 255)) + template[255:] + b"\x00")
        rest = card.transmit(bytes((0x00, 0xC0, 0x00, 0x00, last[-1])))
        numbers = KEYS[AUTHENTICATION].private_key.public_key().public_numbers()
        signature = (last[:-2] + rest[:-2])[-256:]
        assert status(first) == 0x9000
        assert last[-2] == 0x61
        assert pow(int.from_bytes(signature, "big"), numbers.e, numbers.n) == 2

    def test_a_missed_touch_gives_no_signature(self) -> None:
        card = make_card(touched=lambda: False)
        verify(card, RIGHT)
        assert sign(card) == bytes.fromhex("6982")

    def test_no_touch_is_requested_before_the_pin_is_right(self) -> None:
        asked = []

        def touched() -> bool:
            asked.append(True)
            return True

        card = make_card(touched)
        sign(card)
        assert not asked
        verify(card, RIGHT)
        sign(card)
        assert len(asked) == 1


@given(st.lists(st.binary(max_size=300) | st.binary(max_size=40).map(lambda rest: b"\x00" + rest), max_size=5))
def test_it_answers_any_command(commands: list[bytes]) -> None:
    card = make_card()
    for command in commands:
        assert len(card.transmit(command)) >= 2


@given(st.sampled_from([0x20, 0x87, 0xCB, 0xF7, 0xF9, 0xA4, 0xC0]), st.binary(min_size=2, max_size=40))
def test_it_answers_its_own_commands_with_any_data(instruction: int, rest: bytes) -> None:
    assert len(make_card().transmit(bytes((0x00, instruction)) + rest)) >= 2
