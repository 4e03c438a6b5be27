"""For any key file that a person could write: after any run, its current key is on the device and registered."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_signer.config.keyfile import KeyEntry, KeyFile, write_key_file
from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.credential.tokens import Tokens
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.request import RotationRequest
from hsm_signer.rotation.rotation import Rotation
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.names import GRAPH, PIN, TENANT

NUMBERS = {"one": b"\x01", "two": b"\x02", "three": b"\x03"}


def spelled(name: str) -> st.SearchStrategy[Pkcs11Uri]:
    """The URIs by which a person may name a key."""
    key_id = NUMBERS.get(name, b"\x04")
    full = Pkcs11Uri(token="rolling", object=name, id=key_id)
    return st.sampled_from(
        [full, Pkcs11Uri(object=name), Pkcs11Uri(token="rolling", id=key_id), Pkcs11Uri(object=name, type="private")]
    )


class CutOff(Exception):
    """The run ends here, like in a power cut."""


anything = st.sampled_from([*NUMBERS, "gone"])


@dataclass(frozen=True)
class Written:
    """A key as a person may have written it: by one of its names, with the credential id of some key, or none."""

    uri: Pkcs11Uri
    registered: bool
    credential: str | None


def written(name: st.SearchStrategy[str]) -> st.SearchStrategy[Written]:
    return st.builds(Written, name.flatmap(spelled), st.booleans(), st.none() | anything)


@dataclass(frozen=True)
class Stage:
    """A device with three keys that can be restored, and an Entra that lists credentials and one that does not."""

    softhsm: SoftHsm
    keys: dict[str, SoftHsmKey]
    entra: dict[bool, EntraEmulator]
    restore: Callable[[], None]

    def profile(self, client: str, file: Path, lists: bool, grace: int = 0) -> Profile:
        return profile_from_arguments(
            {
                "tenant": TENANT,
                "client_id": client,
                "key": f"file:{file}",
                "authority": self.entra[lists].authority,
                "module": str(self.softhsm.module),
                "module_environment": self.softhsm.environment,
                "pin_source": "env:DEVICE_PIN",
                "pin_record": False,
                "network_timeout": 5,
                "grace": grace,
                "object_id": self.entra[lists].object_id(client, tenant=TENANT),
            }
        )


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with (
        SoftHsm(label="rolling", pin=PIN) as softhsm,
        EntraEmulator(https=False) as lists,
        EntraEmulator(https=False, forbid_listing=True) as does_not,
    ):
        keys = {name: softhsm.add_identity(name, key_id) for name, key_id in NUMBERS.items()}
        (token,) = (softhsm.directory / "tokens").iterdir()
        files = {file: file.read_bytes() for file in token.iterdir()}

        def restore() -> None:
            for file in token.iterdir():
                if file not in files:
                    file.unlink()
            for file, content in files.items():
                if not file.exists() or file.read_bytes() != content:
                    file.write_bytes(content)

        yield Stage(softhsm, keys, {True: lists, False: does_not}, restore)


@pytest.mark.usefixtures("device_pin")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    current=written(st.sampled_from([*NUMBERS])),
    following=st.none() | written(anything),
    retired=st.lists(written(anything), max_size=2),
    registered=st.sets(st.sampled_from([*NUMBERS])),
    named=st.none() | anything.flatmap(spelled),
    delete_old=st.booleans(),
    lists=st.booleans(),
    grace=st.sampled_from([0, 0, 4200]),
    cut=st.none() | st.integers(1, 5),
)
def test_after_any_run_the_current_key_works(
    stage: Stage,
    tmp_path: Path,
    current: Written,
    following: Written | None,
    retired: list[Written],
    registered: set[str],
    named: Pkcs11Uri | None,
    delete_old: bool,
    lists: bool,
    grace: int,
    cut: int | None,
) -> None:
    stage.restore()
    client, entra = str(uuid.uuid4()), stage.entra[lists]
    by_uri = {uri: name for name, key_id in NUMBERS.items() for uri in (name, key_id)}
    in_use = by_uri[current.uri.object or current.uri.id or ""]
    for name in {in_use, *registered}:
        certificate = stage.keys[name].certificate
        assert certificate is not None
        entra.register(client, certificate, tenant=TENANT)
    ids = {
        name: held.key_id
        for held in entra.key_credentials(client, tenant=TENANT)
        for name, key in stage.keys.items()
        if key.public_key == held.public_key
    }

    def filed(key: Written) -> KeyEntry:
        credential = None if key.credential is None else ids.get(key.credential, str(uuid.uuid4()))
        return KeyEntry(key.uri, key.registered, credential)

    file = tmp_path / "key.json"
    coming = None if following is None else filed(following)
    write_key_file(file, KeyFile(filed(current), coming, tuple(filed(each) for each in retired)))
    request = RotationRequest(next_key=named, delete_old=delete_old, propagation=0)
    taken: list[Step] = []

    def report(step: Step, text: str) -> None:
        taken.append(step)
        if len(taken) == cut:
            raise CutOff

    failure: Exception | None = None
    try:
        with Rotation(stage.profile(client, file, lists, grace), request, report=report) as rotation:
            rotation.run()
    except (HsmSignerError, CutOff) as error:
        failure = error
    with Tokens(stage.profile(client, file, lists)) as tokens:
        assert tokens.get(tokens.build_query((GRAPH,))).token, (taken, failure)
