"""The HTTP side: page, metrics, health, and the server that carries them."""

import asyncio
import signal
from html.parser import HTMLParser

import httpx
import pytest

from server.errors import CannotStart
from server.health import Health
from server.metrics import Metrics
from server.web.http_server import HttpServer
from server.web.page import Table, render
from server.web.site import create_site

HOSTILE = "<script>alert('&\"')</script>"


@pytest.fixture
def health():
    return Health(["nanogpt.v1.InferenceService"])


@pytest.fixture
async def client(health):
    metrics = Metrics()
    metrics.train_steps_total.inc(7)

    async def page():
        table = Table("Models", ("name", "state"), [(HOSTILE, "loaded")], "none yet")
        return render("1.2.3", "127.0.0.1:50051", [table])

    site = create_site(metrics.registry, health, page, "gpu-box")
    transport = httpx.ASGITransport(site)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9464") as client:
        yield client


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


async def test_the_page_says_what_this_is(client):
    response = await client.get("/")
    page = Page(response.text)
    assert response.status_code == 200
    assert "Trains GPT models" in page.text and "1.2.3" in page.text
    assert {("href", "/metrics"), ("href", "/healthz")} <= set(page.attributes)


async def test_names_are_escaped(client):
    page = Page((await client.get("/")).text)
    assert "script" not in page.tags
    assert HOSTILE in page.text


async def test_nothing_is_inline_and_everything_linked_is_there(client):
    response = await client.get("/")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    page = Page(response.text)
    assert not {"style", "script"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert "/style.css" in links and "/icon.svg" in links
    for link in links:
        answer = await client.get(link)
        assert answer.status_code in (200, 503)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_empty_table_says_so():
    page = Page(render("1", "a:1", [Table("Jobs", ("id",), [], "No jobs yet.")]))
    assert "No jobs yet." in page.text and "table" not in page.tags


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9464", "localhost", "[::1]:9464", "10.1.2.3", "GPU-box:1"]
)
async def test_the_page_answers_to_its_own_names(client, host):
    assert (await client.get("/", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", ""]
)
async def test_the_page_answers_to_no_other_name(client, host):
    response = await client.get("/", headers={"Host": host})
    assert response.status_code == 421
    assert (await client.get("/healthz", headers={"Host": host})).status_code == 503


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
async def test_it_is_read_only(client, method):
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


async def test_signals_stay_with_their_owner():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    server = await HttpServer.start(ok, "127.0.0.1", 0)
    async with httpx.AsyncClient() as client:
        await client.get(f"http://127.0.0.1:{server.port}/")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    await server.stop()
