"""Everything between a configuration and an access token, examined one thing after the other.

    for finding in examine(profile):
        print(finding.name, finding.status, finding.detail)

A probe that fails stops only those that need what it would have given. There is one login, also where the session is
lost, and one signature: the assertion that the device signs is the one that is then exchanged, so that a key that wants
a touch wants it once.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from hsm_signer.config.profile import Profile
from hsm_signer.credential.operator import NOBODY, Operator, certificates_of, key_access, make_identity
from hsm_signer.credential.tokens import Tokens
from hsm_signer.crypto import MINIMUM_BITS, Algorithm
from hsm_signer.device.pin.sources import NO_LOGIN
from hsm_signer.doctor.verdicts import (
    Status,
    Verdict,
    failed,
    judge_certificate,
    judge_clock,
    judge_metadata,
    judge_protection,
    metadata_url,
    ok,
    skipped,
    warning,
)
from hsm_signer.entra.authority import Endpoint, check_scopes
from hsm_signer.errors import EntraError, HsmSignerError, KeyUnfit
from hsm_signer.jwt.assertion import parse_jwt
from hsm_signer.system.secret import Secret
from hsm_signer.x509.certificate import Certificate, require_usable

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess
    from hsm_signer.device.condition import Condition
    from hsm_signer.device.device import Device
    from hsm_signer.device.module import Module
    from hsm_signer.device.signer import DeviceSigner
    from hsm_signer.entra.http import HttpClient
    from hsm_signer.entra.http_answer import HttpResponse


@dataclass(frozen=True)
class Finding:
    """What one probe found.

    Attributes:
        name: of the probe, one word in lower case.
        status: what became of it.
        detail: what was found, or why nobody looked; sentences, without a PIN, token or assertion.
        fix: what to do about it, or None.
    """

    name: str
    status: Status
    detail: str
    fix: str | None = None


def examine(
    profile: Profile,
    operator: Operator = NOBODY,
    *,
    offline: bool = False,
    now: Callable[[], float] = time.time,
) -> Generator[Finding, None, None]:
    """Examine the first key of a profile and all that belongs to it. Each finding comes when its probe is done.

    Raises nothing but what interrupts the program. Who stops before the end closes the iterator, to let go of the
    device.

    Args:
        operator: who can be asked for the PIN, and told to touch the device.
        offline: leave out what needs the network.
        now: the clock, epoch seconds.
    """
    examination = _Examination(profile, operator, offline, now)
    try:
        yield from examination.findings()
    finally:
        examination.close()


class _Examination:
    """One run: the facts that its probes find, and the one device and the one HTTP client that they share."""

    # Each is there once the probe that gives it has succeeded; see _PROBES.
    access: "KeyAccess"
    endpoint: Endpoint
    scope: str
    module: "Module"
    condition: "Condition"
    login_allowed: bool
    device: "Device"
    signer: "DeviceSigner"
    algorithm: Algorithm
    certificates: Callable[[], tuple[Certificate, ...]]
    certificate: Certificate
    assertion: Secret
    clock_does: bool
    server_answers: bool

    def __init__(self, profile: Profile, operator: Operator, offline: bool, now: Callable[[], float]) -> None:
        self.profile = profile
        self.operator = operator
        self.offline = offline
        self.now = now

    def findings(self) -> Iterator[Finding]:
        """Run the probes in their order."""
        blame: dict[str, str] = {}  # for a fact that is not there, the probe that failed first
        for probe in _PROBES:
            culprit = next((blame[need] for need in probe.needs if need in blame), None)
            if self.offline and probe.network:
                verdict = skipped("The network is left out, as --offline asks.")
            elif culprit is not None:
                verdict = skipped(f"Not examined, because {culprit} failed.")
            else:
                verdict = self._run(probe)
            for fact in probe.gives:
                if not hasattr(self, fact):
                    blame[fact] = culprit or probe.name
            yield Finding(probe.name, verdict.status, verdict.detail, verdict.fix)

    def _run(self, probe: "_Probe") -> Verdict:
        try:
            return probe.examine(self)
        except EntraError as error:
            return failed(f"{error.message} Correlation id: {error.correlation_id}.", error.hint)
        except HsmSignerError as error:
            return failed(error.message, error.hint)
        except Exception as error:
            # Its text may hold a secret.
            return failed(f"An error that was not foreseen: {type(error).__name__}.", "Please report this bug.")

    def close(self) -> None:
        """Let go of the device."""
        if hasattr(self, "device"):
            self.device.close()

    def examine_configuration(self) -> Verdict:
        problems: dict[str, str | None] = {}
        for part in (self._read_exchange, self._read_key):
            try:
                part()
            except HsmSignerError as error:
                problems[error.message] = error.hint
        if problems:
            return failed(" ".join(problems), " ".join(filter(None, problems.values())) or None)
        count = len(self.profile.key)
        others = f"; of {count} keys only the first is examined, and --key names another" if count > 1 else ""
        tenant = f" of tenant {self.endpoint.tenant}" if self.endpoint.entra else ""
        server = self.endpoint.authority if self.endpoint.entra else self.endpoint.token_endpoint
        return ok(f"Client {self.profile.client_id}{tenant} at {server}{others}.")

    def _read_exchange(self) -> None:
        tokens = Tokens(self.profile)
        self.profile, self.endpoint = tokens.profile, tokens.endpoint
        self.scope = check_scopes(self.endpoint, self.profile.scope) if self.profile.scope else ""

    def _read_key(self) -> None:
        if self.profile.key:  # its lack is the other part's to tell
            self.access = key_access(self.profile, self.profile.key[0], self.operator)

    def examine_module(self) -> Verdict:
        from hsm_signer.device.condition import load

        self.module, library = load(self.access)
        return ok(f"{self.module.path}: {library.description}, {library.version}, by {library.manufacturer}.")

    def examine_pcscd(self) -> Verdict:
        from hsm_signer.device.pcscd import reader_library, require_pcscd

        library = reader_library()
        if library is None:
            return skipped("The module uses no smart-card readers.")
        socket = self.module.call("asking pcscd", lambda: require_pcscd(library), self.access.timeout, self.access.slow)
        return ok(f"It answers at {socket}, and lets this user in.")

    def examine_device(self) -> Verdict:
        from hsm_signer.device.condition import look

        self.condition = look(self.module, self.access)
        return ok(f"{self.condition.info}.")

    def examine_pin(self) -> Verdict:
        from hsm_signer.device.pin.state import PinState

        concern = self.condition.require_pin_tries(allow_last_try=self.access.allow_last_try)
        self.login_allowed = True
        if concern is not None:
            return warning(concern, "Be sure of the next PIN: devices lock after a few wrong ones.")
        match self.condition.pin:
            case PinState.NOT_NEEDED:
                return ok("None is needed.")
            case PinState.NOT_SET:
                return warning("The device says that none is set.", "Set the user PIN with the device's own tool.")
        pad = " It is entered on the device's own pad." if self.condition.pad else ""
        return ok(f"The device tells of no wrong one since the last login.{pad}")

    def examine_login(self) -> Verdict:
        from hsm_signer.device.device import open_device
        from hsm_signer.device.pin.state import PinState

        self.device = open_device(self.access, recover=False)
        if self.condition.pin is PinState.NOT_NEEDED:
            return ok("A session was opened; no login is needed.")
        if self.device.login_pin() is not None:
            return ok(f"The PIN from {self.access.pin.description} was accepted.")
        if self.access.pin is NO_LOGIN:
            return ok("A session was opened without a login, so private keys may be hidden.")
        return ok("The PIN entered on the device's own pad was accepted.")

    def examine_key(self) -> Verdict:
        signer = self.device.signer()
        if signer.public_key.bits < MINIMUM_BITS:
            raise KeyUnfit(
                f"The key {signer.key.info} has {signer.public_key.bits} bits.",
                hint=f"Entra wants {MINIMUM_BITS} bits or more: make a new key.",
            )
        self.signer = signer
        return ok(f"{signer.key.info}, RSA, {signer.public_key.bits} bits.")

    def examine_protection(self) -> Verdict:
        return judge_protection(self.signer.protection())

    def examine_mechanisms(self) -> Verdict:
        from hsm_signer.device.inventory.facts import mechanism_facts
        from hsm_signer.device.mechanisms import plan

        available = self.signer.key.mechanisms
        best = Algorithm.PS256 if Algorithm.PS256 in self.signer.algorithms else Algorithm.RS256
        wanted = self.profile.algorithm or best
        plan(wanted, available)
        self.algorithm = wanted
        plans = {each.algorithm: f"by {each.name}, {each.work}" for each in mechanism_facts(available) if each.chosen}
        return ok("; ".join(f"{each} {plans.get(each, 'is not offered')}" for each in Algorithm) + ".")

    def examine_certificate(self) -> Verdict:
        self.certificates = certificates_of(self.profile, self.device, self.signer)
        certificate = self.certificates()[0]
        now = datetime.fromtimestamp(self.now(), UTC)
        require_usable(certificate, self.signer.public_key, now)
        self.certificate = certificate
        return judge_certificate(certificate, now)

    def examine_signature(self) -> Verdict:
        started = time.monotonic()
        algorithm: str = self.algorithm
        if hasattr(self, "endpoint") and hasattr(self, "certificate"):
            identity = make_identity(self.profile, self.signer, self.certificates, now=self.now)
            self.assertion = Secret(identity.assertion(self.endpoint.audience, self.profile.lifetime))
            algorithm = parse_jwt(self.assertion.reveal()).header["alg"]
        else:
            # Nobody would accept an assertion; the device can show all the same that it signs.
            self.signer.sign(self.algorithm, b"hsm-signer doctor")
        seconds = time.monotonic() - started
        return ok(f"{algorithm}, verified with the public key, in {seconds:.2f} s.")

    def examine_clock(self) -> Verdict:
        from hsm_signer.entra.http_answer import parse_http_date

        answer, received = self._answer
        if isinstance(answer, HsmSignerError):
            verdict = skipped("No answer came whose date it could be compared with.")
        else:
            date = parse_http_date(answer.headers.get("date", ""))
            verdict = judge_clock(None if date is None else received - date)
        if verdict.status is not Status.FAILED:
            self.clock_does = True
        return verdict

    def examine_openid(self) -> Verdict:
        answer, _ = self._answer
        if isinstance(answer, HsmSignerError):
            raise answer
        self.server_answers = True
        if metadata_url(self.endpoint) is None:
            return skipped("A custom token endpoint need not have an OpenID configuration. It does answer.")
        return judge_metadata(answer.status, answer.body, self.endpoint)

    def examine_token(self) -> Verdict:
        from hsm_signer.entra.token import request_token, token_form

        if not self.scope:
            return skipped(
                "No scope was given, so there is nothing to ask a token for.",
                "Give one with --scope, for example https://graph.microsoft.com/.default.",
            )
        form = token_form(client_id=self.profile.client_id or "", scope=self.scope, assertion=self.assertion)
        token = request_token(self.endpoint, form, self._http, now=self.now)
        return ok(f"Obtained for {token.scope}, good for {token.expires_in // 60} minutes, and not kept.")

    @cached_property
    def _http(self) -> "HttpClient":
        from hsm_signer.entra.http import HttpClient

        return HttpClient(timeout=self.profile.network_timeout, ca_bundle=self.profile.ca_bundle)

    @cached_property
    def _answer(self) -> "tuple[HttpResponse | HsmSignerError, float]":
        """What the server says to a request that says nothing of us, and when it said so."""
        try:
            answer: HttpResponse | HsmSignerError = self._http.get(
                metadata_url(self.endpoint) or self.endpoint.token_endpoint
            )
        except HsmSignerError as error:
            answer = error
        return answer, self.now()


@dataclass(frozen=True)
class _Probe:
    """One thing to examine.

    Attributes:
        examine: returns the verdict; an error of ours that it raises is one, too.
        needs: the facts without which it is not run.
        gives: the facts that are there afterwards, unless it failed.
        network: whether it needs the network.
    """

    name: str
    examine: Callable[[_Examination], Verdict]
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    network: bool = False


_PROBES = (
    _Probe("configuration", _Examination.examine_configuration, gives=("access", "endpoint", "scope")),
    _Probe("module", _Examination.examine_module, needs=("access",), gives=("module",)),
    _Probe("pcscd", _Examination.examine_pcscd, needs=("module",)),
    _Probe("device", _Examination.examine_device, needs=("module",), gives=("condition",)),
    _Probe("pin", _Examination.examine_pin, needs=("condition",), gives=("login_allowed",)),
    _Probe("login", _Examination.examine_login, needs=("login_allowed",), gives=("device",)),
    _Probe("key", _Examination.examine_key, needs=("device",), gives=("signer",)),
    _Probe("protection", _Examination.examine_protection, needs=("signer",)),
    _Probe("mechanisms", _Examination.examine_mechanisms, needs=("signer",), gives=("algorithm",)),
    _Probe("certificate", _Examination.examine_certificate, needs=("signer",), gives=("certificate",)),
    _Probe("signature", _Examination.examine_signature, needs=("algorithm",), gives=("assertion",)),
    _Probe("clock", _Examination.examine_clock, needs=("endpoint",), gives=("clock_does",), network=True),
    _Probe("openid", _Examination.examine_openid, needs=("endpoint",), gives=("server_answers",), network=True),
    _Probe(
        "token",
        _Examination.examine_token,
        needs=("scope", "certificate", "assertion", "clock_does", "server_answers"),
        network=True,
    ),
)
