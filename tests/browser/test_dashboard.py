"""The dashboard in a real browser, against a real server with a real trainer.

Needs chromium (Debian: `apt-get install chromium`) and playwright. One browser and one server do
for all tests here; together they may not ask anything of another origin, and may not fill the
console with errors.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent.parent
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SECONDS = 1000.0  # playwright counts milliseconds
PATIENCE = 30 * SECONDS
TRAINING_PATIENCE = 200 * SECONDS

TEXT = "<b>to be</b> & not to be, that is the question\n" * 200
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "batch_size": 4}
TINY = {**SHAPE, "eval_interval": 250, "eval_iters": 2, "log_interval": 1, "device": "cpu"}
JSON = {"Content-Type": "application/json"}
PAGES = ("/", "/new", "/playground", "/serving", "/datasets")


class Server:
    """`python -m server` in a process that can be killed and started again on the same port."""

    def __init__(self, data_dir: Path, *options: str, host: str = "127.0.0.1") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._data_dir = data_dir
        self._options = [f"--http_address={host}:{self.port}", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "server", "--grpc_address=127.0.0.1:0", "--device=cpu",
            f"--data_dir={self._data_dir}", *self._options,
        ]  # fmt: skip
        self._data_dir.mkdir(exist_ok=True)
        with (self._data_dir.parent / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while True:
            assert self._process.poll() is None, "the server did not start"
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def upload(self, name: str) -> None:
        headers = {"Content-Type": "application/octet-stream", "X-Nanogpt-Upload": "1"}
        response = httpx.post(f"{self.url}/api/datasets/{name}", content=TEXT, headers=headers)
        assert response.status_code in (201, 409), response.text

    def submit(self, model: str, **config: int) -> str:
        """The id of a run, the same for the same model."""
        self.upload("quotes")
        request = {
            "model": model,
            "dataset": "quotes",
            "request_id": model,
            "config": {**TINY, **config},
        }
        answer = httpx.post(f"{self.url}/api/jobs", json=request)
        return str(answer.raise_for_status().json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/api/jobs/{job_id}").json()
        return found

    def trained(self, model: str) -> str:
        """The id of a run that has succeeded."""
        job_id = self.submit(model, max_iters=20)
        while (job := self.job(job_id))["state"] != "SUCCEEDED":
            assert not job["is_final"], job["error"]
            time.sleep(0.05)
        return job_id

    @contextmanager
    def training(self, model: str) -> Iterator[str]:
        """The id of a run that is going on until the block ends, with a point every ten steps."""
        job_id = self.submit(model, max_iters=1_000_000, log_interval=10)
        self.reach(job_id, 10)
        yield job_id
        httpx.post(f"{self.url}/api/jobs/{job_id}/cancel", json={}).raise_for_status()
        while not self.job(job_id)["is_final"]:
            time.sleep(0.05)

    def reach(self, job_id: str, step: int) -> None:
        """Waits until a run is that far."""
        while (job := self.job(job_id))["step"] < step:
            assert not job["is_final"], job["error"]
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("browser") / "data")
    server.start()
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as play:
        playwright.expect.set_options(timeout=PATIENCE)
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def problems() -> list[str]:
    """What a page has told that it should not: errors, and requests to elsewhere."""
    return []


@pytest.fixture
def page(
    server: Server, browser: playwright.Browser, problems: list[str]
) -> Iterator[playwright.Page]:
    """A page that has no problems in the end.

    That a server which was killed does not answer is no fault of the page; the browser logs it.
    """
    with visited(browser, server.url, problems) as page:
        yield page
    assert problems == []


@contextmanager
def visited(
    browser: playwright.Browser, url: str, problems: list[str]
) -> Iterator[playwright.Page]:
    """A page of a visitor, that tells what it should not do."""
    context = browser.new_context(base_url=url)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)

    def listen(message: playwright.ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "net::ERR_" not in message.text:
            problems.append(message.text)

    def watch(request: playwright.Request) -> None:
        if not request.url.startswith(url):
            problems.append(f"asks {request.url}")

    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", listen)
    page.on("request", watch)
    yield page
    context.close()


def forgive(problems: list[str], *statuses: int) -> None:
    """Takes out what the browser logs about requests that the server was meant to refuse."""
    refusals = [text for text in problems if text.startswith("Failed to load resource")]
    found = [int(re.search(r"status of (\d+)", text)[1]) for text in refusals]
    assert found == list(statuses)
    for text in refusals:
        problems.remove(text)


def heading(page: playwright.Page, text: str) -> playwright.Locator:
    return page.get_by_role("heading", level=1, name=text, exact=True)


def expect(found: playwright.Locator) -> playwright.LocatorAssertions:
    return playwright.expect(found)


def opened(page: playwright.Page, path: str) -> None:
    """Opens a page and waits until it shows something."""
    page.goto(path)
    page.locator("main h1").wait_for()


def test_a_new_server_says_what_to_do_first(server, page):
    opened(page, "/")
    page.get_by_text("No runs yet.").wait_for()
    page.get_by_role("link", name="Start the first one").click()
    heading(page, "New run").wait_for()
    page.get_by_text("There is no dataset yet.").wait_for()
    for name, text in (
        ("Playground", "No model yet."),
        ("Serving", "No models yet."),
        ("Datasets", "No datasets yet."),
    ):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        page.get_by_text(text).wait_for()
        assert page.title().startswith(name)
        expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute(
            "aria-current", "page"
        )


def test_a_text_is_uploaded(server, page, problems, tmp_path):
    (tmp_path / "My Quotes.txt").write_text(TEXT)
    opened(page, "/datasets")
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "My Quotes.txt")
    expect(page.get_by_label("Name")).to_have_value("my-quotes")
    page.get_by_label("Name").fill("My Quotes")
    page.get_by_role("button", name="Upload").click()
    page.get_by_text("must match").wait_for()
    page.get_by_label("Name").fill("quotes")
    page.get_by_role("button", name="Upload").click()
    page.get_by_text("Dataset quotes is ready.").wait_for()
    row = page.get_by_role("row").filter(has_text="quotes")
    expect(row).to_contain_text("char")
    row.get_by_role("link", name="Train on it").click()
    heading(page, "New run").wait_for()
    forgive(problems, 400)


def points(page: playwright.Page, title: str) -> int:
    """How many points a chart has, as its table says."""
    chart = page.get_by_role("figure").filter(has_text=title)
    chart.get_by_text("Values as a table").click()
    caption = chart.get_by_text(re.compile(r"\d+ of \d+ points"))
    found = re.search(r"of (\d+) points", caption.inner_text())
    chart.get_by_text("Values as a table").click()
    assert found
    return int(found[1])


def test_a_run_is_submitted_and_watched_over_a_killed_server(server, page):
    server.upload("quotes")
    opened(page, "/new?dataset=quotes")
    page.get_by_label("Name of the model").fill("watched")
    for name, value in {**TINY, "n_head": 5, "max_iters": 500}.items():
        control = page.get_by_label(name, exact=True)
        control.evaluate("element => element.closest('details').open = true")
        if name == "device":
            control.select_option("cpu")
        else:
            control.fill(str(value))
    page.get_by_text("must divide n_embd").wait_for()
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_label("n_head", exact=True)).to_be_focused()
    page.get_by_label("n_head", exact=True).fill("2")
    page.get_by_text("Tokens a step").wait_for()
    page.get_by_role("button", name="Start training").click()

    heading(page, "watched").wait_for()
    begun = page.get_by_text(re.compile(r"step [1-9]\d* of 500")).first
    begun.wait_for(timeout=TRAINING_PATIENCE)
    job_id = page.url.rpartition("/")[2]
    server.end(signal.SIGKILL)
    page.get_by_text("Connection lost").wait_for()
    server.start()
    page.get_by_text("Connected again").wait_for()
    ended = page.get_by_role("status").get_by_text("succeeded")
    ended.wait_for(timeout=TRAINING_PATIENCE)

    history = httpx.get(f"{server.url}/api/jobs/{job_id}/history").json()
    assert history["lines"]["loss"]["num_points"] == 500
    assert points(page, "Gradient norm") == 500
    page.reload()
    heading(page, "watched").wait_for()
    expect(page.get_by_role("status").get_by_text("succeeded")).to_be_visible()
    assert points(page, "Gradient norm") == 500
    attempts = page.locator("section", has=page.get_by_role("heading", name="Attempts"))
    expect(attempts.get_by_role("table").get_by_role("row")).to_have_count(3)


def test_a_finished_run_shows_all_there_is(server, page):
    opened(page, f"/runs/{server.trained('first')}")
    checkpoints = page.locator("section", has=page.get_by_role("heading", name="Checkpoints"))
    expect(checkpoints.get_by_role("row").first).to_be_visible()
    checkpoints.get_by_role("button", name="Serve").first.click()
    samples = page.locator("section", has=page.get_by_role("heading", name="Samples"))
    expect(samples.locator("pre").first).to_be_visible()
    page.get_by_text("All values").click()
    row = page.get_by_role("row").filter(has_text="n_embd")
    expect(row).to_contain_text("32")
    expect(row).to_contain_text("request")
    page.get_by_text("log", exact=True).click()
    page.get_by_label("Smoothing").fill("0.9")
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_role("button", name="Show all")).to_be_disabled()
    with page.expect_download() as download:
        checkpoints.get_by_text("Export").first.click()
        checkpoints.get_by_role("link", name="Hugging Face").first.click()
    assert download.value.suggested_filename.endswith("-hugging_face.tar")


def panel(page: playwright.Page, name: str) -> playwright.Locator:
    return page.locator("section", has=page.get_by_role("heading", name=name))


def test_a_checkpoint_is_pinned_tried_and_deleted(server, page, problems):
    opened(page, f"/runs/{server.trained('second')}")
    checkpoints = panel(page, "Checkpoints")
    rows = checkpoints.locator("tbody tr")
    rows.first.wait_for()
    count = rows.count()
    row = rows.first
    row.get_by_role("button", name="Pin", exact=True).click()
    expect(row).to_contain_text("pinned")
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    row.get_by_text("unpin it first").wait_for()
    row.get_by_role("button", name="Unpin").click()
    row.get_by_role("button", name="Pin", exact=True).wait_for()
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep").click()
    expect(rows).to_have_count(count)
    row.get_by_role("link", name="Try").click()
    heading(page, "Playground").wait_for()
    page.get_by_label("Prompt").fill("to be")
    page.get_by_label("New tokens").fill("3")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("second at step 20").wait_for()
    reference = f"job:{server.trained('second')}@20"
    httpx.post(f"{server.url}/api/models/{reference}/unload", json={}).raise_for_status()
    page.go_back()
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(rows).to_have_count(count - 1)
    forgive(problems, 409)


def steps_shown(page: playwright.Page) -> int:
    """How far a run is, as its page says."""
    text = page.get_by_text(re.compile(r"step [\d,]+ of 1,000,000")).first.inner_text()
    return int(text.split()[1].replace(",", ""))


def look(page: playwright.Page, *, away: bool) -> None:
    """Hides a tab, or shows it again: without a window that is only said to it."""
    page.evaluate(
        """isHidden => {
          Object.defineProperty(document, "hidden", { get: () => isHidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )


def test_a_run_is_followed_in_many_tabs_paused_resumed_and_cancelled(server, page):
    """A browser opens six connections to a server at a time: a tab that nobody sees holds none."""
    with server.training("long") as job_id:
        opened(page, f"/runs/{job_id}")
        look(page, away=True)
        last = steps_shown(page)
        for _ in range(6):
            tab = page.context.new_page()
            tab.set_default_timeout(PATIENCE)
            opened(tab, "/")
            look(tab, away=True)
        server.reach(job_id, last + 100)
        assert steps_shown(page) <= last + 10
        look(page, away=False)
        page.get_by_role("heading", name="Log").click()
        log = page.get_by_label("Log", exact=True)
        expect(log).to_contain_text(re.compile(r"step \d+"))

        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Resume").wait_for()
        expect(page.get_by_role("status").get_by_text("paused")).to_be_visible()
        history = httpx.get(f"{server.url}/api/jobs/{job_id}/history").json()
        num_points = history["lines"]["loss"]["num_points"]
        assert num_points >= 10 and points(page, "Gradient norm") == num_points  # none is missing

        page.get_by_role("button", name="Resume").click()
        page.get_by_role("button", name="Pause").wait_for()
        server.reach(job_id, steps_shown(page) + 10)
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the run").click()
        expect(page.get_by_role("status").get_by_text("cancelled")).to_be_visible()
        expect(panel(page, "Attempts").get_by_role("table").get_by_role("row")).to_have_count(3)


def test_an_exposed_server_asks_for_its_token(browser, problems, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOGPT_HTTP_TOKEN", "correct horse battery staple")
    server = Server(tmp_path / "data", host="0.0.0.0")
    server.start()
    with visited(browser, server.url, problems) as page:
        opened(page, "/datasets")
        heading(page, "This server asks for its token").wait_for()
        expect(page.get_by_label("Token")).to_be_focused()
        page.get_by_label("Token").fill("wrong horse battery staple")
        page.keyboard.press("Enter")
        page.get_by_text("that is not this server's token").wait_for()
        page.get_by_label("Token").fill("correct horse battery staple")
        page.get_by_role("button", name="Open the dashboard").click()
        page.get_by_text("No datasets yet.").wait_for()
        page.reload()
        page.get_by_text("No datasets yet.").wait_for()
        assert page.evaluate("document.cookie") == ""  # no script sees it
    server.end(signal.SIGTERM)
    assert {re.search(r"status of (\d+)", text)[1] for text in problems} == {"401"}
    problems.clear()


def test_a_chart_is_zoomed_by_dragging_and_tells_values(server, page):
    opened(page, f"/runs/{server.trained('first')}")
    plot = page.locator(".u-over").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    value = page.locator(".u-legend .u-value").first
    expect(value).to_have_text(re.compile(r"\d+"))
    page.mouse.move(box["x"] + box["width"] / 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, middle, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="Show all")).to_be_enabled()
    plot.dblclick()
    expect(page.get_by_role("button", name="Show all")).to_be_disabled()


def test_runs_are_filtered_sorted_and_compared(server, page):
    server.trained("first")
    server.trained("second")
    opened(page, "/")
    rows = page.get_by_role("table", name="Training runs").locator("tbody tr")
    page.get_by_role("row").filter(has_text="second").wait_for()
    page.get_by_role("button", name="Run", exact=True).click()
    names = rows.get_by_role("rowheader").get_by_role("link").all_inner_texts()
    assert names == sorted(names) and len(names) >= 2
    page.get_by_label("Filter").fill("sec")
    expect(rows).to_have_count(1)
    page.get_by_label("Filter").fill("none such")
    page.get_by_text("No run matches the filter.").wait_for()
    page.get_by_label("Filter").fill("")
    page.get_by_label("Compare first").check()
    page.get_by_label("Compare second").check()
    comparison = page.get_by_role("region", name="Comparison")
    expect(comparison.locator(".u-series")).to_have_count(3)  # the first of them is x
    comparison.get_by_label("Compare").select_option("loss")
    comparison.get_by_text("Values as a table").click()
    expect(comparison.get_by_role("columnheader", name="second")).to_be_visible()
    row = comparison.get_by_role("row").last.get_by_role("cell")
    assert "\u2013" not in row.all_inner_texts()  # both runs have a loss at the last step


def test_text_streams_and_stops(server, page, problems):
    server.trained("first")
    opened(page, "/playground?model=first")
    page.get_by_label("Prompt").fill("<b>")
    page.get_by_label("New tokens").fill("12")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Prompt").press("Control+Enter")
    page.get_by_text("3 + 12 tokens").wait_for()
    answer = page.get_by_label("Text", exact=True)
    tokens = answer.locator("[data-index]")
    expect(tokens).to_have_count(12)
    first = answer.inner_text()
    assert first.startswith("<b>") and answer.locator("b").count() == 0
    answer.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text(re.compile(r"log-probability -\d")).wait_for()
    page.get_by_label("Colour tokens").check()
    expect(tokens.first).to_have_class(re.compile(r"p\d"))
    page.get_by_role("button", name="Write").click()
    page.get_by_text("seed 7").wait_for()
    assert answer.inner_text() == first

    page.get_by_label("New tokens").fill("60000")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("Writing:").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped:").wait_for()
    page.get_by_label("Temperature").fill("9")
    page.get_by_label("Prompt").fill("ÄÖ")
    page.get_by_role("button", name="Write").click()
    page.get_by_text("must be in [0, 2]").wait_for()
    page.get_by_text("the vocabulary does not have").wait_for()
    forgive(problems, 400)


def test_models_are_loaded_unloaded_and_deleted(server, page, problems):
    server.trained("first")
    opened(page, "/serving")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="first"))
    row.get_by_role("button", name="Delete").wait_for()  # the row is there
    if row.get_by_role("button", name="Unload").is_visible():
        row.get_by_role("button", name="Unload").click()
    row.get_by_role("button", name="Load", exact=True).click()
    row.get_by_role("button", name="Unload").wait_for()
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    row.get_by_text("unload it first").wait_for()
    row.get_by_role("button", name="Unload").click()
    row.get_by_role("button", name="Load", exact=True).wait_for()
    forgive(problems, 409)


