"""Find the module that leads to a device: the one that is named, else the one that shows a device that matches.

Every module is looked through in a process of its own, all at the same time. Only the one that leads to the device is
then loaded into this process.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.child import parent_channel
from hsm_signer.device.elsewhere import ask_elsewhere
from hsm_signer.device.lane import MOMENT, Lane, Slow
from hsm_signer.device.match import (
    DeviceInfo,
    device_uri_text,
    device_uris,
    key_options,
    led_by,
    matches_device,
    several_devices,
)
from hsm_signer.device.module_search import ModuleReference, find_module, is_name, modules_to_search, no_modules
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceAmbiguous, DeviceError, DeviceNotFound, HsmSignerError
from hsm_signer.system.threads import NO_THREAD_HINT

_PROGRAM = "hsm_signer.device.search"


@dataclass(frozen=True)
class Look:
    """Message from the parent: the module to look through. The answer is `Seen`."""

    path: Path
    name: str | None
    timeout: float


@dataclass(frozen=True)
class Seen:
    """What a module shows.

    Attributes:
        devices: those that are plugged in.
        uses_readers: whether it reaches its devices through smart-card readers.
        reason: why there is none, if that is known.
    """

    devices: tuple[DeviceInfo, ...] = ()
    uses_readers: bool = False
    reason: HsmSignerError | None = None


def find_way(access: KeyAccess, lane: Lane | None = None) -> KeyAccess:
    """Return how to get to a key, with a URI that leads to its module. Waits for the device where `access` says so.

    Raises:
        ModuleLoadError: there is no such module, or none at all.
        DeviceNotFound, DeviceAmbiguous: no module was named, and no device of this machine matches, or several do.
    """
    uri = access.uri
    if access.module is not None:
        if is_name(access.module):
            return replace(access, module=None, uri=replace(uri, module_name=str(access.module), module_path=None))
        path = find_module(access.module, uri)
        return replace(access, module=path, uri=replace(uri, module_name=None, module_path=str(path)))
    if uri.module_name is not None or uri.module_path is not None:
        return access
    while True:
        if not (modules := modules_to_search()):
            raise no_modules()
        if lane is not None:
            lane.announce("looking for the device", access.timeout)
        seen = look_through_all(modules, access.module_environment, access.timeout, access.operator.slow)
        try:
            found = choose_module(uri, list(zip(modules, seen, strict=True)))
            return replace(access, uri=led_by(_origin(found), uri))
        except DeviceNotFound as error:
            if access.operator.wait is None:
                raise
            access.operator.wait(error)


def choose_module(uri: Pkcs11Uri, seen: Sequence[tuple[ModuleReference, Seen]]) -> ModuleReference:
    """Return the module that shows the one device that `uri` means; pure.

    Two modules may show one smart card: it is in the same reader. The first of them serves it.

    Raises:
        DeviceNotFound: no device matches. The commands have a URI for each that there is, or fix what keeps modules
            from showing theirs.
        DeviceAmbiguous: several match. The commands have a URI for each.
    """
    devices = [(module, device, result) for module, result in seen for device in result.devices]
    matching: list[tuple[ModuleReference, DeviceInfo]] = []
    readers: dict[str, ModuleReference] = {}
    for module, device, result in devices:
        if not matches_device(uri, device):
            continue
        if result.uses_readers and readers.setdefault(device.slot_description, module) is not module:
            continue
        matching.append((module, device))
    if len(matching) == 1:
        return matching[0][0]
    wanted = device_uri_text(uri)
    if matching:
        raise DeviceAmbiguous(
            several_devices(len(matching), uri), hint="Choose one of them:", commands=_options(matching)
        )
    if devices:
        raise DeviceNotFound(
            f"No device of this machine matches {wanted}.",
            hint="Plug the device in, or use one of these:",
            commands=_options([(module, device) for module, device, _ in devices]),
        )
    raise _nothing_found([module for module, _ in seen], [result.reason for _, result in seen])


def look_through_all(
    modules: Sequence[ModuleReference], environment: Mapping[str, str], timeout: float, slow: Slow
) -> list[Seen]:
    """Return what each module shows. Nothing that one of them does keeps the others from it.

    Args:
        environment: variables set before a module loads.
        timeout: seconds one call into a module may take.
        slow: shows a person that it takes longer than a moment.
    """
    answers: queue.SimpleQueue[tuple[int, Seen]] = queue.SimpleQueue()

    def look(index: int, module: ModuleReference) -> None:
        question = Look(module.path, module.name, timeout)
        try:
            seen = ask_elsewhere(_PROGRAM, question, Seen, module.path, environment, timeout, _silent)
        except HsmSignerError as error:
            seen = Seen(reason=error)
        except Exception as error:
            # A thread of ours must answer.
            unknown = DeviceError(f"{module.path} could not be looked through ({type(error).__name__}).", hint=_OTHERS)
            seen = Seen(reason=unknown)
        answers.put((index, seen))

    for index, module in enumerate(modules):
        # A daemon: Ctrl-C does not wait for it, and its process dies with it.
        try:
            threading.Thread(target=look, args=(index, module), daemon=True).start()
        except RuntimeError:
            message = f"No thread could be started to look through {module.path}."
            answers.put((index, Seen(reason=DeviceError(message, hint=NO_THREAD_HINT))))
    found: dict[int, Seen] = {}

    def collect(seconds: float | None) -> None:
        while len(found) < len(modules):
            index, seen = answers.get(timeout=seconds)
            found[index] = seen

    try:
        collect(MOMENT)
    except queue.Empty:
        with slow("looking for devices"):
            collect(None)
    return [found[index] for index in range(len(modules))]


def main() -> NoReturn:
    """Look through the module that the parent names, and send it what there is."""
    channel = parent_channel(Look)
    # If the parent has ended, nobody needs the answer.
    with contextlib.suppress(EOFError, OSError):
        wanted: Look = channel.receive()
        channel.send(_look(wanted))
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)


_OTHERS = "The other modules are not affected."


def _look(wanted: Look) -> Seen:
    from hsm_signer.device.locate import present_devices
    from hsm_signer.device.module import load_module
    from hsm_signer.device.stack.pcscd import reader_library
    from hsm_signer.device.stack.stack import reason_of_absence

    origin = _origin(ModuleReference(wanted.path, wanted.name))
    try:
        module = load_module(find_module(None, origin), {}, wanted.timeout)

        def look() -> Seen:
            devices = tuple(found.info for found in present_devices(module, origin))
            reason = None if devices else reason_of_absence(module.path)
            return Seen(devices, reader_library() is not None, reason)

        return module.call("looking for devices", look, wanted.timeout)
    except HsmSignerError as error:
        return Seen(reason=error)


def _origin(module: ModuleReference) -> Pkcs11Uri:
    """Return what of a URI leads to a module."""
    if module.name is not None:
        return Pkcs11Uri(module_name=module.name)
    return Pkcs11Uri(module_path=str(module.path))


def _options(devices: Sequence[tuple[ModuleReference, DeviceInfo]]) -> tuple[str, ...]:
    uris = device_uris([device for _, device in devices])
    return key_options(led_by(_origin(module), uri) for (module, _), uri in zip(devices, uris, strict=True))


def _nothing_found(modules: Sequence[ModuleReference], reasons: Sequence[HsmSignerError | None]) -> HsmSignerError:
    """Return the error when no module shows a device: the reason, if they all have the same, else where to see them."""
    names = ", ".join(module.name or str(module.path) for module in modules)
    told = {reason.message: reason for reason in reasons if reason is not None}
    if len(told) == 1:
        (reason,) = told.values()
        message = f"No device was found through {names}. {reason.message}"
        return DeviceNotFound(message, hint=reason.hint, commands=reason.commands)
    return DeviceNotFound(
        f"No device was found through {names}.",
        hint="Plug the device in. If it is, see what is missing:",
        commands=("hsm-signer doctor",),
    )


@contextlib.contextmanager
def _silent(what: str) -> Iterator[None]:
    """Show nothing: one cue for all is enough."""
    yield
