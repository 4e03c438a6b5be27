"""The steps of a rotation: each function takes what is known before its step, and returns what is known after it.

The step that removes the old certificate from Entra is in `unregister`.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

from hsm_signer.config.keyfile import KeyEntry
from hsm_signer.crypto import Algorithm
from hsm_signer.device.manage.certificates import certificates_of_key, delete_certificate, replace_certificates
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.manage.keys import delete_key, read_key_names
from hsm_signer.entra.graph import demands_an_authority
from hsm_signer.errors import EntraError, KeyExists, KeyNotFound
from hsm_signer.rotation.context import RotationContext
from hsm_signer.rotation.observe import observe_device, require_own_id
from hsm_signer.rotation.plan import (
    Observed,
    Step,
    after,
    as_registered,
    complete_uri,
    next_key,
    next_label,
    retired_key,
)
from hsm_signer.rotation.read_only import how_to_delete
from hsm_signer.rotation.unregister import unregister
from hsm_signer.x509.issuance import create_certificate


def adopt(context: RotationContext, observed: Observed) -> Observed:
    """Start the key file with the current key, which was found with its certificate."""
    context.write(observed.file)  # before the report says so
    context.report(Step.ADOPT, f"{context.path} now names {observed.file.current.uri}.")
    return after(Step.ADOPT, observed)


def choose_name(context: RotationContext, observed: Observed) -> Observed:
    """Choose the next key's URI: the one that the caller names, or one with a new label and id."""
    current = observed.file.current.uri
    if context.request.next_key is not None:
        uri = complete_uri(context.request.next_key, current)
    else:
        label = context.keys.signer(current).key.info.label
        taken = frozenset(key.label for key in read_key_names(context.keys.device))
        label = next_label(label, taken, context.clock.utc_now().strftime("%Y%m%d"))
        uri = replace(current, object=label, id=secrets.token_bytes(4))
    observed = observe_device(context, after(Step.NAME, observed, KeyEntry(uri, registered=False)))
    context.report(Step.NAME, f"The next key is {uri.object or uri}.")
    return observed


def generate(context: RotationContext, observed: Observed) -> Observed:
    """Generate the next key on the device."""
    device, current = context.keys.device, observed.file.current
    uri, old = next_key(observed).uri, context.keys.signer(current.uri)
    if context.request.next_key is not None or uri.id is None or uri.object is None:
        raise KeyNotFound(
            f"{uri} is not on {device.info}.", hint="Check --next. List the keys with: hsm-signer key list"
        )
    # A current URI without label or id could also match the next key, so complete it first.
    label, key_id = old.key.info.label or None, old.key.info.id or None
    pinned = replace(current.uri, object=current.uri.object or label, id=current.uri.id or key_id)
    observed = replace(observed, file=replace(observed.file, current=replace(current, uri=pinned)))
    context.write(observed.file)
    bits = context.request.bits or old.public_key.bits
    spec = KeySpec(uri.object, uri.id, bits, always_authenticate=old.key.always_authenticate)
    try:
        generate_key(device, spec)
    except KeyExists:
        # An interrupted run left half of the key, or somebody else used the name.
        return choose_name(context, observed)
    context.report(Step.GENERATE, f"Generated on {device.info}: RSA, {bits} bits.")
    return after(Step.GENERATE, observed)


def certify(context: RotationContext, observed: Observed) -> Observed:
    """Create the next key's certificate, signed by that key, and store it on the device."""
    signer = context.keys.signer(next_key(observed).uri)
    require_own_id(context, signer.key.info, observed.file.current.uri)
    subject, days = context.next_subject(observed.file.current.uri), context.request.days
    der = create_certificate(signer, Algorithm.RS256, subject, days, context.clock.utc_now())
    replace_certificates(context.keys.device, signer.key.info, der)
    context.report(Step.CERTIFY, f"Certificate stored: {subject}, valid for {days} days.")
    return after(Step.CERTIFY, observed)


def register(context: RotationContext, observed: Observed) -> Observed:
    """Register the next key's certificate at Entra, proved by the current key."""
    key, current = next_key(observed), observed.file.current
    identity, prover = context.keys.identity(key.uri), context.keys.identity(current.uri)
    certificate = identity.certificates.certificate()
    context.credentials.authenticate(prover)
    listed = context.credentials.read_registration()
    # We store what Graph returns here: a later run may not have the permission to list.
    object_id = context.credentials.object_id(observed.file.object_id, listed)
    if listed is not None:
        current = as_registered(
            current, prover.certificates.certificate(), listed.find(prover.certificates.certificate())
        )
    key_id = None if listed is None else listed.find(certificate)
    if key_id is None:
        try:
            key_id = context.credentials.add(identity, object_id, prover)
        except EntraError as error:
            if not demands_an_authority(error):
                raise
            raise _requires_ca_certificate(context, observed, error) from None
    context.report(Step.REGISTER, f"Certificate registered with Entra, thumbprint {certificate.sha1.hex().upper()}.")
    file = replace(observed.file, current=current, object_id=object_id)
    return after(Step.REGISTER, replace(observed, file=file), as_registered(key, certificate, key_id))