def test_what_is_not_there_is_said(server, page, problems):
    page.goto("/runs/0123")
    page.get_by_text("there is no job '0123'").wait_for()
    page.get_by_role("button", name="Try again").wait_for()
    forgive(problems, 404, 404)


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_its_window(server, page, width):
    page.set_viewport_size({"width": width, "height": 844})
    for path in (*PAGES, f"/runs/{server.trained('first')}"):
        opened(page, path)
        page.wait_for_load_state("load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_everything_can_be_reached_by_keyboard(server, page):
    server.trained("first")
    opened(page, "/")
    page.get_by_role("link", name="first").wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "document.activeElement.innerText || document.activeElement.getAttribute('aria-label')"
        )
        reached.add((name or "").strip())
    assert {"Runs", "Playground", "New run", "first", "Compare first", "State"} <= reached
    names = page.evaluate(
        """[...document.querySelectorAll('input, select, textarea, button, a')]
           .filter(e => !(e.labels?.length || e.innerText.trim() || e.getAttribute('aria-label')))
           .map(e => e.outerHTML)"""
    )
    assert names == []


def test_ten_thousand_points_stay_fluid(server, page):
    opened(page, "/")
    took = page.evaluate(
        """async () => {
          const { Chart } = await import("/static/components/chart.js");
          const keys = ["a", "b"];
          const color = "--series-1";
          const lines = keys.map((key) => ({ key, label: key, color, isSmooth: true }));
          const chart = new Chart({ title: "long", lines });
          document.querySelector("main").append(chart.element);
          const x = [...Array(10000).keys()];
          const wave = () => x.map((i) => Math.sin(i / 50));
          const data = new Map(keys.map((key) => [key, { x, y: wave() }]));
          const frame = () => new Promise(requestAnimationFrame);
          chart.smoothing = 0.5;
          chart.set(data);
          await frame(); await frame();
          const times = [];
          for (let turn = 0; turn < 10; turn += 1) {
            for (const { y } of data.values()) y.push(turn);
            x.push(10000 + turn);
            const before = performance.now();
            chart.set(data);
            await frame(); await frame();
            times.push(performance.now() - before);
          }
          chart.close();
          return times.sort((a, b) => a - b)[5];
        }"""
    )
    assert took < 250, f"{took} ms for a new point"


def test_dark_and_light_differ_and_both_can_be_read(server, page):
    opened(page, "/")
    seen = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen[scheme] = json.loads(
            page.evaluate(
                """() => {
                  const luminance = (name) => {
                    const value = getComputedStyle(document.documentElement).getPropertyValue(name);
                    const part = (at) => {
                      const c = parseInt(value.trim().slice(at, at + 2), 16) / 255;
                      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
                    };
                    return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5);
                  };
                  const names = ["bg", "panel", "ink", "soft", "accent", "good", "warn", "bad"];
                  const all = names.map((name) => [name, luminance("--" + name)]);
                  return JSON.stringify(Object.fromEntries(all));
                }"""
            )
        )
        colors = seen[scheme]
        for name in ("ink", "soft", "accent", "good", "warn", "bad"):
            for ground in ("bg", "panel"):
                low, high = sorted((colors[name], colors[ground]))
                # https://www.w3.org/TR/WCAG22/#contrast-minimum
                assert (high + 0.05) / (low + 0.05) >= 4.5, f"{scheme}: {name} on {ground}"
    assert seen["light"]["bg"] > 0.8 and seen["dark"]["bg"] < 0.05
