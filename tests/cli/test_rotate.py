"""`rotate` against the emulator of Entra and Graph: from one key to the next, and what stops it."""

import json
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.device.module_search import find_module
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import EntraEmulator, GraphRefusal, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.certificates import common_name, make_certificate
from tests.support.names import CLIENT, PIN, TENANT
from tests.support.program import Program, Result, assert_explained

STEPS = ["name", "generate", "certify", "register", "prove", "switch", "unregister"]


@dataclass(frozen=True)
class Stage:
    """An application with one key on a device, and a profile that follows a key file."""

    program: Program
    entra: EntraEmulator
    softhsm: SoftHsm
    first: SoftHsmKey

    @property
    def key_file(self) -> Path:
        return self.program.directory / "key.json"

    def __call__(self, *arguments: str) -> Result:
        return self.program(*arguments, environment=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        return {"HSM_SIGNER_CONFIG": str(self.program.directory / "config.toml"), **self.softhsm.environment}

    def begin(self, *more: str) -> Result:
        """Rotate for the first time, long before that is due."""
        return self("rotate", "--now", "--current", self.first.uri, *more)

    def registered(self) -> list[str]:
        """Return the thumbprints of the registered certificates."""
        held = self.entra.key_credentials(CLIENT, tenant=TENANT)
        return [each.thumbprints["x5t"].hex() for each in held]

    def on_device(self) -> tuple[int, int]:
        """Return how many private keys and certificates the device holds."""
        shown = self("device", "show", "--login", "-o", "json", "--key", self.first.uri.partition(";")[0]).json
        contents = shown["devices"][0]["contents"]
        return len(contents["keys"]), len(contents["certificates"])

    def works(self) -> bool:
        """Return whether the profile gets a token."""
        return self("token").status == 0


@pytest.fixture
def stage(program: Program) -> Iterator[Stage]:
    with staged(program) as stage:
        yield stage


@pytest.fixture
def unlisted(program: Program) -> Iterator[Stage]:
    """The same, with a Graph that does not list the application's credentials."""
    with staged(program, forbid_listing=True) as stage:
        yield stage


@contextmanager
def staged(program: Program, *, forbid_listing: bool = False) -> Iterator[Stage]:
    with (
        SoftHsm(label="rolling", pin=PIN) as softhsm,
        EntraEmulator(https=False, forbid_listing=forbid_listing) as entra,
    ):
        first = softhsm.add_identity("app", b"\x01")
        assert first.certificate is not None
        entra.register(CLIENT, first.certificate, tenant=TENANT)
        (program.directory / "config.toml").write_text(
            f"""[profile.default]
            tenant = "{TENANT}"
            client_id = "{CLIENT}"
            authority = "{entra.authority}"
            scope = "https://graph.microsoft.com/.default"
            key = "file:key.json"
            module = "{softhsm.module}"
            pin_source = "env:DEVICE_PIN"
            grace = 0
            """
        )
        yield Stage(program, entra, softhsm, first)


class Authority:
    """A certificate authority, which signs requests."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        self.name = common_name("authority")
        self.certificate = self._issue(self.name, self._key.public_key())

    def sign(self, request: bytes) -> bytes:
        """Return the certificate (PEM) for a signing request (PEM)."""
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        public_key = asked.public_key()
        assert isinstance(public_key, rsa.RSAPublicKey)
        return self._issue(asked.subject, public_key)

    def _issue(self, subject: x509.Name, public_key: rsa.RSAPublicKey) -> bytes:
        issued = make_certificate(public_key, subject=subject, issuer=(self.name, self._key))
        return issued.public_bytes(Encoding.PEM)


def commands(result: Result) -> list[list[str]]:
    """Return the arguments of the commands that an error tells the user to run."""
    return [shlex.split(line)[1:] for line in result.stderr.splitlines() if line.strip().startswith("hsm-signer ")]


def next_is_registered(key_file: Path) -> bool:
    following = json.loads(key_file.read_text()).get("next") if key_file.exists() else None
    return following is not None and following.get("registered", True)


def steps(result: Result) -> list[str]:
    return [line.split()[0] for line in result.stdout.splitlines()]


def test_the_next_key_replaces_the_old_one_which_is_deleted(stage: Stage) -> None:
    before = stage.registered()
    result = stage.begin("--delete-old-key")
    assert (result.status, result.stderr) == (0, "")
    assert steps(result) == [*STEPS, "delete"]
    assert len(stage.registered()) == 1
    assert stage.registered() != before
    assert stage.on_device() == (1, 1)
    assert stage.works()


def test_the_old_key_stays_on_the_device_without_the_option(stage: Stage) -> None:
    result = stage.begin()
    assert steps(result) == [*STEPS, "keep"]
    assert stage.first.uri.partition("?")[0].rpartition(";")[2] in result.stdout
    assert stage.on_device() == (2, 2)
    assert len(stage.registered()) == 1


def test_an_application_that_may_not_list_its_keys_can_still_rotate_them(unlisted: Stage) -> None:
    first = unlisted.entra.key_credentials(CLIENT, tenant=TENANT)[0].key_id
    object_id = unlisted.entra.object_id(CLIENT, tenant=TENANT)
    assert unlisted.begin("--object-id", object_id, "--old-key-id", first, "--delete-old-key").status == 0
    # Now the key file contains both ids.
    assert unlisted("rotate", "--now", "--delete-old-key").status == 0
    assert len(unlisted.registered()) == 1
    assert unlisted.works()


def test_without_the_permission_to_list_keys_it_asks_for_the_old_keys_id(unlisted: Stage) -> None:
    first = unlisted.entra.key_credentials(CLIENT, tenant=TENANT)[0].key_id
    refused = unlisted.begin("--object-id", unlisted.entra.object_id(CLIENT, tenant=TENANT))
    assert refused.status == 2
    assert "--old-key-id" in refused.stderr
    assert unlisted.works()
    assert steps(unlisted("rotate", "--old-key-id", first)) == ["unregister", "keep"]
    assert len(unlisted.registered()) == 1


def test_without_the_permission_to_read_the_object_id_it_asks_for_it(unlisted: Stage) -> None:
    result = unlisted.begin()
    assert result.status == 2
    assert "--object-id" in result.stderr
    assert "az ad app show" in result.stderr
    assert not unlisted.key_file.exists() or unlisted.works()


def test_a_change_that_spreads_slowly_is_waited_for(stage: Stage) -> None:
    stage.entra.delay_propagation(token_requests=2)
    result = stage.begin("--propagation-timeout", "30")
    assert result.status == 0
    assert "Waiting for Entra" in result.stdout
    assert stage.works()


def test_a_change_that_does_not_spread_leaves_the_current_key_in_use(stage: Stage) -> None:
    stage.entra.delay_propagation(token_requests=2)
    result = stage.begin("--propagation-timeout", "0")
    assert result.status == 7
    assert "Run rotate again" in result.stderr
    assert stage.works()
    assert steps(stage("rotate")) == ["prove", "switch", "unregister", "keep"]


def test_an_interrupt_while_it_waits_leaves_the_current_key_in_use_and_the_next_run_continues(stage: Stage) -> None:
    stage.entra.delay_propagation(token_requests=3)
    with stage.program.start("rotate", "--now", "--current", stage.first.uri, environment=stage.environment) as process:
        assert process.stdout is not None
        while "Waiting for Entra" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert stage.works()
    assert steps(stage("rotate"))[-4:] == ["prove", "switch", "unregister", "keep"]


def test_it_finishes_even_if_nobody_reads_its_output(stage: Stage) -> None:
    with stage.program.start(
        "rotate", "--now", "--current", stage.first.uri, "--delete-old-key", environment=stage.environment
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == 0
    assert len(stage.registered()) == 1
    assert stage.on_device() == (1, 1)


def test_a_dry_run_shows_the_plan_and_changes_nothing(stage: Stage) -> None:
    before = stage.registered(), stage.on_device()
    result = stage.begin("--dry-run")
    assert steps(result) == [*STEPS, "keep"]
    assert (stage.registered(), stage.on_device()) == before
    assert not stage.key_file.exists()


def test_with_json_output_the_steps_are_one_document(stage: Stage) -> None:
    document = stage.begin("-o", "json").json
    assert [step["step"] for step in document["steps"]] == [*STEPS, "keep"]
    assert document["key"] == json.loads(stage.key_file.read_text())["key"]


def test_with_json_output_the_steps_before_a_failure_are_one_document(stage: Stage) -> None:
    stage.entra.restrict_certificates(max_lifetime=timedelta(days=100))
    failed = stage.begin("-o", "json")
    assert failed.status == 7
    assert [step["step"] for step in failed.json["steps"]] == ["name", "generate", "certify"]
    assert failed.json["key"] == stage.first.uri
    assert failed.error["code"] == "entra_error"
    assert len(failed.stderr.splitlines()) == 1


def test_with_json_output_the_steps_before_an_interrupt_are_one_document(stage: Stage) -> None:
    stage.entra.delay_propagation(token_requests=1000)
    arguments = ("rotate", "--now", "-o", "json", "--current", stage.first.uri)
    with stage.program.start(*arguments, environment=stage.environment) as run:
        while not next_is_registered(stage.key_file):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=30)
    assert (run.returncode, stderr) == (130, "")
    assert [step["step"] for step in json.loads(stdout)["steps"]][:4] == STEPS[:4]


def test_with_json_output_a_failure_before_the_first_step_prints_only_an_error(stage: Stage) -> None:
    failed = stage("rotate", "--current", "pkcs11:token=rolling;id=%99", "-o", "json")
    assert (failed.stdout, failed.status) == ("", 5)


def test_the_next_certificate_has_the_same_subject_and_the_requested_validity(stage: Stage) -> None:
    assert stage.first.certificate is not None
    old = x509.load_der_x509_certificate(stage.first.certificate)
    stage.begin("--days", "90")
    new = stage.entra.key_credentials(CLIENT, tenant=TENANT)[0].certificate
    assert new.subject == old.subject
    validity = new.not_valid_after_utc - new.not_valid_before_utc
    assert validity.days in (89, 90)


def test_there_is_one_login_for_the_whole_run(stage: Stage) -> None:
    spied = {"PKCS11SPY": str(stage.softhsm.module), "PKCS11SPY_OUTPUT": str(stage.program.directory / "spy")}
    spy = find_module(None, Pkcs11Uri(module_name="pkcs11-spy"))
    result = stage.program(
        "rotate",
        "--now",
        "--current",
        stage.first.uri,
        "--module",
        str(spy),
        environment={**stage.environment, **spied},
    )
    assert result.status == 0, result.stderr
    calls = (stage.program.directory / "spy").read_text().splitlines()
    assert sum("C_Login\n" in f"{line}\n" for line in (call.partition(": ")[2] for call in calls)) == 1


class TestWhileAssertionsByTheOldKeyMayBeInUse:
    LATER = ("--grace", "3600")

    def test_the_old_key_stays_registered_and_the_run_succeeds_and_says_until_when(self, stage: Stage) -> None:
        result = stage.begin(*self.LATER)
        assert (result.status, result.stderr) == (0, "")
        assert steps(result) == [*STEPS[:-1], "wait"]
        assert re.search(r"stays registered until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", result.stdout)
        assert len(stage.registered()) == 2
        assert stage.works()

    def test_a_run_says_what_remains_and_a_later_one_finishes_the_rotation(self, stage: Stage) -> None:
        stage.begin(*self.LATER, "--delete-old-key")
        before = stage.key_file.read_text()
        again = stage("rotate", *self.LATER, "--pin-source", "env:NOT_SET")
        assert (again.status, steps(again), again.stderr) == (0, ["wait"], "")
        assert stage.key_file.read_text() == before
        assert steps(stage("rotate")) == ["unregister", "delete"]
        assert stage.on_device() == (1, 1)

    def test_json_output_says_what_remains(self, stage: Stage) -> None:
        document = stage.begin(*self.LATER, "-o", "json").json
        assert document["steps"][-1]["step"] == "wait"
        (old,) = document["remaining"]
        assert old["key"] == stage.first.uri
        until = datetime.fromisoformat(old["until"])
        assert timedelta(minutes=50) < until - datetime.now(UTC) <= timedelta(hours=1)
        check = stage("rotate", "--check", *self.LATER, "-o", "json")
        assert (check.status, check.json["due"], check.json["until"]) == (0, False, old["until"])

    def test_the_check_says_until_when_and_that_it_is_not_due(self, stage: Stage) -> None:
        stage.begin(*self.LATER)
        result = stage("rotate", "--check", *self.LATER)
        assert result.status == 0
        assert "stays registered until" in result.stdout

    def test_the_plan_shows_where_the_run_stops(self, stage: Stage) -> None:
        result = stage.begin(*self.LATER, "--dry-run")
        assert steps(result) == [*STEPS[:-1], "wait", "unregister", "keep"]
        assert "3600 s after the switch" in result.stdout

    @pytest.mark.parametrize("grace", ["-1", "1.5", "inf", "nan", "99999999999"])
    def test_an_invalid_grace_period_is_refused_before_anything_starts(self, stage: Stage, grace: str) -> None:
        assert_explained(stage.begin("--grace", grace), 2, "config_error")
        assert not stage.key_file.exists()


class TestUntilItIsDue:
    NOT_DUE = "364 days left. Nothing to do; --now rotates anyway.\n"

    def test_it_says_how_many_days_are_left_and_does_nothing_without_a_login(self, stage: Stage) -> None:
        stage.begin()
        before = stage.key_file.read_bytes(), stage.registered(), stage.on_device()
        result = stage("rotate", "--delete-old-key", "--pin-source", "env:NOT_SET")
        assert (result.status, result.stdout, result.stderr) == (0, self.NOT_DUE, "")
        assert (stage.key_file.read_bytes(), stage.registered(), stage.on_device()) == before

    def test_programs_are_told_so(self, stage: Stage) -> None:
        stage.begin()
        document = stage("rotate", "-o", "json").json
        assert (document["steps"], document["days_left"]) == ([], 364)
        assert stage("rotate", "--now", "-o", "json").json["days_left"] is None

    def test_the_plan_is_that_nothing_is_done(self, stage: Stage) -> None:
        stage.begin()
        assert stage("rotate", "--dry-run").stdout == self.NOT_DUE

    @pytest.mark.parametrize("more", [(), ("--warn-days", "40")], ids=["by default", "as told"])
    def test_it_agrees_with_the_check_about_when_that_is(self, stage: Stage, more: tuple[str, ...]) -> None:
        last = int(more[1]) if more else 30
        stage("rotate", "--adopt", stage.first.uri)
        for days, due in ((last + 1, False), (last, True)):  # by now, one day less is left
            assert stage("rotate", "--now", "--days", str(days)).status == 0
            assert stage("rotate", "--check", *more).status == int(due)
            assert bool(stage("rotate", *more, "-o", "json").json["steps"]) is due

    def test_the_first_run_only_starts_the_key_file(self, stage: Stage) -> None:
        before = stage.registered(), stage.on_device()
        result = stage("rotate", "--current", stage.first.uri, "--warn-days", "7")
        assert (result.status, result.stderr) == (0, "")
        not_due = self.NOT_DUE.replace("364", "29")
        assert result.stdout == f"adopt       {stage.key_file} now names {stage.first.uri}.\n{not_due}"
        assert (stage.registered(), stage.on_device()) == before
        assert stage.works()

    def test_a_key_that_is_named_to_be_the_next_is_not_made_to_wait(self, stage: Stage) -> None:
        made = stage.softhsm.add_identity("made elsewhere", b"\x77")
        stage("rotate", "--adopt", stage.first.uri)
        assert steps(stage("rotate", "--next", made.uri))[-1] == "keep"
        assert json.loads(stage.key_file.read_text())["key"] == made.uri


class TestAdopt:
    def test_starts_the_key_file_and_replaces_nothing(self, stage: Stage) -> None:
        before = stage.registered(), stage.on_device()
        result = stage("rotate", "--adopt", stage.first.uri)
        assert (result.status, result.stderr) == (0, "")
        assert result.stdout == f"adopt       {stage.key_file} now names {stage.first.uri}.\n"
        assert (stage.registered(), stage.on_device()) == before
        assert stage.works()
        assert steps(stage("rotate", "--now"))[-1] == "keep"

    def test_says_that_the_key_file_names_the_key_already(self, stage: Stage) -> None:
        stage("rotate", "--adopt", stage.first.uri)
        before = stage.key_file.read_bytes()
        for name in (stage.first.uri, "pkcs11:token=rolling"):
            again = stage("rotate", "--adopt", name)
            assert (again.status, again.stdout) == (0, f"{stage.key_file} names this key already. Nothing to do.\n")
        assert stage.key_file.read_bytes() == before

    def test_shows_what_it_would_do(self, stage: Stage) -> None:
        result = stage("rotate", "--adopt", stage.first.uri, "--dry-run")
        assert result.stdout == "adopt       Start the key file with this key.\n"
        assert not stage.key_file.exists()

    def test_of_a_key_without_a_certificate_is_refused(self, stage: Stage) -> None:
        bare = stage.softhsm.add_key("bare", b"\x09")
        assert_explained(stage("rotate", "--adopt", bare.uri), 5, "certificate_not_found")
        assert not stage.key_file.exists()

    @pytest.mark.parametrize("other", [("--current", "pkcs11:id=%01"), ("--next", "pkcs11:id=%01"), ("--now",)])
    def test_does_not_go_together_with_what_rotates(self, stage: Stage, other: tuple[str, ...]) -> None:
        refused = stage("rotate", "--adopt", stage.first.uri, *other)
        assert_explained(refused, 2, "config_error")
        assert f"--adopt and {other[0]} do not go together" in " ".join(refused.stderr.split())


class TestCancel:
    @pytest.fixture
    def begun(self, stage: Stage) -> Stage:
        """A rotation that waits for Entra to accept the next key."""
        stage.entra.delay_propagation(token_requests=2)
        assert stage.begin("--propagation-timeout", "0").status == 7
        stage.entra.delay_propagation()
        return stage

    def test_says_what_it_undid_and_leaves_the_key_on_the_device(self, begun: Stage) -> None:
        shown = begun("rotate", "--cancel", "--dry-run")
        result = begun("rotate", "--cancel")
        assert (result.status, result.stderr) == (0, "")
        assert steps(shown) == steps(result) == ["cancel", "unregister", "keep"]
        assert "The current key stays in use." in result.stdout
        assert begun.on_device() == (2, 2)
        (command,) = re.findall(r"To delete it: hsm-signer (.+)", result.stdout)
        assert begun(*shlex.split(command), "--yes").status == 0
        assert begun.on_device() == (1, 1)
        assert len(begun.registered()) == 1
        assert begun.works()

    def test_deletes_the_key_if_that_is_asked_for(self, begun: Stage) -> None:
        assert steps(begun("rotate", "--cancel", "--delete-old-key")) == ["cancel", "unregister", "delete"]
        assert begun.on_device() == (1, 1)
        assert begun.works()

    def test_says_that_there_is_nothing_to_give_up(self, stage: Stage) -> None:
        stage("rotate", "--adopt", stage.first.uri)
        result = stage("rotate", "--cancel", "--pin-source", "env:NOT_SET")
        assert (result.status, result.stdout, result.stderr) == (0, "No rotation was begun. Nothing to do.\n", "")

    def test_is_refused_after_the_switch_with_the_command_that_goes_back(self, stage: Stage) -> None:
        later = ("--grace", "3600")
        stage.begin(*later)
        refused = stage("rotate", "--cancel", *later)
        assert_explained(refused, 2, "config_error")
        (back,) = commands(refused)
        assert stage(*back, *later).status == 0
        assert json.loads(stage.key_file.read_text())["key"] == stage.first.uri
        assert stage.works()


class TestTheCheck:
    def test_a_certificate_with_time_left_is_not_due(self, stage: Stage) -> None:
        stage.begin()
        result = stage("rotate", "--check")
        assert (result.status, result.stderr) == (0, "")
        assert "days left" in result.stdout

    def test_the_exit_status_shows_that_the_certificate_is_due(self, stage: Stage) -> None:
        stage.begin("--days", "20")
        result = stage("rotate", "--check", "-o", "json")
        assert result.status == 1
        assert result.json == {"due": True, "days_left": 19, "unfinished": False, "until": None}

    def test_an_unfinished_rotation_is_reported(self, stage: Stage) -> None:
        stage.entra.answer_next_graph(GraphRefusal("Request_BadRequest", "No.", 400))
        stage.begin()
        assert stage("rotate", "--check", "-o", "json").json["unfinished"]

    def test_the_check_does_not_log_in(self, stage: Stage) -> None:
        stage.begin()
        result = stage("rotate", "--check", "--pin-source", "env:NOT_SET")
        assert result.status == 0


class TestErrors:
    def test_a_profile_without_a_key_file_is_refused(self, stage: Stage) -> None:
        result = stage("rotate", "--key", stage.first.uri)
        assert result.status == 2
        assert 'key = "file:PATH"' in result.stderr

    def test_without_a_current_key_it_is_refused(self, stage: Stage) -> None:
        result = stage("rotate")
        assert result.status == 2
        assert "rotate --adopt URI" in result.stderr

    def test_a_certificate_in_a_file_is_refused(self, stage: Stage) -> None:
        result = stage.begin("--certificate", "app.pem")
        assert result.status == 2
        assert "would not be for the new key" in result.stderr

    def test_a_current_key_that_is_not_on_the_device_is_refused(self, stage: Stage) -> None:
        result = stage("rotate", "--current", "pkcs11:token=rolling;id=%99")
        assert result.status == 5
        assert not stage.key_file.exists()

    def test_if_a_policy_caps_the_lifetime_it_stops_until_fewer_days_are_requested(self, stage: Stage) -> None:
        stage.entra.restrict_certificates(max_lifetime=timedelta(days=100))
        result = stage.begin()
        assert result.status == 7
        assert "--days" in result.stderr
        assert stage.works()
        again = stage("rotate", "--days", "90", "--delete-old-key")
        assert steps(again) == ["certify", *STEPS[3:], "delete"]
        assert stage.on_device() == (1, 1)

    def test_if_a_policy_requires_a_ca_it_stops_until_the_certificate_is_stored(self, stage: Stage) -> None:
        authority = Authority()
        stage.entra.restrict_certificates(issuer=authority.certificate)
        before = stage.registered()
        refused = stage.begin()
        assert refused.status == 7
        assert stage.works()
        asked, stored = commands(refused)
        told = stage("rotate", "-o", "json").error["commands"]
        assert [shlex.split(command)[1:] for command in told] == [asked, stored]
        request = stage(*asked)
        assert request.status == 0, request.stderr
        stage.program.directory.joinpath("next.pem").write_bytes(
            authority.sign(stage.program.directory.joinpath("next.csr").read_bytes())
        )
        assert stage(*stored).status == 0
        assert stage.works()
        done = stage("rotate", "--delete-old-key")
        assert steps(done) == [*STEPS[3:], "delete"]
        (held,) = stage.entra.key_credentials(CLIENT, tenant=TENANT)
        assert held.certificate.issuer == authority.name
        assert held.certificate.subject == x509.load_der_x509_certificate(stage.first.certificate or b"").subject
        assert stage.registered() != before
        assert stage.on_device() == (1, 1)
        assert stage.works()

    def test_the_commands_in_an_error_repeat_how_the_profile_was_chosen(self, stage: Stage) -> None:
        stage.entra.restrict_certificates(issuer=Authority().certificate)
        config = stage.program.directory / "config.toml"
        config.rename(config.with_name("it's.toml"))
        chosen = ["--config", "it's.toml", "--profile", "default"]
        refused = stage(*chosen, "rotate", "--now", "--current", stage.first.uri, "--module", str(stage.softhsm.module))
        assert [command[:4] for command in commands(refused)] == [chosen, chosen]
        assert stage(*commands(refused)[0]).status == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            pytest.param(["--bits", "1000"], id="bits"),
            pytest.param(["--subject", "nonsense"], id="subject"),
            pytest.param(["--next", "pkcs11:token=a;token=b"], id="URI"),
            pytest.param(["--next", "pkcs11:token=a?pin-value=4711"], id="PIN in a URI"),
            pytest.param(["--graph", "https://graph.example.com"], id="Graph"),
        ],
    )
    def test_wrong_input_is_refused_before_anything_starts(self, stage: Stage, wrong: list[str]) -> None:
        result = stage.begin(*wrong)
        assert result.status == 2
        assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["error", "hint"]
        assert "4711" not in result.stderr
        assert not stage.key_file.exists()

    @pytest.mark.parametrize("option", ["--current", "--adopt"])
    def test_where_the_key_file_names_another_key_than_the_command_line(self, stage: Stage, option: str) -> None:
        other = stage.softhsm.add_identity("other", b"\x02")
        stage("rotate", "--adopt", stage.first.uri)
        before = stage.key_file.read_bytes(), stage.registered()
        refused = stage("rotate", option, other.uri)
        assert_explained(refused, 2, "config_error")
        assert other.uri in refused.stderr
        assert stage.first.uri in refused.stderr
        assert "rotate --next" in refused.stderr
        assert (stage.key_file.read_bytes(), stage.registered()) == before

    def test_the_next_run_does_not_send_a_wrong_pin_again(self, stage: Stage) -> None:
        wrong = {**stage.environment, "DEVICE_PIN": "0815"}
        first, second = (
            stage.program("rotate", "--current", stage.first.uri, "-o", "json", environment=wrong) for _ in range(2)
        )
        assert (first.status, second.status) == (4, 4)
        assert (first.error["code"], second.error["code"]) == ("pin_incorrect", "pin_refused_before")


class TestTheCertificateInUse:
    """If it were replaced, programs would use one that Entra does not know."""

    @pytest.fixture
    def renewed(self, stage: Stage) -> str:
        """The path of another certificate for the first key."""
        stage.begin()
        current = stage.entra.key_credentials(CLIENT, tenant=TENANT)[0].public_key
        file = stage.program.directory / "renewed.der"
        file.write_bytes(stage.softhsm.issue_certificate(current))
        return str(file)

    @pytest.mark.parametrize("named", [False, True], ids=["by the key file", "by --key, in other words"])
    def test_it_is_not_replaced_by_accident(self, stage: Stage, renewed: str, named: bool) -> None:
        current = json.loads(stage.key_file.read_text())["key"]
        key = ["--key", current.partition(";id=")[0]] if named else []
        before = stage.on_device(), stage.registered()
        for command in (["import", renewed], ["create", "--subject", "CN=app"]):
            refused = stage("certificate", *command, "--replace", *key)
            assert_explained(refused, 5, "certificate_exists")
            assert "--force" in refused.stderr
        assert (stage.on_device(), stage.registered()) == before
        assert stage.works()

    def test_it_is_replaced_with_force(self, stage: Stage, renewed: str) -> None:
        assert stage("certificate", "import", renewed, "--replace", "--force").status == 0
        assert not stage.works()

    def test_a_certificate_is_not_in_use_if_the_key_file_names_another_key(self, stage: Stage, renewed: str) -> None:
        create = ("certificate", "create", "--subject", "CN=app", "--replace", "--key", stage.first.uri)
        assert stage(*create).status == 0
        assert stage.works()

    def test_a_certificate_is_stored_if_the_key_has_none_yet(self, stage: Stage) -> None:
        key = stage.softhsm.add_key("new", b"\x05")
        stage.key_file.write_text(json.dumps({"key": key.uri}))
        assert stage("certificate", "create", "--subject", "CN=app", "--replace").status == 0

    def test_if_deleting_the_key_is_refused_its_certificate_is_kept(self, stage: Stage, renewed: str) -> None:
        current = json.loads(stage.key_file.read_text())["key"]
        before = stage.on_device()
        for named in ([], ["--key", current.partition(";id=")[0]]):
            assert_explained(stage("key", "delete", "--yes", *named), 2, "config_error")
        assert stage.on_device() == before
        assert stage("key", "delete", "--yes", "--certificate", "--key", stage.first.uri).status == 0
        assert stage.works()


def test_the_command_that_deletes_an_old_key_names_it(stage: Stage) -> None:
    result = stage.begin()
    (command,) = re.findall(r"To delete it: hsm-signer (.+)", result.stdout)
    assert stage(*shlex.split(command), "--yes").status == 0
    assert stage.on_device() == (1, 1)
    assert stage.works()


def test_a_command_without_the_key_file_says_how_to_create_it(stage: Stage) -> None:
    result = stage("token")
    assert_explained(result, 2, "config_error")
    assert "rotate --adopt URI" in result.stderr


def test_a_run_without_a_current_key_is_explained(stage: Stage) -> None:
    result = stage("rotate")
    assert_explained(result, 2, "config_error")


def test_the_date_in_the_label_is_utc(stage: Stage) -> None:
    result = stage.begin()
    assert f"app-{datetime.now(UTC):%Y%m%d}" in result.stdout
