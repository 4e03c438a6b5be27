"""Everything between a configuration and an access token, examined one thing after the other.

    for name, verdict in examine(profile):
        print(name, verdict.status, verdict.detail)

A probe that fails stops only those that need its value. There is one login, also where the session is lost, and one
signature: the assertion that the device signs is the one that is then exchanged, so that a key that requires a touch
requires one touch.
"""

import time
from collections.abc import Callable, Generator

from hsm_signer.config.profile import Profile
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.doctor.examination import Examination
from hsm_signer.doctor.probes import PROBES
from hsm_signer.doctor.verdicts import Verdict


def examine(
    profile: Profile,
    operator: Operator = UNATTENDED,
    *,
    offline: bool = False,
    now: Callable[[], float] = time.time,
) -> Generator[tuple[str, Verdict], None, None]:
    """Examine the first key of a profile and everything it depends on.

    Raises nothing but what interrupts the program. To stop early, close the generator: that closes the device.

    Args:
        operator: who can be asked for the PIN, and is told to touch the device.
        offline: skip what needs the network.
        now: the clock, epoch seconds.

    Yields:
        The name of each probe and its verdict, as soon as it is done.
    """
    examination = Examination(profile, operator, offline=offline, now=now)
    with examination.resources:
        for probe in PROBES:
            yield probe.name, examination.verdict(probe)
