"""The guided set-up: from what is known of a profile to a profile that is written and whose device is open.

Nothing is half-done if it stops: a key or certificate that was made is found by the next run, and the profile is
written last, as a whole.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hsm_signer.config.edit import Value, write_profile
from hsm_signer.config.profile import Profile, missing_settings
from hsm_signer.config.settings import SETTINGS
from hsm_signer.config.values import Source
from hsm_signer.credential.client import resolve_client
from hsm_signer.device.access import Operator
from hsm_signer.device.inventory.facts import ModuleFacts
from hsm_signer.device.inventory.survey import survey
from hsm_signer.device.module_search import ModuleReference, find_module, modules_to_search
from hsm_signer.device.piv import is_piv, slot_of
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra.authority import resolve_endpoint
from hsm_signer.entra.scopes import check_scopes
from hsm_signer.errors import CertificateNotFound, ConfigError, KeyLookupError
from hsm_signer.setup import advice
from hsm_signer.setup.contents import LookAgain, OpenDevice, Wishes
from hsm_signer.setup.devices import Candidate, candidates, choices, matching, none_found, variables_of
from hsm_signer.setup.draft import Draft
from hsm_signer.setup.guide import Guide
from hsm_signer.setup.keys import KeyOption
from hsm_signer.system.private_file import write_private
from hsm_signer.system.trusted_path import make_private_directory
from hsm_signer.x509.certificate import Certificate, to_pem

DEFAULT_SCOPE = "https://graph.microsoft.com/.default"

_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# The first two as the portal calls them.
_QUESTIONS = {
    "tenant": "Directory (tenant) ID, on the app's Overview page in the portal",
    "client_id": "Application (client) ID, on the same page",
    "scope": "Scope, the API that tokens are for",
}


@dataclass(frozen=True)
class Found:
    """What the set-up has found or made.

    Attributes:
        key: on the open device.
        certificate: of the key.
        file: holds the certificate; None if the device does.
        is_new: whether the certificate was made now, so that it cannot be registered yet.
    """

    key: KeyOption
    certificate: Certificate
    file: Path | None
    is_new: bool


class Setup:
    """One set-up. A context manager, which closes the device.

    Args:
        draft: what is known of the profile.
        wishes: what is known of the key.
        guide: answers questions.
        operator: who types the PIN and plugs the device in.
        now: the clock, timezone-aware.
    """

    def __init__(
        self,
        draft: Draft,
        wishes: Wishes,
        guide: Guide,
        operator: Operator,
        *,
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._draft = draft
        self._profile = draft.profile
        self._wishes = wishes
        self._guide = guide
        self._operator = operator
        self._environ = environ
        self._now = now
        self._values: dict[str, Value] = draft.values()
        self.opened: OpenDevice | None = None

    def __enter__(self) -> "Setup":
        return self

    def __exit__(self, *_: object) -> None:
        if self.opened is not None:
            self.opened.close()

    def run(self) -> Found:
        """Ask, find, make, and write the profile.

        Raises:
            HsmSignerError: it cannot be done, and the message says what to do.
        """
        self._check_given()
        candidate = self._choose_device()
        self._ask_about_app()
        opened, option = self._find_key(candidate)
        certificate, file, is_new = self._certificate(opened, option)
        self._complete(opened.candidate, option)
        if self._values:
            write_profile(self._draft.place, self._values, replace=self._draft.replace)
            self._guide.tell(f"Wrote profile {self._draft.place.name!r} to {self._draft.place.file}")
        return Found(option, certificate, file, is_new)

    def _choose_device(self) -> Candidate:
        while True:
            modules = self._survey()
            found = candidates(modules)
            fitting = matching(found, self._wishes.key)
            if len(fitting) > 1:
                index = self._guide.choose("Which device?", choices(fitting), option="--key URI", default=None)
                return fitting[index]
            if fitting:
                self._guide.tell(f"Device: {choices(fitting)[0]}")
                return fitting[0]
            error = none_found(modules, self._wishes.key)
            suggested = advice.no_device(modules[0], self._wishes.default_label) if len(modules) == 1 else None
            if suggested is not None:
                if not self._guide.wait_for_person(suggested.instruction, suggested.commands):
                    error.commands = suggested.commands
                    raise error
            elif self._operator.wait is None:
                raise error
            else:
                self._operator.wait(error)

    def _find_again(self, before: Candidate) -> Candidate:
        # OpenSC calls a card what the certificate on it says.
        found = candidates(self._survey())
        same = [each for each in found if each.path == before.path and each.serial == before.serial]
        return same[0] if len(same) == 1 else self._choose_device()

    def _survey(self) -> list[ModuleFacts]:
        profile, uri = self._profile, self._wishes.key
        if profile.module is not None:
            modules = modules_to_search(profile.module)[:1]
        elif uri is not None and (uri.module_path is not None or uri.module_name is not None):
            modules = [ModuleReference(find_module(None, uri), uri.module_name)]
        else:
            modules = modules_to_search()
        return [
            survey(module, profile.module_environment, profile.device_timeout, self._operator.slow)
            for module in modules
        ]

    def _check_given(self) -> None:
        """Refuse what cannot be right before a device is looked for."""
        if self._profile.client_id:
            _require_guid(self._profile)
        if not missing_settings(self._profile, "tenant"):
            _require_endpoint(self._profile)

    def _ask_about_app(self) -> None:
        for name in missing_settings(self._profile, "tenant", "client_id", "scope"):
            default = DEFAULT_SCOPE if name == "scope" else self._draft.suggestions.get(name)
            answer = self._guide.ask(name, _QUESTIONS[name], default=default, check=self._checked(name))
            self._know(name, answer)
        resolve_client(self._profile)

    def _checked(self, name: str) -> Callable[[str], str]:
        profile = self._profile

        def check(answer: str) -> str:
            setting = SETTINGS[name]
            read = setting.read(answer, Source(setting.option))
            known = replace(profile, **{name: read})
            if name == "tenant":
                _require_endpoint(known)
            elif name == "client_id":
                _require_guid(known)
            elif name == "scope":
                check_scopes(resolve_client(known).endpoint, known.scope)
            return answer

        return check

    def _know(self, name: str, answer: str) -> None:
        setting = SETTINGS[name]
        self._profile = replace(self._profile, **{name: setting.read(answer, Source(setting.option))})
        self._values[name] = answer

    def _find_key(self, candidate: Candidate) -> tuple[OpenDevice, KeyOption]:
        while True:
            self.opened = opened = self._open(candidate)
            try:
                return opened, opened.find_or_make_key(self._wishes)
            except LookAgain:
                candidate = self._find_again(candidate)

    def _open(self, candidate: Candidate) -> OpenDevice:
        variables = {**variables_of(candidate.path, self._environ), **self._profile.module_environment}
        # The URI says which module it is; `module` of the profile goes on to count.
        module = self._profile.module if "module" in self._draft.table.values else None
        pin_source = self._profile.pin_source or _typed_pin_source(self._profile)
        profile = replace(self._profile, module_environment=variables, module=module, pin_source=pin_source)
        return OpenDevice(candidate, profile, self._operator, self._guide, self._now)

    def _certificate(self, opened: OpenDevice, option: KeyOption) -> tuple[Certificate, Path | None, bool]:
        """Return the certificate, its file, and whether it is new."""
        if self._profile.certificate is not None:
            file = self._profile.certificate
            try:
                return opened.certificate_in(file, option), file, False
            except OSError as error:
                raise CertificateNotFound(
                    f"The certificate {file} cannot be read: {error.strerror}.", hint="Check its name and mode."
                ) from None
        kept = self._draft.place.beside(".pem")
        stored = opened.certificate_of(option)
        if stored is not None:
            self._guide.tell(f"Certificate: {stored.subject}, valid until {stored.not_after:%Y-%m-%d}")
            return stored, None, False
        with suppress(OSError, KeyLookupError):
            earlier = opened.certificate_in(kept, option)
            self._values["certificate"] = kept.name
            self._guide.tell(f"Certificate: {earlier.subject} in {kept}")
            return earlier, kept, False
        made = opened.make_certificate(option, self._wishes.subject or f"CN={option.name}", self._wishes.days)
        is_stored = opened.store_certificate(option, made)
        written = None if is_stored else self.keep(made)
        if written is not None:
            self._values["certificate"] = written.name
        where = f"stored {'on the device' if written is None else f'in {written}'}"
        self._guide.tell(f"Created a certificate: {made.subject}, valid until {made.not_after:%Y-%m-%d}, {where}")
        info, slot = opened.candidate.device.info, slot_of(option.key.id)
        if written is not None and slot is not None and is_piv(info):
            self._guide.tell("To have it on the card, too (not needed here; it asks for the management key):")
            self._guide.tell(f"  {advice.piv_import(info, slot, str(written))}")
        return made, written, True

    def keep(self, certificate: Certificate) -> Path:
        """Write a certificate beside the profile, as PEM, and return the file. The file of another is left alone."""
        file, pem = self._draft.place.beside(".pem"), to_pem(certificate.der)
        make_private_directory(file.parent, "configuration directory")
        if file.exists() and file.read_bytes() != pem:
            file = file.with_name(f"{file.stem}-{certificate.sha1.hex()[:8]}.pem")
        if not file.exists():
            write_private(file, lambda: pem, mode=0o644)
        return file

    def _complete(self, candidate: Candidate, option: KeyOption) -> None:
        table = self._draft.table.values
        if "key" not in table or self._draft.replace:
            self._values["key"] = self._key(option)
        if "pin_source" not in table:
            self._values.setdefault("pin_source", _typed_pin_source(self._profile) or "prompt")
        variables = variables_of(candidate.path, self._environ)
        if variables and "module_environment" not in table:
            self._values["module_environment"] = variables
        ordered = [name for name in SETTINGS if name in self._values]
        self._values = {name: self._values[name] for name in ordered}

    def _key(self, option: KeyOption) -> Value:
        file = self._profile.key_file
        if file is not None:
            return f"file:{file.absolute()}"
        return option.key.uri


def _typed_pin_source(profile: Profile) -> str | None:
    """Return the PIN source that the URI of the key has: the URI that is written names the key alone."""
    return profile.key[0].pin_source if profile.key else None


def _require_endpoint(profile: Profile) -> None:
    resolve_endpoint(
        tenant=profile.tenant,
        cloud=profile.cloud,
        authority=profile.authority,
        token_endpoint=profile.token_endpoint,
        audience=profile.audience,
    )


def _require_guid(profile: Profile) -> None:
    # Another server may have other IDs.
    if profile.token_endpoint is None and not _GUID.fullmatch(profile.client_id or ""):
        raise ConfigError(
            "The client ID is not a GUID such as 11111111-2222-3333-4444-555555555555.",
            hint='Copy "Application (client) ID" from the Overview page of the app registration.',
        )


def wanted_key(profile: Profile) -> Pkcs11Uri | None:
    """Return the URI of the key that is configured.

    Raises:
        ConfigError: several are, or a key file that does not exist.
    """
    if len(profile.key) > 1:
        raise ConfigError(f"{len(profile.key)} keys are given, and one is set up at a time.", hint="Give one --key.")
    if profile.key_file is not None and not profile.key:
        raise ConfigError(
            f"The key file {profile.key_file} does not exist.",
            hint="Set up the key itself with --key URI, then let rotate write the key file.",
        )
    return profile.key[0] if profile.key else None