def _requires_ca_certificate(context: RotationContext, observed: Observed, refusal: EntraError) -> EntraError:
    command, uri = context.profile.command_line, next_key(observed).uri
    subject = context.next_subject(observed.file.current.uri)
    request = ("certificate", "request", "--key", str(uri), "--subject", subject)
    return EntraError(
        refusal.message,
        hint="A policy of this tenant requires a certificate from a trusted CA. Make a certificate request for the "
        "next key, have the CA sign it, store the certificate on the device, and run rotate again:",
        commands=(
            command(*request, "--output-file", "next.csr"),
            command("certificate", "import", "--key", str(uri), "--replace", "next.pem"),
        ),
        error=refusal.error,
        correlation_id=refusal.correlation_id,
        trace_id=refusal.trace_id,
    )


def prove(context: RotationContext, observed: Observed) -> Observed:
    """Get a token with the next key."""
    context.credentials.wait_until_accepted(context.keys.identity(next_key(observed).uri))
    context.report(Step.PROVE, "Got a token with the next key.")
    return after(Step.PROVE, observed)


def switch(context: RotationContext, observed: Observed) -> Observed:
    """Make the next key the current one."""
    current, old_key_id = observed.file.current, context.request.old_key_id
    if old_key_id not in (None, current.key_id):
        # For the run that removes the credential, which may be a later one.
        current = replace(current, key_id=old_key_id, thumbprints={})
    done = after(Step.SWITCH, replace(observed, file=replace(observed.file, current=current)))
    context.write(done.file)  # before we report that it is written
    context.report(
        Step.SWITCH, f"{context.path} now names the next key. Programs that read this file use it from now on."
    )
    return observe_device(context, done)


def abandon(context: RotationContext, observed: Observed) -> Observed:
    """Give up the next key, which can no longer be used."""
    uri = next_key(observed).uri
    context.report(
        Step.ABANDON,
        f"{uri} is registered, but the key or its certificate is missing on the device. A new key replaces it.",
    )
    return after(Step.ABANDON, observed)


def cancel(context: RotationContext, observed: Observed) -> Observed:
    """Give up the next key because the caller says so."""
    uri = next_key(observed).uri
    done = after(Step.CANCEL, observed)
    context.write(done.file)  # before the report says so
    context.report(Step.CANCEL, f"Gave up the next key, {uri.object or uri}. The current key stays in use.")
    return observe_device(context, done)


def forget(context: RotationContext, observed: Observed) -> Observed:
    """Remove a retired key from the key file if it is the current key."""
    uri = retired_key(Step.FORGET, observed).uri
    context.report(Step.FORGET, f"{context.path} lists {uri} as retired, but it is the current key. It stays in use.")
    return after(Step.FORGET, observed)


def delete(context: RotationContext, observed: Observed) -> Observed:
    """Delete a retired key and its certificates from the device."""
    keys, uri = context.keys, retired_key(Step.DELETE, observed).uri
    # The key file may wrongly say that a key is not registered: delete no key before the current key has worked.
    context.credentials.authenticate(keys.identity(observed.file.current.uri))
    keys.forget(uri)
    with suppress(KeyNotFound):  # an interrupted run may have deleted it
        key = keys.signer(uri).key.info
        # The certificates first, because we find them by their key. Another key's certificate may have the same id.
        for certificate in certificates_of_key(keys.device, key):
            delete_certificate(keys.device, certificate.der)
        delete_key(keys.device, key)
    context.report(Step.DELETE, f"Deleted the key {uri.object or uri} from the device.")
    return after(Step.DELETE, observed)


def keep(context: RotationContext, observed: Observed) -> Observed:
    """Leave a retired key on the device."""
    uri = retired_key(Step.KEEP, observed).uri
    if uri in observed.keys:
        text = f"The key {uri.object or uri} stays on the device. {how_to_delete(context, uri)}"
    else:
        text = f"The key {uri.object or uri} was not found on the device."
    context.report(Step.KEEP, text)
    return after(Step.KEEP, observed)


ACTIONS: Mapping[Step, Callable[[RotationContext, Observed], Observed]] = MappingProxyType(
    {
        Step.ADOPT: adopt,
        Step.NAME: choose_name,
        Step.GENERATE: generate,
        Step.CERTIFY: certify,
        Step.REGISTER: register,
        Step.PROVE: prove,
        Step.SWITCH: switch,
        Step.ABANDON: abandon,
        Step.CANCEL: cancel,
        Step.FORGET: forget,
        Step.UNREGISTER: unregister,
        Step.DELETE: delete,
        Step.KEEP: keep,
    }
)
"""The function for each step. There is none for WAIT: the run ends there."""
