"""Who may talk to the dashboard: Host, Origin, content types, the token."""

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.web.api.session import SessionApi
from server.web.guard import COOKIE, session_of
from server.web.site import create_site

TOKEN = "correct-horse-battery"
URL = "http://127.0.0.1:9464"
JSON = {"Content-Type": "application/json"}


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("yes")


def visit(host: str = "127.0.0.1", token: str | None = None) -> httpx.AsyncClient:
    """A client of a site that says yes to everybody who gets through."""
    methods = ["GET", "POST", "DELETE"]
    routes = [
        *SessionApi(token, dict).routes(),
        *(Route(path, answer, methods=methods) for path in ("/", "/api/x", "/metrics", "/healthz")),
    ]
    transport = httpx.ASGITransport(create_site(routes, host, token))
    return httpx.AsyncClient(transport=transport, base_url=URL)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9464", "localhost", "[::1]:9464", "10.1.2.3", "LOCALHOST:1"]
)
async def test_it_answers_to_its_own_names(host):
    async with visit() as client:
        assert (await client.get("/api/x", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", ""]
)
async def test_it_answers_to_no_other_name(host):
    async with visit() as client:
        for path in ("/", "/api/x"):
            assert (await client.get(path, headers={"Host": host})).status_code == 421
        for path in ("/metrics", "/healthz"):
            assert (await client.get(path, headers={"Host": host})).status_code == 200


async def test_every_answer_has_the_security_headers():
    async with visit() as client:
        for path in ("/", "/api/x", "/api/nope", "/metrics"):
            headers = (await client.get(path)).headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, 200),
        ({**JSON, "Origin": URL}, 200),
        ({**JSON, "Origin": URL, "Sec-Fetch-Site": "same-origin"}, 200),
        ({**JSON, "Origin": "http://evil.example"}, 403),
        ({**JSON, "Origin": "http://127.0.0.1:8000"}, 403),
        ({**JSON, "Origin": "null"}, 403),
        ({**JSON, "Origin": "http://["}, 403),
        ({**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ({}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/octet-stream"}, 415),
        ({"Content-Type": "application/octet-stream", "X-Nanogpt-Upload": "1"}, 200),
    ],
)
async def test_no_other_site_can_change_anything(headers, status):
    async with visit() as client:
        for method in ("POST", "DELETE"):
            response = await client.request(method, "/api/x", headers=headers)
            assert response.status_code == status


async def test_another_site_can_neither_read_nor_hold_streams_open():
    async with visit() as client:
        response = await client.get("/api/x", headers={"Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 403 and response.json()["reason"] == "CROSS_SITE"
        assert "access-control-allow-origin" not in response.headers


async def test_an_exposed_server_without_a_token_is_closed_but_for_machines():
    async with visit("0.0.0.0") as client:
        for path in ("/", "/api/x", "/api/session"):
            response = await client.get(path)
            assert response.status_code == 403 and "NANOGPT_HTTP_TOKEN" in response.text
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_with_a_token_pages_are_open_and_the_api_is_not():
    async with visit("0.0.0.0", TOKEN) as client:
        assert (await client.get("/", headers={"Host": "gpu.example"})).status_code == 200
        response = await client.get("/api/x")
        assert (response.status_code, response.json()["reason"]) == (401, "UNAUTHENTICATED")
        assert (await client.get("/api/session")).json() == {"needs_token": True, "is_known": False}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer ", 401),
        (TOKEN, 401),
    ],
)
async def test_scripts_send_the_token_itself(given, status):
    async with visit("0.0.0.0", TOKEN) as client:
        response = await client.get("/api/x", headers={"Authorization": given})
        assert response.status_code == status


async def test_browsers_exchange_it_for_a_cookie_that_does_not_tell_it():
    async with visit("0.0.0.0", TOKEN) as client:
        wrong = await client.post("/api/session", json={"token": "guess"})
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
        right = await client.post("/api/session", json={"token": TOKEN})
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        assert (await client.get("/api/x")).status_code == 200
        assert (await client.get("/api/session")).json()["is_known"]
        await client.delete("/api/session", headers=JSON)
        assert (await client.get("/api/x")).status_code == 401


async def test_the_cookie_of_another_token_is_worth_nothing():
    cookie = f"{COOKIE}={session_of('another-token-entirely')}"
    async with visit("0.0.0.0", TOKEN) as client:
        assert (await client.get("/api/x", headers={"Cookie": cookie})).status_code == 401


@pytest.mark.parametrize("other", ['prefs={"a":1}', "a=b c", "noname", "a[]=1", "=x"])
async def test_odd_cookies_of_other_programs_do_not_hide_ours(other):
    ours = f"{COOKIE}={session_of(TOKEN)}"
    async with visit("0.0.0.0", TOKEN) as client:
        for cookies in (f"{other}; {ours}", f"{ours}; {other}"):
            headers = {"Cookie": cookies}
            assert (await client.get("/api/x", headers=headers)).status_code == 200
            assert (await client.get("/api/session", headers=headers)).json()["is_known"]
