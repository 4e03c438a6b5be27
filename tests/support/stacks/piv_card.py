"""A PIV card like the one in a YubiKey: command APDUs in, response APDUs out.

NIST SP 800-73-4 part 2 for the commands, ISO/IEC 7816-4 for their form, and the extensions of yubico.com's PIV
documentation. Enough for two PKCS#11 libraries to find two keys, log in, sign, and have the card attest the keys that
it generated; nothing can be written to the card.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa

from .piv_attestation import VERSION, attest

ATR = bytes.fromhex("3bfd1300008131fe158073c021c057597562694b657940")
"""A YubiKey 5's answer to reset: libraries know the card by it."""

AUTHENTICATION, SIGNATURE = 0x9A, 0x9C
"""Key references (SP 800-73-4 part 1 table 4b). The PIN is wanted once for the first, each time for the second."""

ATTESTATION = 0xF9
"""Yubico's slot for the key that attests the others. It signs nothing else."""

TRIES = 3

PUK = "12345678"
"""The one that a YubiKey has from the factory."""

_AID = bytes.fromhex("a000000308000010000100")
_YUBICO = bytes.fromhex("a000000527")
_RSA_2048 = 0x07
# For PIN (never, once, always: 1 to 3) and touch (never: a required touch shows only while it is awaited).
_POLICIES = {AUTHENTICATION: b"\x02\x01", SIGNATURE: b"\x03\x01", ATTESTATION: b"\x01\x01"}
_PIN = 0x80

# SP 800-73-4 part 1 table 3.
_CARD_CAPABILITY, _CARD_HOLDER_ID, _DISCOVERY = bytes.fromhex("5fc107"), bytes.fromhex("5fc102"), b"\x7e"
_CERTIFICATE = {
    AUTHENTICATION: bytes.fromhex("5fc105"),
    SIGNATURE: bytes.fromhex("5fc10a"),
    ATTESTATION: bytes.fromhex("5fff01"),
}


@dataclass(frozen=True)
class PivKey:
    """The contents of one slot.

    Attributes:
        private_key: RSA of 2048 bits.
        certificate: DER; None for a key that was just generated.
        generated: whether the card generated the key, and so can attest it; False for an imported key.
    """

    private_key: rsa.RSAPrivateKey
    certificate: bytes | None
    generated: bool = True


