"""The credential for asyncio and trio.

    async with AsyncHsmCredential(tenant, client_id, "pkcs11:token=Office;id=%01", pin_source="env:PIN") as me:
        token = await me.get_token("https://graph.microsoft.com/.default")

The synchronous code does the work in threads: one for each token that is being acquired, no matter how many tasks wait
for it. If a task is cancelled, it only stops waiting: the token is still acquired and kept.
"""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from hsm_signer.credential.azure import Credential, as_access_token, as_access_token_info, query_from_options

if TYPE_CHECKING:
    from azure.core import credentials as azure

T = TypeVar("T")


class AsyncHsmCredential(Credential):
    """`HsmCredential` for asyncio and trio. See `Credential` for the arguments.

    Several event loops may use it, even at the same time. An asynchronous context manager: leaving it logs out
    of the device.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: object,
    ) -> "azure.AccessToken":
        """Return an access token. See `HsmCredential.get_token`."""
        query = self._tokens.build_query(scopes, claims=claims, tenant_id=tenant_id, enable_cae=enable_cae)
        return as_access_token(await _outcome(self._tokens.submit(query)))

    async def get_token_info(
        self, *scopes: str, options: "azure.TokenRequestOptions | None" = None
    ) -> "azure.AccessTokenInfo":
        """Return an access token with its type and times. See `HsmCredential.get_token_info`."""
        return as_access_token_info(
            await _outcome(self._tokens.submit(query_from_options(self._tokens, scopes, options)))
        )

    async def assertion(self) -> str:
        """Return a new client assertion. For callbacks that are not awaited, use `HsmCredential.assertion`."""
        return await anyio.to_thread.run_sync(self._tokens.assertion, abandon_on_cancel=True)

    async def close(self) -> None:
        """Log out of the device. The next call opens it again."""
        await anyio.to_thread.run_sync(self._tokens.close)


async def _outcome(future: "Future[T]") -> T:
    """Wait for a future that a thread completes, and return its result or raise its exception."""
    if not future.done():
        done = anyio.Event()
        soon = _waker()

        def wake(_: "Future[T]") -> None:
            # If the loop has ended, nobody is waiting.
            with suppress(RuntimeError):
                soon(done.set)

        future.add_done_callback(wake)
        await done.wait()
    return future.result()


def _waker() -> Callable[[Callable[[], None]], object]:
    """Return a function that any thread may call to run another function in this event loop."""
    # anyio's own function blocks the thread until the other function has run.
    loop: Any = anyio.lowlevel.current_token().native_token
    soon: Callable[[Callable[[], None]], object] = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    return soon
