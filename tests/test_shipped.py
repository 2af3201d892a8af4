import dataclasses
import hashlib
import io
import ssl
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nanogpt.datasets.dataset import BadDataset, Dataset
from nanogpt.datasets.prepare import prepare_text
from nanogpt.datasets.shipped import SHIPPED, DownloadFailed

TEXT = b"Enter KING.\nKING.\nGood morrow.\n" * 10_000


class Handler(BaseHTTPRequestHandler):
    """Answers /text with TEXT, anything else with 404."""

    def do_GET(self):
        if self.path != "/text":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT)

    def log_message(self, *args):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def downloaded_from(url: str, content: bytes = TEXT):
    return dataclasses.replace(
        SHIPPED["shakespeare_char"], url=url, sha256=hashlib.sha256(content).hexdigest()
    )


def test_names_and_tokenizers():
    assert {name: dataset.tokenizer for name, dataset in SHIPPED.items()} == {
        "python_reference": "char",
        "shakespeare_char": "char",
        "shakespeare": "gpt2",
    }
    for name, dataset in SHIPPED.items():
        assert dataset.name == name
        assert dataset.val_ratio == 0.1
        assert (dataset.url is None) == (dataset.sha256 is None)
        assert dataset.url is None or dataset.url.startswith("https://")


def test_python_reference_makes_a_dataset_without_a_network(tmp_path):
    reference = SHIPPED["python_reference"]
    reference.write_text(tmp_path / "text")
    reference.check_text(tmp_path / "text")
    meta = prepare_text(tmp_path / "text", tmp_path / "made", tokenizer=reference.tokenizer)
    assert meta.characters > 300_000
    assert 90 < meta.vocab_size < 200
    dataset = Dataset.open(tmp_path / "made")
    assert '"assert" statement' in dataset.tokenizer.decode(dataset.tokens("train").tolist())


def test_python_reference_is_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        SHIPPED["python_reference"].write_text(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("name", SHIPPED)
def test_another_text_is_refused(tmp_path, name):
    (tmp_path / "text").write_bytes(TEXT)
    with pytest.raises(BadDataset, match=f"not the text of {name}: its SHA-256 is "):
        SHIPPED[name].check_text(tmp_path / "text")


def test_download(address, tmp_path):
    downloaded_from(f"{address}/text").write_text(tmp_path / "text")
    assert (tmp_path / "text").read_bytes() == TEXT
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_download_of_another_text_leaves_nothing(address, tmp_path):
    with pytest.raises(BadDataset, match="SHA-256"):
        downloaded_from(f"{address}/text", b"another").write_text(tmp_path / "text")
    assert list(tmp_path.iterdir()) == []


def test_failed_download_says_what_to_do(address, tmp_path):
    with pytest.raises(DownloadFailed, match=r"from 127.0.0.1:\d+ .*404.* local file instead"):
        downloaded_from(f"{address}/elsewhere").write_text(tmp_path / "text")
    assert list(tmp_path.iterdir()) == []


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DownloadFailed, match=r"githubusercontent.com .*local file instead"):
        SHIPPED["shakespeare"].write_text(tmp_path / "text")
    assert list(tmp_path.iterdir()) == []


def test_downloads_verify_the_server_and_do_not_wait_for_ever(tmp_path, monkeypatch):
    asked = {}

    def urlopen(url, *, timeout, context):
        asked.update(url=url, timeout=timeout, context=context)
        return io.BytesIO(TEXT)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    downloaded_from("https://example.org/text").write_text(tmp_path / "text")
    assert asked["url"] == "https://example.org/text"
    assert asked["context"].verify_mode is ssl.CERT_REQUIRED
    assert asked["context"].check_hostname
    assert 0 < asked["timeout"] <= 60
