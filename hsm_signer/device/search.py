"""Searching a device for objects, so that a search that fails leaves nothing behind."""

import contextlib
from collections.abc import Mapping
from typing import Any

import pkcs11
from pkcs11 import Attribute
from pkcs11._pkcs11 import SearchIter  # type: ignore[attr-defined]  # behind Session.get_objects
from pkcs11.types import Object, Session

_BATCH = 10


def search(session: Session, template: Mapping[Attribute, Any]) -> list[Object]:
    """Return all objects that have these attributes (PKCS#11 v3.1 section 5.7). Runs on the lane.

    `Session.get_objects` leaves a search that could not be begun, as on a lost session, to the interpreter, which
    prints a traceback when it cannot end it either; and one that fails midway it reports by how its end failed.

    Args:
        template: with CKA_CLASS at least.

    Raises:
        pkcs11.PKCS11Error: what the module returned first.
    """
    operation = SearchIter(session, template, _BATCH)
    try:
        operation.__enter__()
        # All at once: an abandoned search blocks the session.
        return [found for batch in operation for found in batch]
    except BaseException:
        with contextlib.suppress(pkcs11.PKCS11Error):
            operation._finalize()
        raise
