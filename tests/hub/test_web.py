"""Where a request may go."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from freehold.hub import web
from freehold.hub.web import WebClient, WebError
from loopback_hub import Fault, LoopbackHub, serve_hub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with serve_hub() as served:
        served.files |= {"/a": b"a", "/b": b"b"}
        yield served


@pytest.mark.parametrize(
    ("address", "nearness"),
    [
        ("93.184.216.34", 0),
        ("2606:4700::1", 0),
        ("198.18.0.7", 0),
        ("10.0.0.1", 1),
        ("192.168.1.1", 1),
        ("172.16.0.1", 1),
        ("100.64.0.1", 1),
        ("fd00::1", 1),
        ("127.0.0.1", 2),
        ("127.8.8.8", 2),
        ("::1", 2),
        ("::ffff:127.0.0.1", 2),
        ("::ffff:10.0.0.1", 1),
        ("2002:7f00:1::", 2),
        ("169.254.169.254", None),
        ("fe80::1%eth0", None),
        ("0.0.0.0", None),
        ("::", None),
        ("224.0.0.1", None),
        ("255.255.255.255", None),
    ],
)
def test_how_near_an_address_is(address: str, nearness: int | None) -> None:
    assert web._nearness(address) == nearness


@pytest.mark.parametrize("near", [(1, 2), (1, None)])
def test_a_redirect_comes_no_nearer_than_its_endpoint(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, near: tuple[int, int | None]
) -> None:
    hub.faults["/a"] = Fault(times=-1, redirect=f"{hub.storage}/b")
    addresses = iter(near)
    monkeypatch.setattr(web, "_nearness", lambda address: next(addresses))
    n_asked = len(hub.requests)
    with pytest.raises(WebError, match=r"not public; refused"):
        WebClient(hub.url).open(f"{hub.url}/a")
    assert [asked.path for asked in hub.requests[n_asked:]] == ["/a"]
    monkeypatch.setattr(web, "_nearness", lambda address: 1)
    assert WebClient(hub.url).read(f"{hub.url}/a", 9) == b"b"


def test_plain_http_is_for_mirrors_near_by(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_nearness", lambda address: 0)
    with pytest.raises(WebError, match=r"expected https"):
        WebClient(hub.url).read(f"{hub.url}/a", 9)
    assert hub.requests == []


def test_a_proxy_is_told_no_private_target(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", hub.url)
    for target in ("http://10.0.0.1/b", "http://localhost/b", "http://127.0.0.1:1/b"):
        client = WebClient("https://hub.example")
        with pytest.raises(WebError, match=r"not public"):
            client.open(target)
    assert hub.requests == []


def test_credentials_stay_with_the_origin(hub: LoopbackHub) -> None:
    hub.faults["/a"] = Fault(times=-1, redirect=f"{hub.storage}/b")
    WebClient(hub.url, {"Authorization": "Bearer x", "Cookie": "y"}).read(f"{hub.url}/a", 9)
    first, second = hub.requests
    assert first.headers["Authorization"] == "Bearer x"
    assert not {"Authorization", "Cookie"} & set(second.headers)


def test_bodies_are_bounded_and_whole(hub: LoopbackHub) -> None:
    hub.files["/c"] = b"1234"
    with pytest.raises(WebError, match=r"more than 3 bytes"):
        WebClient(hub.url).read(f"{hub.url}/c", 3)
    hub.faults["/c"] = Fault(times=2, cut=2)
    assert WebClient(hub.url).read(f"{hub.url}/c", 9) == b"1234"
    with pytest.raises(WebError, match=r"not JSON"):
        WebClient(hub.url).read_json(f"{hub.url}/a")


def test_network_errors_are_words() -> None:
    with pytest.raises(WebError, match=r"127.0.0.1: Connection refused"):
        WebClient("http://127.0.0.1:9").open("http://127.0.0.1:9/x")
    assert "no such host" in web.network_reason(socket.gaierror(-2, "unknown"))
    assert "no answer" in web.network_reason(TimeoutError())
