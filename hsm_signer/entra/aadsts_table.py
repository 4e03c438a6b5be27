"""Explanations of Entra's error numbers (AADSTS), for a program that proves its identity with a certificate.

The numbers are Entra's own (https://learn.microsoft.com/entra/identity-platform/reference-error-codes). The texts are
for the client credentials grant, where a number often has a narrower meaning than on Microsoft's page.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class AadstsError:
    """An error of Entra, explained in whole sentences.

    Args:
        code: the number after `AADSTS`.
        meaning: what Entra says.
        cause: the usual cause.
        fix: what to do; also the hint of an `EntraError`.
        lasting: whether another request within a minute gets the same answer: if the app, the tenant, the scope, a
            policy or a setting is wrong. Not if Entra may accept a new assertion or another certificate.
    """

    code: int
    meaning: str
    cause: str
    fix: str
    lasting: bool = False


TABLE = (
    AadstsError(
        700027,
        "Entra did not accept the assertion's signature: the app registration has no certificate with the assertion's "
        "thumbprint, or the signature does not match that certificate, or the key is too small.",
        "The certificate was not uploaded to this app registration, or the assertion contains another certificate's "
        "thumbprint, or the key and the certificate do not belong together.",
        "Compare the thumbprint that `hsm-signer decode` shows for an assertion with those under Certificates & "
        "secrets of the app registration. Upload the certificate if it is missing. The key must be RSA with at least "
        "2048 bits.",
    ),
    AadstsError(
        700024,
        "The assertion is not valid at this time: its validity has not started, or it has expired.",
        "The clock of the machine that signed it is wrong, or the assertion was sent too long after it was signed.",
        "Set this machine's clock (`timedatectl` shows whether it is synchronized), then run `hsm-signer token`, which "
        "signs a new assertion. A stored assertion is valid until the `exp` that `hsm-signer decode` shows.",
    ),
    AadstsError(
        700023,
        "The assertion's audience is not the token endpoint that it was sent to.",
        "The assertion was made for another cloud or tenant, or for the v1 endpoint and sent to the v2 endpoint.",
        "Check --cloud, --authority and --tenant, and remove --audience: by default it is the token endpoint.",
        lasting=True,
    ),
    AadstsError(
        700021,
        "The assertion's issuer is not the client ID in the request.",
        "The assertion was made for another app registration than the one in the request.",
        "Sign and send with the same --client-id. `hsm-signer decode` shows the `iss` of a stored assertion.",
        lasting=True,
    ),
    AadstsError(
        50027,
        "Entra cannot use the assertion: it is not a valid JWT.",
        "Its header has no certificate thumbprint (`x5t` or `x5t#S256`), or a claim is missing or has the wrong type.",
        "Look at the assertion with `hsm-signer decode`, and compare it with one from `hsm-signer assertion`, which "
        "has everything that Entra needs.",
    ),
    AadstsError(
        5002723,
        "The assertion's header has no certificate thumbprint.",
        "It has neither `x5t` nor `x5t#S256`, so Entra does not know which certificate to verify it with.",
        "Look at the header with `hsm-signer decode`. An assertion from `hsm-signer assertion` has a thumbprint.",
    ),
    AadstsError(
        5002727,
        "The `typ` in the assertion's header is not JWT.",
        "The program that made the assertion marked it as another kind of token.",
        "Look at the header with `hsm-signer decode`. An assertion from `hsm-signer assertion` has the `typ` JWT.",
    ),
    AadstsError(
        50012,
        "Entra did not accept the client's certificate or signature.",
        "The certificate is not registered, its chain or subject is not trusted, or the assertion is not valid at this "
        "time. Older endpoints use this number where newer ones use 700024, 700027 or 700030.",
        "First check this machine's clock. Then check that the app registration has a certificate with the thumbprint "
        "that `hsm-signer decode` shows for an assertion.",
    ),
    AadstsError(
        50048,
        "The assertion's subject is not its issuer.",
        "The `sub` and `iss` claims differ. For an app that proves its own identity, both are the client ID.",
        "Compare `iss` and `sub` with `hsm-signer decode`. An assertion from `hsm-signer assertion` has the client ID "
        "in both.",
        lasting=True,
    ),
    AadstsError(
        1000502,
        "The certificate is not valid at this time.",
        "The certificate has expired, or its validity has not started.",
        "Create a new certificate for the same key or for a new key (`hsm-signer certificate create`), and upload it "
        "to the app registration. Remove the old one when no program uses it any more.",
    ),
    AadstsError(
        5002738,
        "The assertion is signed with an algorithm that Entra does not support.",
        "The key is an elliptic-curve key, or the algorithm is neither RS256 nor PS256.",
        "Use an RSA key with at least 2048 bits, and --algorithm RS256 or PS256.",
    ),
    AadstsError(
        700016,
        "The application was not found in the tenant.",
        "The client ID has a typing error, or the app is registered in another tenant and nobody has consented to it "
        "in this one.",
        "Check --client-id (the app's Application ID, not its object ID) and --tenant. An app of another tenant can "
        "only be used after an administrator of this tenant has consented to it.",
        lasting=True,
    ),
    AadstsError(
        700011,
        "The application was not found in the directory.",
        "The client ID has a typing error, or the tenant is not the app's tenant.",
        "Check --client-id (the app's Application ID, not its object ID) and --tenant.",
        lasting=True,
    ),
    AadstsError(
        7000229,
        "The application has no service principal in this tenant.",
        "The app registration exists, but its enterprise application was deleted or never created in this tenant.",
        "Create the service principal (`az ad sp create --id CLIENT_ID`), or ask an administrator of this tenant to "
        "consent to the app.",
        lasting=True,
    ),
    AadstsError(
        90002,
        "The tenant was not found.",
        "The tenant has a typing error, or it is in another cloud.",
        "Compare --tenant with the portal, and check --cloud: the public cloud does not know US Government and China "
        "tenants.",
        lasting=True,
    ),
    AadstsError(
        900023,
        "The tenant is neither a domain nor a tenant ID.",
        "The tenant has a typing error.",
        "Set --tenant to the tenant's GUID or to one of its verified domains.",
        lasting=True,
    ),
    AadstsError(
        50059,
        "The request does not say which tenant it is for.",
        "Its URL has a name that stands for many tenants, such as `common`, instead of one tenant.",
        "Set --tenant to the tenant's GUID or to one of its verified domains.",
        lasting=True,
    ),
    AadstsError(
        90038,
        "The tenant is in another national cloud.",
        "The request went to the login host of the wrong cloud.",
        "Choose the tenant's cloud with --cloud: public, usgov or china.",
        lasting=True,
    ),
    AadstsError(
        900382,
        "A confidential client cannot be used in another cloud.",
        "The app is registered in another national cloud than the one that received the request.",
        "Choose the cloud of the app's tenant with --cloud: public, usgov or china.",
        lasting=True,
    ),
    AadstsError(
        500011,
        "The resource in the scope was not found in the tenant.",
        "The resource part of the scope has a typing error, or that API has no service principal in this tenant.",
        "Check --scope: it is the API's Application ID URI followed by `/.default`. If it is right, an administrator "
        "must add the API to this tenant.",
        lasting=True,
    ),
    AadstsError(
        500014,
        "The service principal of the resource is disabled.",
        "A subscription has ended, or an administrator has disabled the API's enterprise application in this tenant.",
        "Ask an administrator of the tenant to enable sign-in for that enterprise application.",
        lasting=True,
    ),
    AadstsError(
        501051,
        "The application is not assigned to a role of the resource.",
        "The resource accepts only callers that are assigned to it, and this app has none of its app roles.",
        "Grant the app one of the API's application permissions, and ask an administrator to consent to it.",
        lasting=True,
    ),
    AadstsError(
        70011,
        "The scope is not valid.",
        "It does not have the form that client credentials need, or it names more than one resource.",
        "Set --scope to `<resource>/.default`, for example https://graph.microsoft.com/.default.",
        lasting=True,
    ),
    AadstsError(
        1002012,
        "The scope is not valid for client credentials.",
        "It names a single permission, such as User.Read, instead of `/.default`.",
        "Set --scope to `<resource>/.default`. The token then contains all application permissions that were granted.",
        lasting=True,
    ),
    AadstsError(
        700022,
        "The scope names more than one resource.",
        "One request contains the scopes of several APIs.",
        "Request one token for each resource.",
        lasting=True,
    ),
    AadstsError(
        7000215,
        "The request contains a wrong client secret.",
        "Another program sent this request: hsm-signer never sends a client secret.",
        "Find the program that still uses a secret, and change it to use the certificate.",
    ),
    AadstsError(
        7000222,
        "The request contains an expired client secret.",
        "Another program sent this request: hsm-signer never sends a client secret.",
        "Find the program that still uses a secret, and change it to use the certificate.",
    ),
    AadstsError(
        7000218,
        "The request has neither a client assertion nor a client secret.",
        "Something between this machine and Entra changed the form, or another program sent the request without a "
        "proof of its identity.",
        "If `hsm-signer token` sent the request, look for a proxy that changes it. Otherwise send the output of "
        "`hsm-signer assertion` as `client_assertion`.",
    ),
    AadstsError(
        7000216,
        "The request is for client credentials, but has neither a client assertion nor a client secret.",
        "Something between this machine and Entra changed the form, or another program sent the request without a "
        "proof of its identity.",
        "If `hsm-signer token` sent the request, look for a proxy that changes it. Otherwise send the output of "
        "`hsm-signer assertion` as `client_assertion`.",
    ),
    AadstsError(
        70003,
        "The grant type is not supported.",
        "The `grant_type` in the request has a typing error, or something between this machine and Entra changed it.",
        "If `hsm-signer token` sent the request, look for a proxy that changes it. Another program must send "
        "`client_credentials`.",
    ),
    AadstsError(
        90014,
        "A field is missing from the request or from the assertion.",
        "The form has no such parameter, or the assertion has no such claim.",
        "Entra's message names the field. Compare it with what `hsm-signer decode` shows for the assertion.",
    ),
    AadstsError(
        900144,
        "A parameter is missing from the request.",
        "The form has no such field, or it did not arrive as application/x-www-form-urlencoded.",
        "Entra's message names the parameter. If `hsm-signer token` sent the request, look for a proxy that changes "
        "it.",
    ),
    AadstsError(
        700025,
        "A public client must not send a credential.",
        "The app registration is set up as a public client: an app without an identity of its own.",
        "Under Authentication of the app registration, turn off public client flows, or use a registration of type "
        "Web.",
        lasting=True,
    ),
    AadstsError(
        7000112,
        "The application is disabled.",
        "An administrator has disabled sign-in for its enterprise application, or Microsoft has disabled the app.",
        "Ask an administrator of the tenant to enable it under Enterprise applications.",
        lasting=True,
    ),
    AadstsError(
        700030,
        "The certificate's subject name is not allowed.",
        "The app uses subject name and issuer authentication, and the certificate's subject is not the registered one.",
        "Use a certificate with the registered subject name, and send it with --send-chain. Or change the "
        "registration.",
    ),
    AadstsError(
        53003,
        "Conditional Access blocked the request.",
        "A policy for workload identities blocks this app, usually because of the network that it calls from.",
        "Ask an administrator for the service principal's sign-in log, which names the policy. The correlation ID "
        "identifies the entry.",
        lasting=True,
    ),
    AadstsError(
        500021,
        "Tenant restrictions deny access to the tenant.",
        "A proxy in this network adds a list of allowed tenants to the request, and this tenant is not on it.",
        "Ask the proxy's administrator to allow the tenant.",
        lasting=True,
    ),
    AadstsError(
        50196,
        "Entra received the same request too often in a short time.",
        "A program requests a new token each time instead of keeping the one it has.",
        "Wait some minutes before the next request. Keep each token until shortly before it expires, as the library's "
        "HsmCredential does.",
        lasting=True,
    ),
    AadstsError(
        90055,
        "The tenant is throttled.",
        "Entra received too many requests for this tenant.",
        "Wait for as long as the response's Retry-After header says, and keep tokens instead of requesting new ones.",
    ),
)
"""All the errors that are explained."""
