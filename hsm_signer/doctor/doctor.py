"""Check everything from the configuration to an access token, one probe after the other.

    for name, verdict in examine(profile):
        print(name, verdict.status, verdict.detail)

A probe that fails stops only the probes that need its value. There is one login, even if the session is lost, and one
signature: the assertion that the device signs is then exchanged for a token, so a key that requires a touch requires
only one.
"""

import time
from collections.abc import Callable, Collection, Generator

from hsm_signer.config.profile import Profile
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.device import Device
from hsm_signer.doctor.examination import Examination
from hsm_signer.doctor.machine import examine_machine
from hsm_signer.doctor.probes import PROBES
from hsm_signer.doctor.verdicts import Verdict, skipped


def examine(
    profile: Profile,
    operator: Operator = UNATTENDED,
    *,
    offline: bool = False,
    opened: Device | None = None,
    without: Collection[str] = (),
    now: Callable[[], float] = time.time,
) -> Generator[tuple[str, Verdict], None, None]:
    """Check the first key of a profile and everything it depends on; with nothing configured, this machine.

    It raises only what interrupts the program, such as KeyboardInterrupt. To stop early, close the generator: that
    closes the device.

    Args:
        operator: how to reach the person who enters the PIN and touches the device.
        offline: skip what needs the network.
        opened: a device that is open already. If it is the profile's, it is used, and stays open.
        without: names of checks to leave out.
        now: the clock, epoch seconds.

    Yields:
        The name of each probe and its verdict, as soon as it is done. Of this machine, several have the same name.
    """
    if not _is_configured(profile):
        yield (
            "configuration",
            skipped(
                "Nothing is configured, so only this machine was checked: its modules and devices.",
                "Set up a profile, or name a key to check it as well:",
                ("hsm-signer init", "hsm-signer doctor --key URI"),
            ),
        )
        yield from examine_machine(profile, operator)
        return
    examination = Examination(profile, operator, offline=offline, opened=opened, now=now)
    with examination.resources:
        for probe in (each for each in PROBES if each.name not in without):
            yield probe.name, examination.verdict(probe)


def _is_configured(profile: Profile) -> bool:
    """Return whether any setting says who the client is, or which key it has."""
    settings = (profile.tenant, profile.client_id, profile.key, profile.key_file, profile.authority)
    return any((*settings, profile.token_endpoint, profile.certificate, profile.scope))
