"""Makes docs/screenshots/: every page of the dashboard, light and dark, and one on a phone.

    make screenshots

Starts a server in a temporary folder, trains two small models on the Python reference, lets one
write, and looks at all of it in Chromium.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).resolve().parent / "screenshots"
ROOT = FOLDER.parent.parent
SIZE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
COLORS = 128
CONFIG = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 64,
    "block_size": 64,
    "batch_size": 8,
    "max_iters": 800,
    "lr_decay_iters": 800,
    "eval_interval": 100,
    "eval_iters": 5,
    "log_interval": 2,
}
RATES = {"warm": 1e-3, "warmer": 4e-3}
WRITE_FOR_LONG = """() => {
  const body = JSON.stringify({ model: "warmer", stopping: { max_new_tokens: 60000 } });
  const headers = { "Content-Type": "application/json" };
  const write = () => { fetch("/api/generate", { method: "POST", headers, body }); };
  for (const seconds of [0, 2, 4]) setTimeout(write, 1000 * seconds);
}"""
"""Requests that begin one after the other and end with the page."""


def main() -> None:
    with tempfile.TemporaryDirectory() as data_dir:
        command = [sys.executable, "-m", "server", "--grpc_address=127.0.0.1:0"]
        command += ["--http_address=127.0.0.1:0", f"--data_dir={data_dir}"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found, "the server did not start"
            shoot(found[0], train(found[0]))
        finally:
            server.terminate()
            server.wait()


def train(url: str) -> str:
    """Trains the models and returns the id of the newest run."""
    with httpx.Client(base_url=url, timeout=60) as http:
        made = {"shipped": "python_reference"}
        http.post("/api/datasets/python_reference", params=made, json={}).raise_for_status()
        for model, rate in RATES.items():
            config = {**CONFIG, "learning_rate": rate}
            request = {"model": model, "dataset": "python_reference", "config": config}
            http.post("/api/jobs", json=request).raise_for_status()
        while True:
            jobs = http.get("/api/jobs").json()["jobs"]
            if all(job["state"] == "SUCCEEDED" for job in jobs):
                return str(jobs[0]["id"])
            assert not any(job["error"] for job in jobs), jobs
            time.sleep(1)


def shoot(url: str, job_id: str) -> None:
    """Looks at every page."""
    FOLDER.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=chromium, args=arguments)
        for scheme in ("light", "dark"):
            page = opened(browser, url, scheme, SIZE)
            page.goto("/")
            page.get_by_label("Compare warm", exact=True).check()
            page.get_by_label("Compare warmer", exact=True).check()
            save(page, f"runs-{scheme}")
            page.goto(f"/runs/{job_id}")
            page.get_by_label("Smoothing").fill("0.9")
            page.get_by_label("Smoothing").blur()
            save(page, f"run-{scheme}")
            page.goto("/new")
            page.get_by_text("Tokens in all").wait_for()
            save(page, f"new-{scheme}")
            page.goto("/playground?model=warmer")
            write(page)
            save(page, f"playground-{scheme}")
            page.goto("/serving")
            page.get_by_text("First token").wait_for()
            page.evaluate(WRITE_FOR_LONG)
            page.wait_for_timeout(8000)
            save(page, f"serving-{scheme}")
            page.goto("/datasets")
            page.get_by_text("Upload a text").wait_for()
            save(page, f"datasets-{scheme}")
            page.close()
        page = opened(browser, url, "light", PHONE)
        page.goto(f"/runs/{job_id}")
        save(page, "run-phone")
        browser.close()


def opened(browser: Browser, url: str, scheme: str, size: dict[str, int]) -> Page:
    return browser.new_page(base_url=url, color_scheme=scheme, viewport=size)  # type: ignore[arg-type]


def write(page: Page) -> None:
    """Lets the model write, and points at one of its tokens."""
    page.get_by_label("Prompt").fill("The with statement")
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("New tokens").fill("300")
    page.get_by_label("Colour tokens").check()
    page.get_by_role("button", name="Write").click()
    page.get_by_text("18 + 300 tokens").wait_for()
    page.locator("[data-index]").nth(20).hover()


def save(page: Page, name: str) -> None:
    """What the window shows, in few colours: as small as a drawing should be."""
    page.wait_for_timeout(800)
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)


if __name__ == "__main__":
    main()
