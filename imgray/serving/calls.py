"""Calls to deployments: what fails there becomes an answer; a dead replica is asked elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from imgray.data.pixels import Rejected
from imgray.errors import cause_of
from imgray.serving.guard import RETRY_AFTER, Refusal, overloaded
from imgray.serving.metrics import metrics
from imgray.serving.settings import Batching

Item = TypeVar("Item")
Answered = TypeVar("Answered")


async def call(method: Any, *arguments: Any, retries: int = 0, blame: str | None = None) -> Any:
    """The answer of a deployment's method, which must be safe to repeat.

    Args:
        method: of a handle.
        arguments: of the method.
        retries: new attempts when a replica dies at work.
        blame: the field of the request whose fault a `UserError` is; otherwise it is the service's.

    Raises:
        Refusal: there is no answer.
    """
    for attempt in range(retries + 1):
        try:
            return await method.remote(*arguments)
        except BackPressureError:
            raise overloaded("queue") from None
        except (RayActorError, DeploymentUnavailableError):
            if attempt == retries:
                text = "a replica died at work; come again"
                raise Refusal(503, text, None, RETRY_AFTER) from None
        except Exception as error:
            cause = cause_of(error)
            if cause is None:
                raise
            if blame is not None:
                raise Refusal(422, str(cause), blame) from None
            raise Refusal(503, str(cause), None, RETRY_AFTER) from None
    raise AssertionError("unreachable")


async def call_with_pictures(
    method: Any, *arguments: Any, fields: Iterable[str], retries: int = 0
) -> Any:
    """`call`; a picture that cannot be decoded is the client's fault: see `refused`."""
    answer = await call(method, *arguments, retries=retries)
    if isinstance(answer, Rejected):
        metrics().rejected.inc(1, {"reason": "picture"})
        raise refused(answer, fields)
    return answer


async def in_turns(
    ask: Callable[[Item], Awaitable[Answered]], items: Iterable[Item], batching: Batching
) -> list[Answered]:
    """The answers in their order, so many at a time that one request leaves room for others."""
    some = asyncio.Semaphore(max(1, batching.size // 2))

    async def one(item: Item) -> Answered:
        async with some:
            return await ask(item)

    asking = [asyncio.create_task(one(item)) for item in items]
    try:
        return await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()


def refused(fault: Rejected, fields: Iterable[str]) -> Refusal:
    """422 with the one of the fields whose name the reason begins with."""
    text = str(fault)
    named = (field for field in fields if text.startswith(f"{field}: "))
    field = max(named, key=len, default=None)
    return Refusal(422, text[len(field) + 2 :] if field else text, field)
