"""Who may talk to the page: this computer's own browser, from the page itself."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
POLICY = (
    # The page is full of scripts of its own; what it may not do is to fetch or send anything elsewhere.
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware that refuses what no visitor of the page sends, and tells browsers what it may do.

    Requests by another name than this computer's come from a site that points its own name here (DNS
    rebinding); those with another origin, or that a browser calls cross-site, from a page of somebody else.
    """

    def __init__(self, app: App, *, largest_body: int) -> None:
        """Stand before `app`; bodies that announce more than `largest_body` bytes are refused."""
        self._app, self._largest = app, largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        pairs = (tuple(part.decode("latin-1") for part in pair) for pair in scope["headers"])
        headers = {name.lower(): value for name, value in pairs}
        reason = refusal(headers, navigates=scope.get("method") == "GET", largest_body=self._largest)
        if reason is not None:
            await _refuse(scope, send, *reason)
            return

        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_on)


def refusal(
    headers: MutableMapping[str, str], *, navigates: bool, largest_body: int
) -> tuple[int, str] | None:
    """Return the status and words with which a request is refused, None for one that is welcome.

    `navigates` says whether it could be somebody who follows a link or types the address.
    """
    host = headers.get("host", "")
    if _name(host) not in HOSTS:
        return 403, "this page answers under this computer's own name alone: open http://127.0.0.1"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, "requests from other sites are refused"
    site = headers.get("sec-fetch-site", "same-origin")
    opened = navigates and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("same-origin", "none") and not opened:
        return 403, "requests from other sites are refused"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > largest_body:
        return 413, f"no more than {largest_body // 2**20} MiB at once"
    return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _refuse(scope: Scope, send: Send, status: int, words: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *_HEADERS]})
    await send({"type": "http.response.body", "body": words.encode()})
