"""The HTTP side: probes, pages, what they load, and the server that carries them."""

import asyncio
import re
import signal
import socket
import sys

import httpx
import pytest

from server.errors import CannotStart
from server.health import Health
from server.metrics import Metrics
from server.web import assets, http_server
from server.web.assets import PAGES, STATIC, asset_routes
from server.web.http_server import HttpServer
from server.web.probes import probe_routes
from server.web.site import create_site


@pytest.fixture
def health():
    return Health(["nanogpt.v1.InferenceService"])


@pytest.fixture
async def client(health):
    metrics = Metrics()
    metrics.train_steps_total.inc(7)
    site = create_site([*probe_routes(metrics.registry, health), *asset_routes()], "127.0.0.1")
    transport = httpx.ASGITransport(site)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9464") as client:
        yield client


@pytest.mark.parametrize("path", [path.replace("{id}", "0123") for path in PAGES])
async def test_every_page_is_the_one_document(client, path):
    response = await client.get(path)
    assert response.status_code == 200 and "nanogpt-service" in response.text
    assert response.headers["cache-control"] == "no-cache"


async def test_nothing_is_inline_and_everything_linked_is_there(client):
    response = await client.get("/")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", response.text)
    links = re.findall(r'(?:href|src)="(/[^"]*\.[a-z]+)"', response.text)
    assert {"/static/style.css", "/static/icon.svg", "/vendor/uplot.js"} <= set(links)
    for link in links:
        answer = await client.get(link)
        assert answer.status_code == 200, link
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_every_module_that_a_script_imports_is_there(client):
    for path in STATIC.rglob("*.js"):
        for name in re.findall(r'(?:from|import)\s+"([^"]+)"', path.read_text()):
            assert (path.parent / name).resolve().is_file(), f"{path.name}: {name}"


def test_scripts_put_text_into_the_page_as_text_alone():
    for path in STATIC.rglob("*.js"):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", path.read_text()
        )
        assert not found, path.name


async def test_files_outside_of_static_are_not_served(client):
    for path in ("/static/../site.py", "/static/%2e%2e/site.py", "/vendor/figure.py", "/nope"):
        assert (await client.get(path)).status_code == 404


def test_a_server_without_the_charts_library_does_not_start(monkeypatch):
    monkeypatch.setattr(assets, "find_spec", lambda name: None)
    with pytest.raises(CannotStart, match="pip install youplot"):
        asset_routes()


async def test_metrics_in_the_text_format(client):
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert "nanogpt_train_steps_total 7.0" in response.text


async def test_metrics_in_the_openmetrics_format(client):
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def test_healthz_follows_readiness(client, health):
    assert (await client.get("/healthz")).status_code == 503
    health.set("readiness", True)
    response = await client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "SERVING"})
    health.drain()
    assert (await client.get("/healthz")).status_code == 503


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_pages_are_read_only(client, method):
    assert (await client.request(method, "/")).status_code == 405


async def ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_the_server_answers_on_a_free_port_and_stops():
    server = await HttpServer.start(ok, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "ok"
        await server.stop()
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{server.port}/")


async def test_a_taken_port_is_an_error():
    server = await HttpServer.start(ok, "127.0.0.1", 0)
    problem = f"port {server.port}, for HTTP: .* in use; choose another with --http_address"
    with pytest.raises(CannotStart, match=problem):
        await HttpServer.start(ok, "127.0.0.1", server.port)
    await server.stop()


async def test_an_open_request_does_not_hold_up_the_stop():
    entered = asyncio.Event()

    async def hang(scope, receive, send):
        entered.set()
        await asyncio.Event().wait()

    server = await HttpServer.start(hang, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        request = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/"))
        await entered.wait()
        await asyncio.wait_for(server.stop(), 10)
        await asyncio.wait([request])
        request.exception()


@pytest.mark.skipif(sys.platform != "linux", reason="accepted sockets inherit it there")
async def test_peers_that_vanish_are_noticed():
    seen = {}

    async def look(scope, receive, send):
        (connection,) = server._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        seen["on"] = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
            seen[name] = accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        await ok(scope, receive, send)

    server = await HttpServer.start(look, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "ok"
    await server.stop()
    assert seen == {"on": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 2}


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: 127"])
async def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch, sent):
    monkeypatch.setattr(http_server, "FIRST_REQUEST_SECONDS", 0.05)
    server = await HttpServer.start(ok, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    await server.stop()


async def test_a_request_may_take_longer_than_it_may_take_to_come():
    async def late(scope, receive, send):
        (connection,) = server._server.server_state.connections
        connection._close_unless_asked()  # as if the time were over
        await ok(scope, receive, send)

    server = await HttpServer.start(late, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "ok"
    await server.stop()


async def test_signals_stay_with_their_owner():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    server = await HttpServer.start(ok, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        await client.get(f"http://127.0.0.1:{server.port}/")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    await server.stop()