class PivCard:
    """The card: a reader only uses `transmit` and `power_up`.

    Args:
        keys: by key reference, `AUTHENTICATION` or `SIGNATURE`; `ATTESTATION` is the key that attests those.
        pin: six to eight characters.
        serial: the number printed on it.
        touched: called before each signature that the PIN allows; if it returns False, there is no signature.

    Attributes:
        tries: how many PIN tries are left. Like the keys, it survives a power cycle.
        presented: how many PINs it received, right, wrong or after it was locked.
    """

    def __init__(
        self, keys: Mapping[int, PivKey], pin: str, serial: int, touched: Callable[[], bool] = lambda: True
    ) -> None:
        self._serial = serial.to_bytes(4, "big")
        self.change_keys(keys)
        self.change_pin(pin)
        self._touched = touched
        self.tries = TRIES
        self.presented = 0
        self.power_up()

    def power_up(self) -> None:
        """Clear the volatile state: the application, the login, a partial command, a partial answer."""
        self._selected = False
        self.forget_login()
        self._chain: tuple[tuple[int, int, int], bytes] | None = None
        self._rest = b""

    def change_pin(self, pin: str) -> None:
        """Change the PIN, as if its owner had changed it with another program."""
        self._pin = pin.encode().ljust(8, b"\xff")

    def change_keys(self, keys: Mapping[int, PivKey]) -> None:
        """Replace keys and certificates, as if its owner had changed them with another program."""
        self._keys = dict(keys)
        self._objects = _data_objects(self._keys, self._serial)

    def forget_login(self) -> None:
        """End the login, so that the PIN is required again."""
        self._verified = self._fresh = False

    def transmit(self, command: bytes) -> bytes:
        """Return the response to a command. Never raises: a card answers any input."""
        try:
            apdu = _parse(command)
            if apdu.instruction == 0xC0:  # GET RESPONSE
                return self._answer(self._rest, apdu.expected)
            whole = self._unchain(apdu)
            return self._answer(self._execute(whole) if whole else b"", apdu.expected)
        except _Refused as refused:
            self._chain, self._rest = None, b""
            return refused.status.to_bytes(2, "big")

    def _answer(self, response: bytes, expected: int) -> bytes:
        now, self._rest = response[:expected], response[expected:]
        return now + (bytes((0x61, min(len(self._rest), 256) & 0xFF)) if self._rest else b"\x90\x00")

    def _unchain(self, apdu: "_Apdu") -> "_Apdu | None":
        """Return the command with the data of the commands chained before it, or None before the last one."""
        header, data = (apdu.instruction, apdu.p1, apdu.p2), apdu.data
        if self._chain is not None:
            first, before = self._chain
            if first != header:
                raise _Refused(0x6883)  # last command of the chain expected
            data = before + data
        self._chain = (header, data) if apdu.chained else None
        return None if apdu.chained else _Apdu(*header, data, apdu.expected, chained=False)

    def _execute(self, apdu: "_Apdu") -> bytes:
        if apdu.instruction == 0xA4:
            return self._select(apdu.data)
        if not self._selected:
            raise _Refused(0x6D00)
        match apdu.instruction:
            case 0xCB:
                return self._get_data(apdu.data)
            case 0x20:
                return self._verify(apdu)
            case 0x2C:
                return self._reset_retry_counter(apdu)
            case 0x87:
                return self._authenticate(apdu)
            case 0xFD:
                return VERSION
            case 0xF8:
                return self._serial
            case 0xF7:
                return self._metadata(apdu.p2)
            case 0xF9:
                return self._attest(apdu.p1)
        raise _Refused(0x6D00)  # instruction not supported

    def _select(self, aid: bytes) -> bytes:
        piv = len(aid) >= 5 and _AID.startswith(aid)
        if not piv and not aid.startswith(_YUBICO):
            raise _Refused(0x6A82)
        # A YubiKey ends the login even if the same application is selected again: yubico-piv-tool relies on that.
        self.power_up()
        self._selected = piv
        authority = _tlv(0x79, _tlv(0x4F, _AID[:5]))
        return _tlv(0x61, _tlv(0x4F, _AID[5:]) + authority) if piv else VERSION

    def _get_data(self, data: bytes) -> bytes:
        tag = _untlv(data).get(0x5C)
        if tag is None:
            raise _Refused(0x6A80)
        if tag not in self._objects:
            raise _Refused(0x6A82)
        return self._objects[tag]

    def _verify(self, apdu: "_Apdu") -> bytes:
        if apdu.p2 != _PIN or apdu.p1 not in (0x00, 0xFF):
            raise _Refused(0x6A88)
        if not apdu.data:
            if apdu.p1 == 0xFF:
                self.forget_login()
            elif not self._verified:
                raise _Refused(0x63C0 | self.tries if self.tries else 0x6983)
            return b""
        self.presented += 1
        if not self.tries:
            raise _Refused(0x6983)
        if apdu.p1 == 0xFF or len(apdu.data) != len(self._pin):
            raise _Refused(0x6A80)
        if apdu.data != self._pin:
            self.forget_login()
            self.tries -= 1
            raise _Refused(0x63C0 | self.tries)
        self.tries = TRIES
        self._verified = self._fresh = True
        return b""

    def _reset_retry_counter(self, apdu: "_Apdu") -> bytes:
        """RESET RETRY COUNTER (SP 800-73-4 part 2 section 3.2.3): the PUK, then the new PIN."""
        if apdu.p2 != _PIN or len(apdu.data) != 16:
            raise _Refused(0x6A80)
        if apdu.data[:8] != PUK.encode():
            raise _Refused(0x63C2)
        self._pin, self.tries = apdu.data[8:], TRIES
        self.forget_login()
        return b""

    def _authenticate(self, apdu: "_Apdu") -> bytes:
        """GENERAL AUTHENTICATE (SP 800-73-4 part 2 section 3.2.4): the raw RSA operation on a block from the host."""
        key = self._keys.get(apdu.p2)
        if key is None or apdu.p1 != _RSA_2048 or apdu.p2 == ATTESTATION:
            raise _Refused(0x6A86)
        numbers = key.private_key.private_numbers()
        block = _untlv(_untlv(apdu.data).get(0x7C, b"")).get(0x81, b"")
        if len(block) != 256 or int.from_bytes(block, "big") >= numbers.public_numbers.n:
            raise _Refused(0x6A80)
        allowed = self._fresh if apdu.p2 == SIGNATURE else self._verified
        self._fresh = False
        if not allowed or not self._touched():
            raise _Refused(0x6982)
        return _tlv(0x7C, _tlv(0x82, _sign(numbers, block)))

    def _metadata(self, reference: int) -> bytes:
        if reference == _PIN:
            return _tlv(0x05, b"\x00") + _tlv(0x06, bytes((TRIES, self.tries)))
        key = self._keys.get(reference)
        if key is None:
            raise _Refused(0x6A88)
        numbers = key.private_key.public_key().public_numbers()
        return (
            _tlv(0x01, bytes((_RSA_2048,)))
            + _tlv(0x02, _POLICIES[reference])
            + _tlv(0x03, b"\x01" if key.generated else b"\x02")
            + _tlv(0x04, _tlv(0x81, numbers.n.to_bytes(256, "big")) + _tlv(0x82, numbers.e.to_bytes(3, "big")))
        )

    def _attest(self, reference: int) -> bytes:
        """ATTEST, an extension by Yubico. Requires no PIN."""
        key = self._keys.get(reference)
        if key is None or not key.generated:
            raise _Refused(0x6A80)
        attesting_key, public_key = self._keys[ATTESTATION].private_key, key.private_key.public_key()
        return attest(attesting_key, reference, public_key, self._serial, _POLICIES[reference])


