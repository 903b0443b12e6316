"""Where no key is needed: only this machine's own programs and pages are answered.

A page of any site can reach a service on its visitor's machine: as another site, which browsers
mark (`Sec-Fetch-Site`, `Origin`), or as its own, once its name leads here (DNS rebinding, `Host`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from imgray.serving.guard import API_KEYS, Refusal, error
from imgray.serving.metrics import metrics
from imgray.serving.settings import LOOPBACK


class OwnSite:
    """ASGI middleware that refuses requests under other names and from other sites.

    Args:
        app: the application.
        names: gives the names that are answered beside this machine's own; None: all, because a
            key is needed.
    """

    def __init__(self, app: ASGIApp, names: Callable[[], Collection[str] | None]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, names = self.app, self.names() if scope["type"] == "http" else None
        if names is not None:
            try:
                check_site(scope["method"], Headers(scope=scope), names)
            except Refusal as fault:
                metrics().rejected.inc(1, {"reason": "site"})
                app = error(fault.status, fault.message, fault.field)
        await app(scope, receive, send)


def check_site(method: str, headers: Headers, names: Collection[str]) -> None:
    """Refuse a request that is not for this service, or that a page of another site makes.

    Programs send none of a browser's headers; a link of any site may lead here.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if _name(host) not in (*LOOPBACK, *names):
        text = f"{host[:100]!r} is neither this machine's own name nor one of --hosts (hosts)"
        raise Refusal(421, f"{text}; name it there, or set {API_KEYS}", "Host")
    marked = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if (marked and not _is_visit(method, headers)) or not _is_own(origin, host, names):
        text = "a page of another site is not answered without keys; ask by a program"
        raise Refusal(403, f"{text}, or set {API_KEYS}", "Origin")


def _name(host: str) -> str | None:
    """The name or address in a `Host` header, without its port; None if it is malformed."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^:@\[\]]+))(?::\d*)?", host.lower())
    return (found[1] or found[2]) if found else None


def _is_visit(method: str, headers: Headers) -> bool:
    """Whether a browser opens a page at the top of a tab, where the site that led here ends."""
    wanted = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    return method == "GET" and all(headers.get(name) == value for name, value in wanted.items())


def _is_own(origin: str | None, host: str, names: Collection[str]) -> bool:
    """Whether the page that asks, if one does, is of this service, or of a proxy before it.

    A proxy answers on the usual port of its scheme, which browsers leave out, or on this one's.
    """
    if origin is None:
        return True
    scheme, _, place = origin.lower().partition("://")
    port = re.search(r":\d*$", place)
    renamed = _name(place) in names and (port is None or host.endswith(port[0]))
    return scheme in ("http", "https") and (place == host.lower() or renamed)
