"""Entra is asked again and again with one assertion, until it would expire."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from hsm_signer.credential.identity import Identity
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.token import AccessToken
from hsm_signer.errors import EntraError, NetworkError
from hsm_signer.setup import registration
from hsm_signer.setup.registration import INTERVAL, Registration

LIFETIME = 600


@dataclass
class World:
    """Entra, which gives these answers, and what the device signed for it."""

    answers: list[Exception | None]
    now: float = 1_000_000.0
    signed: list[float] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    client: Any = None

    def assertion(self, audience: str, lifetime: int) -> str:
        assert lifetime == LIFETIME
        self.signed.append(self.now)
        return f"assertion {len(self.signed)}"

    def request(self, endpoint: object, form: dict[str, Any], http: object, now: object) -> AccessToken:
        assert self.now - self.signed[-1] < LIFETIME
        self.sent.append(form["client_assertion"].reveal())
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return AccessToken("token", "Bearer", 3599, int(self.now) + 3599, None, "scope")

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def unknown(number: int = 700027) -> EntraError:
    return EntraError("The certificate is not registered.", aadsts=number)


def registration_of(world: World, monkeypatch: pytest.MonkeyPatch) -> Registration:
    monkeypatch.setattr(registration, "request_token", world.request)

    class Client:
        client_id = "app"
        endpoint = type("Endpoint", (), {"audience": "https://login.example"})

    world.client = Client
    return Registration(
        cast(Identity, world),
        "scope",
        cast(HttpClient, None),
        LIFETIME,
        now=lambda: world.now,
        sleep=world.sleep,
    )


def test_one_signature_serves_until_it_would_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    many = int(2 * LIFETIME / INTERVAL)
    world = World([unknown() for _ in range(many)] + [None])
    registration_of(world, monkeypatch).wait()
    assert len(world.sent) == many + 1
    assert len(world.signed) == 3


@pytest.mark.parametrize("number", [700016, 700027])
def test_an_unknown_app_or_certificate_is_waited_for(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    assert not registration_of(World([unknown(number)]), monkeypatch).is_accepted()


def test_a_network_that_fails_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World([NetworkError("down"), unknown(), None])
    registration_of(world, monkeypatch).wait()
    assert len(world.sent) == 3


def test_any_other_refusal_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EntraError):
        registration_of(World([unknown(), unknown(90002)]), monkeypatch).wait()
