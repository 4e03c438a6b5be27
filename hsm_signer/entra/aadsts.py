"""What Entra's error numbers mean to a program that proves itself with a certificate, and what to do. Pure.

The numbers are Entra's own (https://learn.microsoft.com/entra/identity-platform/reference-error-codes); the texts are
for the client-credentials grant, where the same number often means something narrower than on Microsoft's page.
"""

import re
from dataclasses import dataclass

from hsm_signer.errors import ConfigError, EntraError


@dataclass(frozen=True)
class AadstsError:
    """One of Entra's errors, explained in whole sentences.

    Args:
        code: the number behind `AADSTS`.
        meaning: what Entra says.
        cause: what usually lies behind it.
        fix: what to do; it also serves as the hint of an `EntraError`.
        lasting: whether another request within a minute gets the same answer. It does if the app, the tenant, the
            scope, a policy, or a setting is at fault; not if a new assertion, or another certificate, may be accepted.
    """

    code: int
    meaning: str
    cause: str
    fix: str
    lasting: bool = False


def lookup(code: int) -> AadstsError | None:
    """Return what is known about AADSTS `code`, or None."""
    return _BY_CODE.get(code)


def is_lasting(refusal: EntraError) -> bool:
    """Return whether another request within a minute would be refused for the same reason."""
    if refusal.aadsts is None:
        return refusal.error in _LASTING_ERRORS
    known = lookup(refusal.aadsts)
    return known is not None and known.lasting


# RFC 6749 section 5.2: what servers other than Entra say of the scope and of the client's rights. Not invalid_client,
# which they say of the assertion, too.
_LASTING_ERRORS = frozenset({"invalid_scope", "unauthorized_client", "unsupported_grant_type"})


def parse_code(text: str) -> int:
    """Return the number in `AADSTS700027`, `700027`, or a whole message that begins with one of them.

    Raises:
        ConfigError: the text does not begin with such a number.
    """
    match = re.fullmatch(r"(?:AADSTS\s?)?([0-9]{4,9})(?:[^0-9A-Z_].*)?", text.strip(), re.IGNORECASE | re.DOTALL)
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise ConfigError(
            f"{shown!r} is no Entra error number.",
            hint="It looks like AADSTS700027 or 700027; Entra's message begins with it.",
        )
    return int(match[1])


