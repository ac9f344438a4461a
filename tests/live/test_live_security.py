"""Who gets in: hosts, origins, tokens, rates."""

from __future__ import annotations

import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.security import Guard, Rates, TokenBucket, security_headers

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "alone", "lan"),
    [
        ("127.0.0.1:8765", True, True),
        ("localhost:8765", True, True),
        ("LOCALHOST:8765", True, True),
        ("[::1]:8765", True, True),
        # a name that somebody else's server makes to point here
        ("evil.example:8765", False, False),
        ("localhost.evil.example:8765", False, False),
        ("127.0.0.1.evil.example:8765", False, False),
        ("127.0.0.1:8766", False, False),
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("[::1]", False, False),
        ("", False, False),
        (":8765", False, False),
        ("127.0.0.1:8765:8765", False, False),
        ("127.0.0.1:08765", False, False),
        ("user@127.0.0.1:8765", False, False),
        # an address cannot be made to point elsewhere
        ("192.168.1.7:8765", False, True),
        ("[fe80::1]:8765", False, True),
    ],
)
def test_only_names_of_this_machine_are_answered_to(host: str, alone: bool, lan: bool) -> None:
    assert (Guard(TOKEN).refusal_of_host(host, 8765) is None) == alone
    assert (Guard(TOKEN, lan=True).refusal_of_host(host, 8765) is None) == lan


@pytest.mark.parametrize(
    ("origin", "site", "welcome"),
    [
        (None, None, True),
        (None, "same-origin", True),
        (None, "none", True),
        (None, "cross-site", False),
        (None, "same-site", False),
        ("http://127.0.0.1:8765", None, True),
        ("http://127.0.0.1:8765", "same-origin", True),
        ("http://127.0.0.1:9999", None, False),
        ("https://127.0.0.1:8765", None, False),
        ("http://localhost:8765", None, False),
        ("http://evil.example", None, False),
        ("http://127.0.0.1:8765.evil.example", None, False),
        ("http://127.0.0.1:8765@evil.example", None, False),
        ("null", None, False),
        ("", None, False),
        ("http://[", None, False),
        ("tauri://localhost", "cross-site", True),
        ("tauri://elsewhere", None, False),
    ],
)
def test_only_our_own_page_may_talk(origin: str | None, site: str | None, welcome: bool) -> None:
    guard = Guard(TOKEN, origins=["tauri://localhost"])
    assert (guard.refusal_of_origin(origin, "127.0.0.1:8765", site) is None) == welcome


@pytest.mark.parametrize(
    ("headers", "protocols", "known"),
    [
        ({}, "", False),
        ({"authorization": f"Bearer {TOKEN}"}, "", True),
        ({"authorization": f"bearer  {TOKEN} "}, "", True),
        ({"authorization": f"Basic {TOKEN}"}, "", False),
        ({"authorization": TOKEN}, "", False),
        ({"authorization": "Bearer "}, "", False),
        ({"authorization": f"Bearer {TOKEN}x"}, "", False),
        ({"authorization": f"Bearer {TOKEN[:-1]}"}, "", False),
        ({"authorization": "Bearer é"}, "", False),
        ({"cookie": f"a=b; kmidi_1={TOKEN}"}, "", True),
        ({"cookie": f"kmidi_2={TOKEN}"}, "", False),
        ({"cookie": f"xkmidi_1={TOKEN}"}, "", False),
        ({}, f"kmidi.v1, kmidi.token.{TOKEN}", True),
        ({}, f"kmidi.token.{TOKEN[1:]}", False),
        ({}, TOKEN, False),
    ],
)
def test_the_token_is_known_by_header_cookie_or_protocol(
    headers: dict[str, str], protocols: str, known: bool
) -> None:
    assert Guard(TOKEN).knows_token(headers, "kmidi_1", protocols) == known


def test_tokens_are_random_and_long() -> None:
    tokens = {Guard().token for _ in range(50)}
    assert len(tokens) == 50
    assert all(len(token) >= 32 for token in tokens)


@pytest.mark.parametrize(
    "token", ["", "short", "with a space in it", "semi;colon=0123456", "ééééééééééééééééé"]
)
def test_a_token_that_headers_cannot_carry_is_refused(token: str) -> None:
    with pytest.raises(KmidiError, match="a token has 16 to 256"):
        Guard(token)


def test_a_bucket_lets_bursts_through_and_holds_the_rate() -> None:
    now = 0.0
    bucket = TokenBucket(10.0, 5.0, lambda: now)
    assert [bucket.take() for _ in range(7)] == [True] * 5 + [False] * 2
    passed = 0
    for tick in range(1, 1001):
        now = tick / 100
        passed += bucket.take()
    assert 99 <= passed <= 100
    # a long silence is not saved up
    now = 1e6
    assert sum(bucket.take() for _ in range(20)) == 5


def test_addresses_have_rates_of_their_own_and_are_not_remembered_for_ever() -> None:
    rates = Rates(1.0, 2.0)
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    assert rates.take("b")
    for number in range(5000):
        rates.take(str(number))
    assert len(rates) == 1024


def test_nothing_may_be_loaded_from_elsewhere() -> None:
    headers = security_headers("127.0.0.1:8765")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self' ws://127.0.0.1:8765"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "*" not in headers["content-security-policy"]
