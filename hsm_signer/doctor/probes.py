"""The probes of the doctor: each takes the values of the probes that it needs, and measures one more thing.

A probe first takes all that it needs, so that it does nothing if one of those failed. If it takes more than a sentence
to say what a measurement means, a function in `verdicts` decides it.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from hsm_signer.credential.certificate_source import CertificateSource, certificates_of
from hsm_signer.credential.client import Client, resolve_client
from hsm_signer.credential.identity import Identity
from hsm_signer.credential.key_access import key_access
from hsm_signer.credential.unregistered import with_certificate
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.inventory.facts import mechanism_facts
from hsm_signer.device.locate import PresentDevice, find_device, load, read_library
from hsm_signer.device.mechanisms import plan_signing
from hsm_signer.device.module import Module
from hsm_signer.device.pin.sources import NO_LOGIN
from hsm_signer.device.pin.state import PinState
from hsm_signer.device.search import find_way
from hsm_signer.device.signer import DeviceSigner, open_signer
from hsm_signer.device.stack.pcscd import reader_library, require_pcscd
from hsm_signer.doctor.examination import Examination, Probe, T
from hsm_signer.doctor.verdicts import (
    Verdict,
    combined,
    judge_certificate,
    judge_clock,
    judge_metadata,
    judge_protection,
    metadata_url,
    ok,
    skipped,
    warning,
)
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.http_answer import HttpResponse, parse_http_date
from hsm_signer.entra.scopes import check_scopes
from hsm_signer.entra.token import request_token, token_form
from hsm_signer.errors import EntraError
from hsm_signer.jwt.compact import parse_jwt
from hsm_signer.system.secret import Secret
from hsm_signer.x509.requirements import require_length, require_usable

_Measure = Callable[[Examination], tuple[T, Verdict]]


def _probe(name: str, *, network: bool = False) -> Callable[[_Measure[T]], Probe[T]]:
    return lambda measure: Probe(name, measure, network)


@_probe("configuration")
def client(run: Examination) -> tuple[Client, Verdict]:
    """Resolve who the client is and where its tokens come from."""
    resolved = resolve_client(run.profile, "key")
    endpoint = resolved.endpoint
    tenant = f" of tenant {endpoint.tenant}" if endpoint.entra else ""
    server = endpoint.authority if endpoint.entra else endpoint.token_endpoint
    return resolved, ok(f"Client {resolved.client_id}{tenant} at {server}.")


@_probe("configuration")
def scope(run: Examination) -> tuple[str, Verdict]:
    """Check the scopes. The value is empty when none is set."""
    endpoint = run.value(client).endpoint
    return check_scopes(endpoint, run.profile.scope) if run.profile.scope else "", ok("")


@_probe("configuration")
def access(run: Examination) -> tuple[KeyAccess, Verdict]:
    """Resolve the URI of the first key, and where its PIN comes from."""
    keys = run.profile.key
    if not keys:
        run.value(client)  # it reports that there is none
    others = (
        f"The profile has {len(keys)} keys; only the first is checked. Choose another with --key."
        if len(keys) > 1
        else ""
    )
    return key_access(run.profile, keys[0], run.operator), ok(others)


@_probe("configuration")
def configuration(run: Examination) -> tuple[None, Verdict]:
    """Report on the parts of the configuration. They can fail separately: most probes need only one of them."""
    return None, combined([run.verdict(part) for part in (client, scope, access)])


@_probe("module")
def module(run: Examination) -> tuple[tuple[Module, KeyAccess], Verdict]:
    """Find and load the module. The value has the way to it in the URI."""
    key_options = find_way(run.value(access))
    loaded = load(key_options)
    library = read_library(loaded, key_options)
    return (loaded, key_options), ok(
        f"{loaded.path}: {library.description}, {library.version}, by {library.manufacturer}."
    )


@_probe("pcscd")
def pcscd(run: Examination) -> tuple[None, Verdict]:
    """Ask pcscd whether it serves this user, if the module uses smart-card readers."""
    loaded, key_options = run.value(module)
    library = reader_library()
    if library is None:
        return None, skipped("The module uses no smart-card readers.")
    socket = loaded.call(
        "checking pcscd", lambda: require_pcscd(library), key_options.timeout, key_options.operator.slow
    )
    return None, ok(f"pcscd answers at {socket} and accepts this user.")


@_probe("device")
def device(run: Examination) -> tuple[PresentDevice, Verdict]:
    """Find the device. Opens no session."""
    found = find_device(*run.value(module))
    return found, ok(f"{found.info}.")


@_probe("pin")
def pin(run: Examination) -> tuple[None, Verdict]:
    """Check what the device says about its PIN. Fails if a wrong PIN would lock it, unless that is allowed."""
    found = run.value(device)
    concern = found.require_pin_tries(allow_last_try=run.value(access).allow_last_try)
    if concern is not None:
        return None, warning(concern, "Make sure that the next PIN is correct: devices lock after a few wrong PINs.")
    match found.pin:
        case PinState.NOT_NEEDED:
            return None, ok("No PIN is needed.")
        case PinState.NOT_SET:
            return None, warning("No user PIN is set on the device.", "Set the user PIN with the device's own tool.")
    pad = " It is entered on the device's own PIN pad." if found.has_pin_pad else ""
    return None, ok(f"No wrong PIN since the last login.{pad}")


@_probe("login")
def login(run: Examination) -> tuple[Device, Verdict]:
    """Open a session and log in, once."""
    run.value(pin)
    _, key_options = run.value(module)
    if run.opened is not None and run.opened.serves(key_options):
        return run.opened, ok("The device is open.")
    # Without recovery: a session that is lost must not cost a second login.
    opened = run.resources.enter_context(open_device(key_options, recover=False))
    if run.value(device).pin is PinState.NOT_NEEDED:
        return opened, ok("Opened a session. No login is needed.")
    if opened.login_pin() is not None:
        return opened, ok(f"The PIN from {key_options.pin.description} was accepted.")
    if key_options.pin is NO_LOGIN:
        return opened, ok("Opened a session without a login, so private keys may be hidden.")
    return opened, ok("The PIN entered on the device's own PIN pad was accepted.")


@_probe("key")
def key(run: Examination) -> tuple[DeviceSigner, Verdict]:
    """Find the private key."""
    signer = open_signer(run.value(login), run.value(access).uri)
    require_length(signer.public_key, f"The key {signer.key.info}")
    return signer, ok(f"{signer.key.info}, RSA, {signer.public_key.bits} bits.")


@_probe("protection")
def protection(run: Examination) -> tuple[None, Verdict]:
    """Read how the device protects the key."""
    return None, judge_protection(run.value(key).protection())


@_probe("mechanisms")
def mechanisms(run: Examination) -> tuple[Algorithm, Verdict]:
    """Choose the algorithm, and check that the device has a mechanism for it."""
    signer = run.value(key)
    available = signer.key.mechanisms
    best = Algorithm.PS256 if Algorithm.PS256 in signer.algorithms else Algorithm.RS256
    algorithm = (run.value(client) if run.succeeded(client) else run.profile).algorithm or best
    plan_signing(algorithm, available)
    plans = {each.algorithm: f"with {each.name}, {each.work}" for each in mechanism_facts(available) if each.chosen}
    return algorithm, ok("; ".join(f"{each} {plans.get(each, 'is not offered')}" for each in Algorithm) + ".")


@_probe("certificate")
def certificate(run: Examination) -> tuple[CertificateSource, Verdict]:
    """Read the certificate, and check that Entra can accept it for this key now."""
    signer = run.value(key)
    source = certificates_of(run.profile, run.value(login), signer)
    leaf = source.certificate()
    now = datetime.fromtimestamp(run.now(), UTC)
    require_usable(leaf, signer.public_key, now)
    return source, judge_certificate(leaf, now)


@_probe("signature")
def assertion(run: Examination) -> tuple[Secret, Verdict]:
    """Have the device sign an assertion, which the token probe then exchanges."""
    signer, who = run.value(key), run.value(client)
    started = time.monotonic()
    identity = Identity(who, signer, run.value(certificate), now=run.now)
    signed = Secret(identity.assertion(who.endpoint.audience, run.profile.lifetime))
    return signed, _signed(parse_jwt(signed.reveal()).header["alg"], started)


@_probe("signature")
def signature(run: Examination) -> tuple[None, Verdict]:
    """Have the device sign once: an assertion, or if that is not possible, a test message."""
    signer, algorithm = run.value(key), run.value(mechanisms)
    if run.succeeded(client, certificate):
        return None, run.verdict(assertion)
    started = time.monotonic()
    signer.sign(algorithm, b"hsm-signer doctor")
    return None, _signed(algorithm, started)


def _signed(algorithm: str, started: float) -> Verdict:
    return ok(f"{algorithm}, verified with the public key, in {time.monotonic() - started:.2f} s.")


@_probe("openid", network=True)
def answer(run: Examination) -> tuple[tuple[HttpResponse, float], Verdict]:
    """Send a request that contains nothing about us. Returns the answer and when it arrived, in epoch seconds."""
    who = run.value(client)
    response = _http(run).get(metadata_url(who.endpoint) or who.endpoint.token_endpoint)
    return (response, run.now()), ok("")


@_probe("clock", network=True)
def clock(run: Examination) -> tuple[None, Verdict]:
    """Compare this machine's clock with the server's."""
    run.value(client)
    if not run.succeeded(answer):
        return None, skipped("The server did not answer, so there is no date to compare with.")
    response, received = run.value(answer)
    date = parse_http_date(response.headers.get("date", ""))
    return None, judge_clock(None if date is None else received - date)


@_probe("openid", network=True)
def openid(run: Examination) -> tuple[None, Verdict]:
    """Check that the server names the token endpoint that we use."""
    if not run.succeeded(answer):
        return None, run.verdict(answer)
    response, _ = run.value(answer)
    endpoint = run.value(client).endpoint
    if metadata_url(endpoint) is None:
        return None, skipped("A custom token endpoint need not have an OpenID configuration. The server answered.")
    return None, judge_metadata(response.status, response.body, endpoint)


@_probe("token", network=True)
def token(run: Examination) -> tuple[None, Verdict]:
    """Exchange the assertion for a token, which is discarded."""
    wanted = run.value(scope)
    run.value(certificate)
    run.value(signature)
    run.value(clock)
    run.value(answer)  # not `openid`: a strange OpenID configuration does not stop the exchange
    if not wanted:
        return None, skipped(
            "No scope is set, so no token was requested.",
            "Set one with --scope, for example https://graph.microsoft.com/.default.",
        )
    who = run.value(client)
    form = token_form(client_id=who.client_id, scope=wanted, assertion=run.value(assertion))
    try:
        obtained = request_token(who.endpoint, form, _http(run), now=run.now)
    except EntraError as error:
        used = run.value(certificate).certificate()
        raise with_certificate(error, used, run.profile, run.value(access).uri) from None
    minutes = obtained.expires_in // 60
    return None, ok(f"Obtained for {obtained.scope}, valid for {minutes} minutes, and discarded.")


def _http(run: Examination) -> HttpClient:
    return HttpClient(timeout=run.profile.network_timeout, ca_bundle=run.profile.ca_bundle, slow=run.operator.slow)


PROBES = (
    configuration,
    module,
    pcscd,
    device,
    pin,
    login,
    key,
    protection,
    mechanisms,
    certificate,
    signature,
    clock,
    openid,
    token,
)
"""All probes, in the order in which they run and are reported."""