TABLE = (
    AadstsError(
        700027,
        "The assertion's signature was not accepted: Entra found no matching certificate on the app registration, or "
        "the signature does not verify with it, or the key is too small.",
        "The certificate was not uploaded to this app registration, or the assertion names the thumbprint of another "
        "one, or key and certificate do not belong together.",
        "Compare the thumbprint that `hsm-signer decode` shows for an assertion with the ones under Certificates & "
        "secrets of the app registration, and upload the certificate if it is missing. The key must be RSA with at "
        "least 2048 bits.",
    ),
    AadstsError(
        700024,
        "The assertion is outside its time range: not valid yet, or not any more.",
        "The clock of the machine that signed it is wrong, or the assertion was kept too long before it was sent.",
        "Set this machine's clock (`timedatectl` shows whether it is synchronized), then let `hsm-signer token` sign "
        "a new assertion; a stored one is good only until the `exp` that `hsm-signer decode` shows.",
    ),
    AadstsError(
        700023,
        "The assertion's audience is not the token endpoint that it was sent to.",
        "The assertion was made for another cloud or another tenant, or for the v1 endpoint and sent to the v2 one.",
        "Check --cloud, --authority and --tenant, and leave --audience out: it then is the token endpoint itself.",
        lasting=True,
    ),
    AadstsError(
        700021,
        "The assertion's issuer is not the client id of the request.",
        "The assertion was made for another app registration than the one that sends it.",
        "Sign and send with the same --client-id; `hsm-signer decode` shows the `iss` of a stored assertion.",
        lasting=True,
    ),
    AadstsError(
        50027,
        "The assertion is no JWT that Entra can use.",
        "Its header names no certificate (neither `x5t` nor `x5t#S256`), or a claim is missing or has the wrong type.",
        "Look at the assertion with `hsm-signer decode`; one made by `hsm-signer assertion` has everything Entra "
        "needs.",
    ),
    AadstsError(
        5002723,
        "The assertion's header names no certificate.",
        "It has neither `x5t` nor `x5t#S256`, so Entra cannot tell which certificate to verify it with.",
        "Look at the header with `hsm-signer decode`; an assertion made by `hsm-signer assertion` names its "
        "certificate.",
    ),
    AadstsError(
        5002727,
        "The `typ` in the assertion's header is not JWT.",
        "The assertion was made by a program that marks it as another kind of token.",
        "Look at the header with `hsm-signer decode`; an assertion made by `hsm-signer assertion` has `typ` JWT.",
    ),
    AadstsError(
        50012,
        "The client's certificate or signature was not accepted.",
        "The certificate is not registered, its chain or subject is not trusted, or the assertion is outside its time "
        "range. Older endpoints give this number where newer ones give 700024, 700027 or 700030.",
        "Check this machine's clock, then that the certificate on the app registration has the thumbprint which "
        "`hsm-signer decode` shows for an assertion.",
    ),
    AadstsError(
        50048,
        "The assertion's subject is not its issuer.",
        "The `sub` and `iss` claims differ; for an app that authenticates itself both are the client id.",
        "Compare `iss` and `sub` in `hsm-signer decode`; assertions made by `hsm-signer assertion` have the client "
        "id in both.",
        lasting=True,
    ),
    AadstsError(
        1000502,
        "The certificate is outside its validity.",
        "The certificate has expired or is not valid yet.",
        "Make a new certificate for the same key or a new one, upload it to the app registration, and remove the old "
        "one when everything uses the new.",
    ),
    AadstsError(
        5002738,
        "The assertion is signed with an algorithm that Entra does not support.",
        "The key is an elliptic-curve key, or the algorithm is not RS256 or PS256.",
        "Use an RSA key with at least 2048 bits, and RS256 or PS256 as --algorithm.",
    ),
    AadstsError(
        700016,
        "The application was not found in the tenant.",
        "The client id is mistyped, or the app is registered in another tenant and nobody consented to it in this one.",
        "Check --client-id (the app's Application ID, not its object id) and --tenant. To use an app of another "
        "tenant, an administrator of this one must consent to it first.",
        lasting=True,
    ),
    AadstsError(
        700011,
        "The application was not found in the directory.",
        "The client id is mistyped, or the tenant is another one than the app's.",
        "Check --client-id (the app's Application ID, not its object id) and --tenant.",
        lasting=True,
    ),
    AadstsError(
        7000229,
        "The application has no service principal in this tenant.",
        "The app registration exists, but its enterprise application was deleted or never created here.",
        "Create the service principal (`az ad sp create --id CLIENT_ID`), or have an administrator of this tenant "
        "consent to the app.",
        lasting=True,
    ),
    AadstsError(
        90002,
        "The tenant was not found.",
        "The tenant is mistyped, or it lives in another cloud.",
        "Check --tenant against the portal, and --cloud: US Government and China tenants are unknown to the public "
        "cloud.",
        lasting=True,
    ),
    AadstsError(
        900023,
        "The tenant is neither a domain nor a tenant id.",
        "The tenant is mistyped.",
        "Give the tenant's GUID or one of its verified domains with --tenant.",
        lasting=True,
    ),
    AadstsError(
        50059,
        "The request does not say which tenant it is for.",
        "Its address has a name that stands for many tenants, such as `common`, in the tenant's place.",
        "Give the tenant's GUID or one of its verified domains with --tenant.",
        lasting=True,
    ),
    AadstsError(
        90038,
        "The tenant belongs to another national cloud.",
        "The request went to the login host of the wrong cloud.",
        "Choose the tenant's cloud with --cloud: public, usgov or china.",
        lasting=True,
    ),
    AadstsError(
        900382,
        "A confidential client cannot be used across clouds.",
        "The app is registered in another national cloud than the one that was asked.",
        "Choose the cloud of the app's tenant with --cloud: public, usgov or china.",
        lasting=True,
    ),
    AadstsError(
        500011,
        "The resource that the scope names was not found in the tenant.",
        "The resource part of the scope is mistyped, or that API has no service principal in this tenant.",
        "Check --scope: it is the Application ID URI of the API and then `/.default`. If it is right, an "
        "administrator must add the API to this tenant.",
        lasting=True,
    ),
    AadstsError(
        500014,
        "The service principal of the resource is disabled.",
        "A subscription has lapsed, or an administrator disabled the API's enterprise application in this tenant.",
        "Ask an administrator of the tenant to enable sign-in to that enterprise application.",
        lasting=True,
    ),
    AadstsError(
        501051,
        "The application is not assigned to a role of the resource.",
        "The resource demands that its callers are assigned, and this app has none of its app roles.",
        "Grant the app one of the API's application permissions and have an administrator consent to it.",
        lasting=True,
    ),
    AadstsError(
        70011,
        "The scope is not valid.",
        "It is not of the form that client credentials need, or names more than one resource.",
        "Ask for `<resource>/.default`, for example https://graph.microsoft.com/.default.",
        lasting=True,
    ),
    AadstsError(
        1002012,
        "The scope is not valid for client credentials.",
        "It names single permissions, such as User.Read, instead of `/.default`.",
        "Ask for `<resource>/.default`; the token carries every application permission that was granted.",
        lasting=True,
    ),
    AadstsError(
        700022,
        "The scope names more than one resource.",
        "Scopes of different APIs were asked for in one request.",
        "Ask for one token for each resource.",
        lasting=True,
    ),
    AadstsError(
        7000215,
        "A wrong client secret was sent.",
        "The request carried a client secret. hsm-signer never sends one, so another program sent this request.",
        "Find the program that still uses a secret and have it use the certificate instead.",
    ),
    AadstsError(
        7000222,
        "An expired client secret was sent.",
        "The request carried a client secret. hsm-signer never sends one, so another program sent this request.",
        "Find the program that still uses a secret and have it use the certificate instead.",
    ),
    AadstsError(
        7000218,
        "The request has neither a client assertion nor a client secret.",
        "Something between this machine and Entra changed the form, or another program sent the request without "
        "proof of its identity.",
        "If the request came from `hsm-signer token`, look for a proxy that rewrites it; otherwise send the output "
        "of `hsm-signer assertion` as `client_assertion`.",
    ),
    AadstsError(
        7000216,
        "Client credentials were asked for without a client assertion or a client secret.",
        "Something between this machine and Entra changed the form, or another program sent the request without "
        "proof of its identity.",
        "If the request came from `hsm-signer token`, look for a proxy that rewrites it; otherwise send the output "
        "of `hsm-signer assertion` as `client_assertion`.",
    ),
    AadstsError(
        70003,
        "The grant type is not supported.",
        "The request's `grant_type` is mistyped, or something between this machine and Entra changed the form.",
        "Send `client_credentials`, as `hsm-signer token` does; if that is what was sent, look for a proxy that "
        "rewrites it.",
    ),
    AadstsError(
        90014,
        "A field is missing from the request or from the assertion.",
        "A parameter of the form or a claim of the assertion was left out.",
        "Read in Entra's message which one, and compare with what `hsm-signer decode` shows of the assertion.",
    ),
    AadstsError(
        900144,
        "The request lacks a parameter.",
        "A field of the form is missing, or the form did not arrive as application/x-www-form-urlencoded.",
        "Read in Entra's message which one. If the request came from `hsm-signer token`, look for a proxy that "
        "rewrites it.",
    ),
    AadstsError(
        700025,
        "A public client must not send a credential.",
        "The app registration is set up as a public client, an app without an identity of its own.",
        "Under Authentication of the app registration, turn off public client flows or use a registration of type Web.",
        lasting=True,
    ),
    AadstsError(
        7000112,
        "The application is disabled.",
        "An administrator disabled sign-in for its enterprise application, or Microsoft disabled the app.",
        "Ask an administrator of the tenant to enable it under Enterprise applications.",
        lasting=True,
    ),
    AadstsError(
        700030,
        "The certificate's subject name is not allowed.",
        "The app uses subject name and issuer authentication, and the certificate has another subject than the one "
        "that is registered.",
        "Use a certificate with the registered subject name, sent with --send-chain, or have the registration changed.",
    ),
    AadstsError(
        53003,
        "Conditional Access blocked the request.",
        "A policy for workload identities blocks this app, mostly because of the network it calls from.",
        "Ask an administrator for the sign-in log of the service principal, which names the policy; the correlation "
        "id finds the entry.",
        lasting=True,
    ),
    AadstsError(
        500021,
        "Access to the tenant is denied by tenant restrictions.",
        "A proxy of this network adds a list of allowed tenants to the request, and this tenant is not in it.",
        "Ask whoever runs the proxy to allow the tenant.",
        lasting=True,
    ),
    AadstsError(
        50196,
        "Entra has seen the same request too often in a short time.",
        "A program asks for a new token each time instead of keeping the one it has.",
        "Keep a token until shortly before it expires, as the library's HsmCredential does, and wait some minutes "
        "before the next try.",
        lasting=True,
    ),
    AadstsError(
        90055,
        "The tenant is throttled.",
        "Too many requests reached Entra for this tenant.",
        "Wait for as long as the answer's Retry-After header says, and keep tokens instead of asking anew.",
    ),
)
"""Everything `lookup` knows."""

_BY_CODE = {entry.code: entry for entry in TABLE}
