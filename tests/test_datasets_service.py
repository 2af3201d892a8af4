"""DatasetService over the wire."""

import asyncio
import hashlib
import threading
import time

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from nanogpt.datasets import shipped
from nanogpt.datasets.shipped import SHIPPED
from protos.nanogpt.v1 import datasets_pb2 as pb
from protos.nanogpt.v1 import datasets_pb2_grpc as pb_grpc
from server.dataset_store import DatasetStore
from server.gate import Gate
from server.interceptors import interceptor_chain
from server.metrics import Metrics
from server.services.datasets import DatasetService

TEXT = "To be, or not to be, that is the question.\n" * 10
MAX_UPLOAD_BYTES = 1 << 16


@pytest.fixture
def used() -> set[str]:
    """Names of datasets that jobs use."""
    return set()


@pytest.fixture
async def gate():
    return Gate()


@pytest.fixture
async def stub(tmp_path, used, gate):
    async def in_use():
        return used

    store = DatasetStore(tmp_path, max_upload_bytes=MAX_UPLOAD_BYTES, in_use=in_use)
    server = grpc.aio.server(interceptors=interceptor_chain(Metrics(), gate, 60))
    pb_grpc.add_DatasetServiceServicer_to_server(DatasetService(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.DatasetServiceStub(channel)
    await server.stop(0)


async def create(stub, *texts: str | bytes, **spec) -> pb.Dataset:
    """Uploads the texts, one message each, after the spec."""

    async def requests():
        yield pb.CreateDatasetRequest(spec=pb.DatasetSpec(**spec))
        for text in texts:
            data = text.encode() if isinstance(text, str) else text
            yield pb.CreateDatasetRequest(text=data)

    return (await stub.CreateDataset(requests())).dataset


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError, kind: type):
    trailers = dict(error.trailing_metadata())
    for packed in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__}")


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    """The fields that the error names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    return [v.field for v in details(error, error_details_pb2.BadRequest).field_violations]


async def test_an_upload_is_described(stub):
    before = time.time()
    made = await create(stub, TEXT[:100], TEXT[100:], name="hamlet", val_ratio=0.25)
    assert (made.name, made.tokenizer, made.encoding) == ("hamlet", pb.TOKENIZER_CHAR, "utf-8")
    assert made.characters == len(TEXT) == made.train_tokens + made.val_tokens
    assert made.val_tokens == pytest.approx(0.25 * len(TEXT), abs=1)
    assert made.vocab_size == len(set(TEXT))
    assert made.source_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert before - 1 < made.create_time.ToMicroseconds() / 1e6 < time.time() + 1
    assert (await stub.GetDataset(pb.GetDatasetRequest(name="hamlet"))).dataset == made
    assert list((await stub.ListDatasets(pb.ListDatasetsRequest())).datasets) == [made]


async def test_the_gpt2_tokenizer(stub):
    made = await create(stub, TEXT, name="hamlet", tokenizer=pb.TOKENIZER_GPT2)
    assert (made.tokenizer, made.vocab_size) == (pb.TOKENIZER_GPT2, 50257)
    assert made.train_tokens < len(TEXT) / 2


async def test_windows_text_is_recognized_or_named(stub):
    text = "déjà vu “quoted” ".encode("cp1252") * 20
    assert (await create(stub, text, name="found")).encoding == "cp1252"
    assert (await create(stub, text, name="named", encoding="cp1252")).encoding == "cp1252"
    error = await refused(create(stub, text, name="wrong", encoding="utf-8"))
    assert fields(error) == ["text"] and "offset 1 " in error.details()


async def test_documents_and_their_report(stub):
    text = "".join(f'{{"body": "Document {i}, and more.", "n": {i}}}\n' for i in range(20))
    made = await create(
        stub,
        text,
        name="web",
        format=pb.DatasetSpec.FORMAT_JSONL,
        text_field="body",
        max_documents=15,
        tokenizer=pb.TOKENIZER_GPT2,
    )
    assert (made.report.documents, made.report.empty_documents) == (15, 0)
    assert made.report.used_tokens > 15 and len(made.report.warnings) >= 1
    assert made.size_bytes > 2 * (made.train_tokens + made.val_tokens)
    error = await refused(create(stub, text, name="x", format=pb.DatasetSpec.FORMAT_JSONL))
    assert fields(error) == ["text"] and "line 1 has no field 'text'" in error.details()


async def test_a_dataset_that_is_being_made_is_listed(stub):
    call = stub.CreateDataset()
    await call.write(pb.CreateDatasetRequest(spec=pb.DatasetSpec(name="half")))
    await call.write(pb.CreateDatasetRequest(text=TEXT.encode()))
    while True:
        found = (await stub.ListDatasets(pb.ListDatasetsRequest())).in_progress
        if found and found[0].bytes_done:
            break
    assert found[0] == pb.DatasetInProgress(
        name="half", phase=pb.DatasetInProgress.PHASE_UPLOADING, bytes_done=len(TEXT)
    )
    call.cancel()


async def test_every_wrong_field_is_named_at_once(stub):
    spec = {
        "name": "../etc",
        "shipped": "shakespear",
        "tokenizer": 9,
        "val_ratio": float("nan"),
        "encoding": "latin-1",
        "format": 9,
        "text_field": "x" * 257,
        "max_documents": 0,
    }
    error = await refused(create(stub, TEXT, **spec))
    assert sorted(fields(error)) == [
        "spec.encoding",
        "spec.format",
        "spec.max_documents",
        "spec.name",
        "spec.shipped",
        "spec.text_field",
        "spec.tokenizer",
        "spec.val_ratio",
    ]
    assert "did you mean 'shakespeare'" in error.details()


@pytest.mark.parametrize("val_ratio", [0, -0.1, 0.51, 1, float("inf")])
async def test_the_split_has_a_range(stub, val_ratio):
    assert fields(await refused(create(stub, TEXT, name="x", val_ratio=val_ratio))) == [
        "spec.val_ratio"
    ]


async def test_a_name_is_required_for_an_upload(stub):
    assert fields(await refused(create(stub, TEXT))) == ["spec.name"]


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "spec"),
        ([pb.CreateDatasetRequest()], "spec"),
        ([pb.CreateDatasetRequest(text=b"x")], "spec"),
        ([pb.CreateDatasetRequest(spec=pb.DatasetSpec(name="x"))] * 2, "text"),
        (
            [
                pb.CreateDatasetRequest(spec=pb.DatasetSpec(name="x")),
                pb.CreateDatasetRequest(),
            ],
            "text",
        ),
    ],
)
async def test_the_spec_comes_first_and_once(stub, requests, field):
    async def each():
        for request in requests:
            yield request

    assert fields(await refused(stub.CreateDataset(each()))) == [field]


@pytest.mark.parametrize("text", ["", "x"])
async def test_a_text_too_short_to_split(stub, text):
    assert fields(await refused(create(stub, text, name="x"))) == ["text"]


async def test_a_taken_name(stub):
    await create(stub, TEXT, name="hamlet")
    error = await refused(create(stub, TEXT, name="hamlet"))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert details(error, error_details_pb2.ResourceInfo).resource_name == "hamlet"


async def test_an_upload_beyond_the_limit(stub, tmp_path):
    error = await refused(create(stub, *["x" * 1024] * 65, name="big"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
    assert details(error, error_details_pb2.QuotaFailure).violations[0].subject == "upload_bytes"
    assert list((tmp_path / "datasets").iterdir()) == []


async def test_a_client_that_goes_away_leaves_nothing(stub, tmp_path, gate):
    call = stub.CreateDataset()
    await call.write(pb.CreateDatasetRequest(spec=pb.DatasetSpec(name="half")))
    await call.write(pb.CreateDatasetRequest(text=TEXT.encode()))
    while not list((tmp_path / "datasets").iterdir()):
        await asyncio.sleep(0.001)
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    while list((tmp_path / "datasets").iterdir()):
        await asyncio.sleep(0.001)
    await gate.idle()
    assert (await create(stub, TEXT, name="half")).name == "half"


async def test_a_shipped_dataset_by_its_name_alone(stub):
    made = await create(stub, shipped="python_reference")
    assert made.name == "python_reference" and made.characters > 300_000
    assert (await create(stub, shipped="python_reference", name="mine")).name == "mine"


async def test_a_shipped_text_that_is_sent_is_checked(stub, monkeypatch):
    monkeypatch.setattr(shipped, "_python_reference", TEXT.encode)
    spec = {"shipped": "python_reference", "name": "mine"}
    assert fields(await refused(create(stub, TEXT, "!", **spec))) == ["text"]
    assert (await create(stub, TEXT, **spec)).characters == len(TEXT)


async def test_what_a_shipped_dataset_fixes_cannot_be_changed(stub):
    spec = {
        "tokenizer": pb.TOKENIZER_GPT2,
        "val_ratio": 0.2,
        "encoding": "cp1252",
        "format": pb.DatasetSpec.FORMAT_TAR,
    }
    error = await refused(create(stub, shipped="shakespeare_char", **spec))
    assert fields(error) == [
        "spec.tokenizer",
        "spec.val_ratio",
        "spec.encoding",
        "spec.format",
    ]


async def test_the_list_tells_what_ships(stub):
    answer = await stub.ListDatasets(pb.ListDatasetsRequest())
    assert {s.name: s.needs_download for s in answer.shipped} == {
        "python_reference": False,
        "shakespeare": True,
        "shakespeare_char": True,
    }
    assert all(s.description == SHIPPED[s.name].description for s in answer.shipped)


@pytest.mark.parametrize("name", ["", "nope", "../x", "a" * 5000])
async def test_unknown_names_are_not_found(stub, name):
    for call in (
        stub.GetDataset(pb.GetDatasetRequest(name=name)),
        stub.DeleteDataset(pb.DeleteDatasetRequest(name=name)),
    ):
        error = await refused(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert details(error, error_details_pb2.ResourceInfo).resource_type == "nanogpt.v1.dataset"


async def test_a_dataset_in_use_cannot_be_deleted(stub, used):
    await create(stub, TEXT, name="hamlet")
    used.add("hamlet")
    error = await refused(stub.DeleteDataset(pb.DeleteDatasetRequest(name="hamlet")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    [violation] = details(error, error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("DATASET_IN_USE", "hamlet")
    used.clear()
    await stub.DeleteDataset(pb.DeleteDatasetRequest(name="hamlet"))
    assert not (await stub.ListDatasets(pb.ListDatasetsRequest())).datasets


async def test_a_draining_server_takes_no_uploads(stub, gate):
    gate.close()
    error = await refused(create(stub, TEXT, name="hamlet"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    await stub.ListDatasets(pb.ListDatasetsRequest())


async def test_the_loop_does_not_wait_for_the_disk(stub, monkeypatch):
    await create(stub, TEXT, name="tiny")
    off_the_loop = {}

    def watch(name):
        read = getattr(DatasetStore, name)

        def watched(*arguments):
            off_the_loop[name] = threading.current_thread() is not threading.main_thread()
            return read(*arguments)

        monkeypatch.setattr(DatasetStore, name, watched)

    watch("get")
    await stub.GetDataset(pb.GetDatasetRequest(name="tiny"))
    watch("list")
    await stub.ListDatasets(pb.ListDatasetsRequest())
    assert off_the_loop == {"get": True, "list": True}
