"""Remove the old key's certificate from Entra, and never the current key's. One step of a rotation."""

from dataclasses import replace

from hsm_signer.config.keyfile import KeyEntry
from hsm_signer.credential.identity import Identity
from hsm_signer.entra.graph import Registration
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.compact import thumbprints
from hsm_signer.rotation.context import RotationContext
from hsm_signer.rotation.observe import observe_device
from hsm_signer.rotation.plan import Observed, Step, after, as_registered, retired_key
from hsm_signer.x509.certificate import Certificate


def unregister(context: RotationContext, observed: Observed) -> Observed:
    """Remove a retired key's certificate from Entra, proved by the current key."""
    old, prover = retired_key(Step.UNREGISTER, observed), context.keys.identity(observed.file.current.uri)
    context.credentials.authenticate(prover)
    listed = context.credentials.read_registration()
    if listed is None:
        _remove_unlisted(context, observed, old, prover)
    elif key_id := _listed_credential(context, old, listed, prover.certificates.certificate()):
        object_id = context.credentials.object_id(observed.file.object_id, listed)
        context.credentials.remove(key_id, object_id, prover, lambda: context.keys.retired_identity(old.uri))
    context.report(Step.UNREGISTER, f"The certificate of {old.uri.object or old.uri} is not registered any more.")
    return observe_device(context, after(Step.UNREGISTER, observed))


def _listed_credential(context: RotationContext, old: KeyEntry, listed: Registration, kept: Certificate) -> str | None:
    """Return the ID of a retired key's credential. Never return the current key's, even if the key file names it."""
    certificate = context.keys.retired_certificate(old.uri)
    key_id = (listed.find(certificate) if certificate else None) or context.request.old_key_id or old.key_id
    return key_id if key_id in listed.key_ids - {listed.find(kept)} else None


def _remove_unlisted(context: RotationContext, observed: Observed, old: KeyEntry, prover: Identity) -> None:
    """Remove a retired key's credential when Graph does not list which credential belongs to which key."""
    current, kept = observed.file.current, prover.certificates.certificate()
    certificate, identity = context.keys.retired_certificate(old.uri), context.keys.retired_identity(old.uri)
    key_id = context.request.old_key_id or old.key_id
    # The file may be written by hand. The ID is certain only if this program wrote the thumbprints with it.
    noted = old.thumbprints if key_id == old.key_id else {}
    certain = bool(noted) and (certificate is None or noted == thumbprints(certificate))
    if key_id is None and identity is not None and not context.credentials.is_accepted(identity):
        return  # as after a rotation that was cancelled before it registered the key
    if key_id in (None, current.key_id) or noted == thumbprints(kept):
        raise _credential_unknown(context, "The ID of the old key's credential is unknown", old)
    if not certain and identity is None and key_id != context.request.old_key_id:
        raise _credential_unknown(context, f"It is not certain that credential {key_id} belongs to the old key", old)
    object_id = context.credentials.object_id(observed.file.object_id, None)
    context.credentials.remove(key_id, object_id, prover, lambda: identity)
    if certain or identity is None:
        return
    restored = context.credentials.restore(prover, object_id, identity)
    if restored is not None:
        current, wrong = as_registered(current, kept, restored), replace(old, key_id=None)
        retired = tuple(wrong if each is old else each for each in observed.file.retired)
        context.write(replace(observed.file, current=current, retired=retired))
        mistake = f"Credential {key_id} belonged to the current key. It was removed, and registered again at once"
        raise _credential_unknown(context, f"{mistake}. The old key's credential is unknown", old)


def _credential_unknown(context: RotationContext, what: str, old: KeyEntry) -> ConfigError:
    return ConfigError(
        f"{what}, and Graph does not list credentials ({old.uri}).",
        hint=f"Find its keyId with: az ad app credential list --cert --id {context.profile.client_id}  "
        "Then run rotate again with --old-key-id ID.",
    )