class _Refused(Exception):
    """Ends a command with a status word (ISO/IEC 7816-4 section 5.6)."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04x}")
        self.status = status


@dataclass(frozen=True)
class _Apdu:
    instruction: int
    p1: int
    p2: int
    data: bytes
    expected: int
    chained: bool


def _parse(command: bytes) -> _Apdu:
    """Parse a command (ISO/IEC 7816-4 section 5.2). A command that expects no answer gets one anyway."""
    if len(command) < 4:
        raise _Refused(0x6700)
    kind, instruction, p1, p2 = command[:4]
    if kind & ~0x10:
        raise _Refused(0x6E00)
    body = command[4:]
    width = 1
    if len(body) > 1 and body[0] == 0:  # extended length
        body, width = body[1:], 2
    data = b""
    if len(body) > width:
        length = int.from_bytes(body[:width], "big")
        data, body = body[width : width + length], body[width + length :]
        if len(data) != length or not length:
            raise _Refused(0x6700)
    if len(body) not in (0, width):
        raise _Refused(0x6700)
    expected = int.from_bytes(body, "big") or 256**width
    return _Apdu(instruction, p1, p2, data, expected, chained=bool(kind & 0x10))


def _sign(numbers: rsa.RSAPrivateNumbers, block: bytes) -> bytes:
    """RSASP1 by the Chinese remainder theorem (RFC 8017 section 5.2.1)."""
    message = int.from_bytes(block, "big")
    s_1, s_2 = pow(message, numbers.dmp1, numbers.p), pow(message, numbers.dmq1, numbers.q)
    signature = s_2 + numbers.q * ((s_1 - s_2) * numbers.iqmp % numbers.p)
    return signature.to_bytes(256, "big")


def _data_objects(keys: Mapping[int, PivKey], serial: bytes) -> dict[bytes, bytes]:
    guid = hashlib.sha256(serial).digest()[:16]
    # FASC-N of an issuer outside the federal government, GUID, expiry (SP 800-73-4 part 1 section 3.1.2).
    fasc_n = bytes.fromhex("d4e739da739ced39ce739d836858210842108421c84210c3eb")
    holder = _tlv(0x30, fasc_n) + _tlv(0x34, guid) + _tlv(0x35, b"20991231") + _tlv(0x3E, b"") + _tlv(0xFE, b"")
    objects = {
        _CARD_HOLDER_ID: _tlv(0x53, holder),
        _CARD_CAPABILITY: _tlv(0x53, _tlv(0xF0, b"\xa0\x00\x00\x01\x16\xff\x02" + guid[:14]) + _tlv(0xFE, b"")),
        _DISCOVERY: _tlv(0x7E, _tlv(0x4F, _AID) + b"\x5f\x2f\x02\x40\x00"),  # only the card's own PIN
    }
    for reference, key in keys.items():
        if key.certificate is not None:
            certificate = _tlv(0x70, key.certificate) + _tlv(0x71, b"\x00") + _tlv(0xFE, b"")
            objects[_CERTIFICATE[reference]] = _tlv(0x53, certificate)
    return objects


def _tlv(tag: int, value: bytes) -> bytes:
    """BER-TLV with a tag of one byte."""
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + value


def _untlv(data: bytes) -> dict[int, bytes]:
    """Parse a sequence of BER-TLVs with tags of one byte; a truncated value is the sender's mistake."""
    values = {}
    while data:
        if len(data) < 2:
            raise _Refused(0x6A80)
        tag, length, at = data[0], data[1], 2
        if length & 0x80:
            at += length & 0x7F
            length = int.from_bytes(data[2:at], "big")
        values[tag], data = data[at : at + length], data[at + length :]
        if len(values[tag]) != length:
            raise _Refused(0x6A80)
    return values
