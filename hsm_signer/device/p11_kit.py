"""Find out which devices of p11-kit's proxy belong to one module.

The proxy shows the devices of all modules and does not say which module each belongs to. p11-kit's own functions do;
the proxy's library exports them as well as those of PKCS#11 (p11-kit/p11-kit.h).
"""

import ctypes
from pathlib import Path

from hsm_signer.errors import DeviceError, ModuleLoadError

_OK = 0
_Ulongs = ctypes.POINTER(ctypes.c_ulong)


class _FunctionList(ctypes.Structure):
    """The beginning of CK_FUNCTION_LIST (PKCS#11 v3.1 section 5.4.4)."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("C_Initialize", ctypes.c_void_p),
        ("C_Finalize", ctypes.c_void_p),
        ("C_GetInfo", ctypes.c_void_p),
        ("C_GetFunctionList", ctypes.c_void_p),
        ("C_GetSlotList", ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ubyte, _Ulongs, _Ulongs)),
        ("C_GetSlotInfo", ctypes.c_void_p),
        ("C_GetTokenInfo", ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong, ctypes.c_char_p)),
    )


def devices_of_module(proxy: Path, name: str) -> set[tuple[str, ...]]:
    """Return label, manufacturer, model and serial of each device of a module. Runs on the lane.

    Args:
        proxy: p11-kit's proxy, loaded and initialised.
        name: the module's name in p11-kit's configuration.

    Raises:
        ModuleLoadError: p11-kit does not load the module.
        DeviceError: the module failed.
    """
    kit = ctypes.CDLL(str(proxy))
    kit.p11_kit_modules_load.restype = ctypes.c_void_p
    kit.p11_kit_modules_release.argtypes = [ctypes.c_void_p]
    kit.p11_kit_module_for_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    kit.p11_kit_module_for_name.restype = ctypes.POINTER(_FunctionList)
    kit.p11_kit_module_initialize.restype = ctypes.c_ulong
    modules = kit.p11_kit_modules_load(None, 0)
    if modules is None:
        raise _not_served(name)
    try:
        module = kit.p11_kit_module_for_name(modules, name.encode())
        if not module:
            raise _not_served(name)
        _require_ok(name, kit.p11_kit_module_initialize(module))
        try:
            return set(_devices(name, module.contents))
        finally:
            kit.p11_kit_module_finalize(module)
    finally:
        kit.p11_kit_modules_release(modules)


def _devices(name: str, module: _FunctionList) -> list[tuple[str, ...]]:
    count = ctypes.c_ulong()
    _require_ok(name, module.C_GetSlotList(True, None, ctypes.byref(count)))
    slots = (ctypes.c_ulong * count.value)()
    _require_ok(name, module.C_GetSlotList(True, slots, ctypes.byref(count)))
    info = ctypes.create_string_buffer(512)
    # CK_TOKEN_INFO (PKCS#11 v3.1 section 3.2) begins with these, padded with spaces.
    fields = (slice(0, 32), slice(32, 64), slice(64, 80), slice(80, 96))
    return [
        tuple(info.raw[field].decode(errors="replace").strip("\0 ") for field in fields)
        for slot in slots[: count.value]
        if module.C_GetTokenInfo(slot, info) == _OK
    ]


def _not_served(name: str) -> ModuleLoadError:
    return ModuleLoadError(
        f"p11-kit does not load the module {name} of its configuration.",
        hint="To see which modules it loads, and why it does not load this one, run: p11-kit list-modules",
    )


def _require_ok(name: str, rv: int) -> None:
    if rv != _OK:
        raise DeviceError(
            f"p11-kit's module {name} failed while looking for devices (0x{rv:x}).",
            hint=f"Check the file {name}.module in p11-kit's configuration: the library that it names must exist.",
        )
