"""Checks what needs no configuration: the modules of this machine, pcscd, and what is on the devices. Never logs in."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hsm_signer.config.profile import Profile
from hsm_signer.device.access import Operator
from hsm_signer.device.inventory.facts import DeviceFacts, ModuleFacts, Problem
from hsm_signer.device.inventory.survey import survey
from hsm_signer.device.match import key_options
from hsm_signer.device.module_search import modules_to_search, no_modules
from hsm_signer.device.pin.state import PinState
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.doctor.verdicts import Verdict, failed, ok, skipped, warning
from hsm_signer.errors import HsmSignerError
from hsm_signer.x509.requirements import RENEWAL_DAYS

Row = tuple[str, Verdict]
"""The name of a check, and its verdict."""


def examine_machine(profile: Profile, operator: Operator) -> Iterator[Row]:
    """Look through every module, and yield the name of each check and its verdict.

    Args:
        profile: for a module to look through first, its environment, and the time limit.
        operator: is shown what takes long.
    """
    try:
        modules = modules_to_search(profile.module)
        if not modules:
            raise no_modules()
    except HsmSignerError as error:
        yield "module", failed(error.message, error.hint, error.commands)
        return
    found = [
        survey(module, profile.module_environment, profile.device_timeout, operator.slow, contents=True)
        for module in modules
    ]
    yield from judge_machine(found)


def judge_machine(modules: Sequence[ModuleFacts]) -> Iterator[Row]:
    """Judge what was seen of a machine; pure. A module without a device is no failure if another one has one."""
    problems = _grouped(modules)
    for module in modules:
        if module.library is not None:
            yield "module", ok(_described(module))
    for problem, concerned in problems:
        names = ", ".join(module.name or module.path for module in concerned)
        yield _name(problem), warning(f"{names}: {problem.message}", problem.hint, problem.commands)
    if any(module.uses_readers for module in modules) and "pcscd" not in {_name(problem) for problem, _ in problems}:
        yield "pcscd", ok("pcscd answers, and accepts this user.")
    devices = [(module, device) for module in modules for device in module.devices]
    if not devices:
        yield "device", failed("No device was found.", "Fix one of the above, or plug your device in.")
    in_readers: dict[str, ModuleFacts] = {}
    for module, device in devices:
        first = in_readers.setdefault(device.info.slot_description, module) if module.uses_readers else module
        if first is module:
            yield from _judge_device(device)
        else:
            same = f"{device.info}, seen through {module.name or module.path}, is the card above."
            yield "device", ok(same, key_options([Pkcs11Uri.parse(device.uri)]))


def _described(module: ModuleFacts) -> str:
    library = module.library
    assert library is not None  # noqa: S101  # the caller has checked
    name = f"{module.name}, " if module.name else ""
    return f"{name}{module.path}: {library.description}, {library.version}, by {library.manufacturer}."


def _grouped(modules: Sequence[ModuleFacts]) -> list[tuple[Problem, list[ModuleFacts]]]:
    """Return each problem once, with the modules that have it. What several wait for is one thing to fix."""
    grouped: dict[Problem, list[ModuleFacts]] = {}
    for module in modules:
        problem = module.problem or module.absence
        if problem is not None:
            # Modules fail differently for the same reason.
            grouped.setdefault(replace(problem, code=""), []).append(module)
    return list(grouped.items())


def _name(problem: Problem) -> str:
    return "pcscd" if problem.message.startswith("pcscd") else "module"


def _judge_device(device: DeviceFacts) -> Iterator[Row]:
    info = device.info
    name = repr(info.label or info.model or info.slot_description)
    use = key_options([Pkcs11Uri.parse(device.uri)])
    if device.problem is not None:
        yield "device", warning(f"{info}: {device.problem.message}", device.problem.hint, device.problem.commands)
    else:
        yield "device", ok(f"{info}.", use)
    yield "pin", _judge_pin(device, name)
    contents = device.contents
    if contents is None:
        return
    if contents.keys:
        for key in contents.keys:
            what = f"{key.label!r} on {name}, id {key.id.hex() or 'none'}"
            if key.problem is not None:
                yield "key", warning(f"{what}: {key.problem.message}", key.problem.hint)
            else:
                uri = Pkcs11Uri.parse(key.uri)
                yield "key", ok(f"{what}, {key.kind}, {key.bits} bits.", key_options([uri]))
    elif contents.hidden:
        show = f"hsm-signer key list {use[0]}"
        yield "key", skipped(f"{name} shows its private keys only after a login.", "List them:", (show,))
    else:
        make = f"hsm-signer key generate --label NAME {use[0]}"
        yield "key", warning(f"There is no private key on {name}.", "Generate one:", (make,))
    for certificate in contents.certificates:
        if certificate.attestation:
            continue
        if certificate.problem is not None:
            message, hint = certificate.problem.message, certificate.problem.hint
            yield "certificate", warning(f"{certificate.label!r} on {name}: {message}", hint)
        elif certificate.days_left is not None and certificate.not_after is not None:
            detail = (
                f"{certificate.subject} on {name}, id {certificate.id.hex() or 'none'}. "
                f"Valid until {certificate.not_after:%Y-%m-%d} ({certificate.days_left} days left)."
            )
            if certificate.days_left < RENEWAL_DAYS:
                yield "certificate", warning(detail, "Create the next certificate before this one expires.")
            else:
                yield "certificate", ok(detail)


def _judge_pin(device: DeviceFacts, name: str) -> Verdict:
    match device.pin:
        case PinState.NOT_NEEDED:
            return ok(f"{name} needs no PIN.")
        case PinState.FINE:
            return ok(f"No wrong PIN since the last login to {name}.")
        case PinState.COUNT_LOW:
            return warning(
                f"A wrong PIN was sent to {name} since the last login.",
                "Make sure that the next PIN is right: devices lock after a few wrong ones.",
            )
        case PinState.LAST_TRY:
            return warning(
                f"{name} has one PIN try left: a wrong PIN locks it.",
                "Log in once with the right PIN, in the device's own tool.",
            )
        case PinState.LOCKED:
            return failed(f"{name} is locked after too many wrong PINs.", "Unblock it with the device's own tool.")
        case PinState.NOT_SET:
            return warning(f"No PIN is set on {name}.", "Set the user PIN with the device's own tool.")
