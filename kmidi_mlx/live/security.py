"""Who may talk to the server, and how much: host, origin, token, rates, headers.

The server listens on a port that every web page in the browser can reach. Three checks keep pages
of others out: the Host header has to be an address of ours (a name that was made to point to
127.0.0.1 is not), the Origin header has to be our own page's, and a random token has to be known,
which nobody who was not shown the first address can guess.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kmidi_mlx.errors import KmidiError

__all__ = [
    "SUBPROTOCOL", "TOKEN_SUBPROTOCOL", "Guard", "Rates", "Refusal", "TokenBucket",
    "security_headers",
]  # fmt: skip

#: Name of the protocol in a WebSocket's handshake.
SUBPROTOCOL = "kmidi.v1"
#: A client that can neither keep cookies nor send headers names its token behind this.
TOKEN_SUBPROTOCOL = "kmidi.token."
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_MOST_ADDRESSES = 1024


class TokenBucket:
    """A rate limit that allows bursts (Turner, "New directions in communications", 1986).

    Args:
        rate: events a second in the long run, above 0.
        burst: events at once, 1 or more.
        clock: seconds that only ascend.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._last = clock()

    def take(self) -> bool:
        """Count an event; False when it is one too many, which is then not counted."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._last) * self._rate)
        self._last = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class Rates:
    """A token bucket for every address, of bounded number: who was silent longest is forgotten.

    Args:
        rate: events a second of one address.
        burst: events at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of addresses that are remembered."""
        return len(self._buckets)

    def take(self, address: str) -> bool:
        """Count an event of an address; False when it is one too many."""
        bucket = self._buckets.pop(address, None) or TokenBucket(self._rate, self._burst)
        self._buckets[address] = bucket
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take()


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered.

    Attributes:
        status: of HTTP.
        reason: one sentence.
    """

    status: int
    reason: str


class Guard:
    """Judges requests by their headers.

    Args:
        token: that has to be known, 16 characters or more; None: a random one.
        lan: whether other machines are let in; addresses that are numbers and this machine's name
            are ours then, too.
        origins: of pages that are let in besides our own, such as `tauri://localhost`. They need
            the token as everybody.

    Attributes:
        token: as above.

    Raises:
        KmidiError: if the token is too short or has characters that headers cannot carry.
    """

    def __init__(
        self, token: str | None = None, lan: bool = False, origins: Sequence[str] = ()
    ) -> None:
        self.token = secrets.token_urlsafe(24) if token is None else token
        if not _TOKEN.fullmatch(self.token):
            raise KmidiError(
                "a token has 16 to 256 letters, digits or signs out of - . _ ~; choose another."
            )
        self._lan = lan
        self._origins = frozenset(origins)
        self._names = {"localhost", "127.0.0.1", "[::1]"}
        if lan:
            name = socket.gethostname().lower()
            self._names |= {name, f"{name.partition('.')[0]}.local"}

    def refusal_of_host(self, host: str, port: int) -> Refusal | None:
        """Judge the Host header, against names that were made to point to this machine.

        Args:
            host: as it came; empty: there was none.
            port: that the server listens on.
        """
        name, _, number = host.lower().rpartition(":")
        if not name or host.endswith("]"):
            name, number = host.lower(), "80"
        if number == str(port) and (name in self._names or (self._lan and _is_address(name))):
            return None
        return Refusal(421, "this server does not go by that name; open the address kmidi showed.")

    def refusal_of_origin(self, origin: str | None, host: str, site: str | None) -> Refusal | None:
        """Judge where a page that asks comes from, against pages of others.

        Args:
            origin: the Origin header; None: there was none, as from programs.
            host: the Host header, judged already.
            site: the Sec-Fetch-Site header; None: there was none.
        """
        if origin is None:
            # browsers that leave the origin out say at least this
            strange = site in ("cross-site", "same-site")
        else:
            strange = origin != f"http://{host.lower()}" and origin not in self._origins
        if strange:
            return Refusal(403, "pages of other servers may not talk to kmidi.")
        return None

    def knows_token(self, headers: Mapping[str, str], cookie: str, protocols: str = "") -> bool:
        """Whether a request carries the token.

        Args:
            headers: by lower-case name.
            cookie: name of the cookie that may hold it.
            protocols: the Sec-WebSocket-Protocol header.
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        candidates = [bearer.strip()] if scheme.lower() == "bearer" else []
        for item in headers.get("cookie", "").split(";"):
            name, _, value = item.strip().partition("=")
            if name == cookie:
                candidates.append(value)
        for item in protocols.split(","):
            if item.strip().startswith(TOKEN_SUBPROTOCOL):
                candidates.append(item.strip().removeprefix(TOKEN_SUBPROTOCOL))
        return any(self.is_token(candidate) for candidate in candidates)

    def is_token(self, candidate: str) -> bool:
        """Compare with the token, in a time that says nothing about it."""
        return secrets.compare_digest(candidate.encode(errors="replace"), self.token.encode())


def _is_address(name: str) -> bool:
    # a number cannot be made to point elsewhere
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def security_headers(host: str) -> dict[str, str]:
    """Return the headers that every response carries.

    Nothing is loaded from elsewhere, nothing is run that is not a file of ours, no other page can
    frame, open or read this one.

    Args:
        host: the Host header, judged already; older browsers want the WebSocket named by it.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "worker-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "media-src": "'self' blob:",
        "font-src": "'self'",
        "manifest-src": "'self'",
        "connect-src": f"'self' ws://{host}" if host else "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-embedder-policy": "require-corp",
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }
