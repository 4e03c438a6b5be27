"""The certificate of a key is renewed while programs use it."""

from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from hsm_signer.device.manage.certificates import replace_certificates
from hsm_signer.device.manage.keys import find_key
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.system.private_file import replacing
from tests.support.application import Application
from tests.support.listener import Listener, ready
from tests.support.names import CLIENT, TENANT
from tests.support.program import Program
from tests.together.programs import Busy, exchange


@pytest.fixture
def first(application: Application) -> bytes:
    assert application.first.certificate
    return application.first.certificate


@pytest.fixture
def renewed(application: Application) -> bytes:
    """Another certificate of the same key, registered beside the first."""
    der = application.softhsm.issue_certificate(application.first.public_key)
    application.entra.register(CLIENT, der, tenant=TENANT)
    return der


@pytest.fixture
def thumbprints(application: Application, renewed: bytes) -> list[str]:
    """The thumbprints of the first certificate and of the renewed one."""
    credentials = application.entra.key_credentials(CLIENT, tenant=TENANT)
    return [urlsafe_b64encode(each.thumbprints["x5t"]).decode().rstrip("=") for each in credentials]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return tmp_path / "app.der"


@pytest.fixture
def keep(application: Application, assertion_file: Path, certificate: Path) -> list[str]:
    """The command that keeps an assertion file up to date, with the certificate in a file."""
    names = ["--key", application.first.uri, "--certificate", str(certificate)]
    return ["assertion-file", str(assertion_file), *names]


def put(file: Path, der: bytes) -> None:
    with replacing(file) as stream:
        stream.write(der)


def test_when_the_certificate_file_changes_the_assertion_file_is_replaced_within_seconds(
    application: Application,
    program: Program,
    systemd: Listener,
    assertion_file: Path,
    certificate: Path,
    keep: list[str],
    first: bytes,
    renewed: bytes,
    thumbprints: list[str],
) -> None:
    put(certificate, first)
    with program.start(*keep):
        systemd.wait_for(ready)
        with Busy(lambda: exchange(application, assertion_file.read_text())) as reader:
            reader.once_more()
            put(certificate, renewed)
            reader.wait_for(thumbprints[1])
    assert reader.seen == thumbprints


def test_when_the_certificate_file_changed_between_two_runs_the_next_run_replaces_the_assertion(
    application: Application,
    program: Program,
    assertion_file: Path,
    certificate: Path,
    keep: list[str],
    first: bytes,
    renewed: bytes,
    thumbprints: list[str],
) -> None:
    seen = []
    for der in (first, renewed):
        put(certificate, der)
        assert program(*keep, "--once").status == 0
        seen.append(exchange(application, assertion_file.read_text()))
    assert seen == thumbprints


@pytest.mark.parametrize("isolated", [False, True], ids=["in this process", "isolated"])
def test_when_the_certificate_on_the_device_changes_a_running_credential_uses_it(
    application: Application,
    renewed: bytes,
    thumbprints: list[str],
    isolated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hsm_signer.credential.certificate_source.REREAD", 0.0)
    with (
        application.tokens(isolated=isolated) as tokens,
        Busy(lambda: exchange(application, tokens.assertion())) as busy,
    ):
        busy.once_more()
        with application.device() as device:
            key = find_key(device, Pkcs11Uri.parse(application.first.uri))
            replace_certificates(device, key, renewed)
        busy.wait_for(thumbprints[1])
    assert busy.seen == thumbprints
