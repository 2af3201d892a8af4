"""Which models are in memory: one load for all, room, swaps, and nothing served that is damaged."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from serving import (
    CONFIG,
    LONG,
    damage,
    go_back,
    model_store,
    request,
    sample,
    tiny_model,
    until,
    write_checkpoint,
    write_job_checkpoint,
)

from nanogpt.checkpoint_folder import is_held, pin_checkpoint, prune_checkpoints
from nanogpt.inference.engine import Engine
from nanogpt.inference.events import Delta
from nanogpt.tokenizer import GPT2Tokenizer
from server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from server.metrics import Metrics
from server.models import kernels as kernels_module
from server.models import memory as module
from server.models import runners
from server.models.catalog import IMPORTERS, ModelCatalog
from server.models.kernels import Kernels
from server.models.loaded import build_engine
from server.models.memory import ModelState
from server.models.runners import memory_bytes_of
from server.serving.engine_thread import EngineFailure, EngineThread

ONE = memory_bytes_of(CONFIG, 4, "float32", None)
"""Bytes of one model in the store of these tests."""


@pytest.fixture
def builds(monkeypatch):
    """References that were built, in order; `gate`, once cleared, holds builds up."""

    class Builds(list):
        gate = threading.Event()

    found = Builds()
    found.gate.set()

    def build(ref, *rest):
        found.append((ref.reference, ref.folder.name))
        assert found.gate.wait(20)
        return build_engine(ref, *rest)

    monkeypatch.setattr(module, "build_engine", build)
    yield found
    found.gate.set()


@pytest.fixture
def importing(tmp_path, monkeypatch):
    """An import from imports/files has `begun` to read them, and waits at the `gate`."""
    (tmp_path / "imports" / "files").mkdir(parents=True)
    found = SimpleNamespace(begun=threading.Event(), gate=threading.Event())

    def read(folder):
        found.begun.set()
        assert found.gate.wait(20)
        config = replace(CONFIG, vocab_size=GPT2Tokenizer().vocab_size, n_layer=1)
        return config, tiny_model(config=config).state_dict()

    monkeypatch.setitem(IMPORTERS, "nanogpt", read)
    yield found
    found.gate.set()


async def read(stream) -> list[int]:
    tokens = []
    while events := await stream.next():
        tokens += [t for e in events if isinstance(e, Delta) for t in e.token_ids]
    return tokens


async def state(store, reference: str) -> ModelState:
    return (await store.get(reference)).state


async def test_concurrent_first_calls_load_once(tmp_path, builds):
    write_checkpoint(tmp_path / "models" / "tiny")
    builds.gate.clear()
    async with model_store(tmp_path) as store:

        async def generate(number: int) -> list[int]:
            async with store.acquire("tiny") as model:
                return await read(model.engine.submit(request(str(number), 5, seed=1)))

        calls = [asyncio.create_task(generate(number)) for number in range(20)]
        await until(lambda: bool(builds))
        assert await state(store, "tiny") is ModelState.LOADING
        calls[0].cancel()  # the others do not depend on the first
        builds.gate.set()
        results = await asyncio.gather(*calls[1:])
        assert len({tuple(tokens) for tokens in results}) == 1
        assert builds == [("tiny", "tiny")]
        assert await state(store, "tiny") is ModelState.LOADED


async def test_a_load_that_nobody_waits_for_any_more_still_ends_well(tmp_path, builds):
    write_checkpoint(tmp_path / "models" / "tiny")
    builds.gate.clear()
    async with model_store(tmp_path) as store:
        call = asyncio.create_task(store.load("tiny"))
        await until(lambda: bool(builds))
        call.cancel()
        await asyncio.wait([call])
        builds.gate.set()
        async with store.acquire("tiny") as model:
            assert model.weight_version == 10
        assert len(builds) == 1


async def test_a_damaged_model_is_never_served(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    damage(tmp_path / "models" / "tiny")
    async with model_store(tmp_path, memory_bytes=ONE) as store:
        for _ in range(2):  # the memory of a failed load is given back
            with pytest.raises(DataLoss) as lost:
                await store.load("tiny")
            assert str(tmp_path) not in lost.value.message
        assert await state(store, "tiny") is ModelState.UNLOADED
        write_checkpoint(tmp_path / "models" / "tiny")
        await store.load("tiny")


async def test_a_failing_warm_up_fails_the_load(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "models" / "tiny")

    def raise_error(*_):
        raise RuntimeError("no")

    async with model_store(tmp_path, memory_bytes=ONE) as store:
        monkeypatch.setattr("nanogpt.model.GPT.hidden", raise_error)
        with pytest.raises(RuntimeError):
            await store.load("tiny")
        monkeypatch.undo()
        await store.load("tiny")


async def test_idle_models_make_room_the_one_longest_unused_first(tmp_path, builds):
    for name in ("a", "b", "c"):
        write_checkpoint(tmp_path / "models" / name)
    metrics = Metrics()
    async with model_store(tmp_path, memory_bytes=2 * ONE, metrics=metrics) as store:
        for name in ("a", "b", "a", "c"):
            async with store.acquire(name) as model:
                await read(model.engine.submit(request("r", 1)))
        assert [await state(store, name) for name in "abc"] == [
            ModelState.LOADED,
            ModelState.UNLOADED,
            ModelState.LOADED,
        ]
        assert sample(metrics, "generation_tokens_total", model="a") == 2
        # the series of a model that is gone are gone
        assert {
            s.labels["model"]
            for family in metrics.registry.collect()
            for s in family.samples
            if "model" in s.labels
        } == {"a", "c"}


async def test_a_model_that_is_being_freed_makes_room_before_long(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / "models" / name)
    stop, gate, stopping = EngineThread.stop, asyncio.Event(), asyncio.Event()

    async def slow_stop(self, grace_seconds):
        stopping.set()
        await gate.wait()
        await stop(self, grace_seconds)

    monkeypatch.setattr(EngineThread, "stop", slow_stop)
    async with model_store(tmp_path, memory_bytes=ONE) as store:
        await store.load("a")
        unloading = asyncio.create_task(store.unload("a"))
        await stopping.wait()
        with pytest.raises(ResourceExhausted) as refused:
            await store.load("b")
        assert refused.value.retry_seconds is not None
        gate.set()
        await unloading
        assert (await store.load("b")).state is ModelState.LOADED


async def test_models_in_use_or_kept_do_not_make_room(tmp_path):
    for name in ("a", "b", "c"):
        write_checkpoint(tmp_path / "models" / name)
    async with model_store(tmp_path, memory_bytes=2 * ONE) as store:
        await store.load("a")
        async with store.acquire("b"):
            with pytest.raises(ResourceExhausted, match="MB") as refused:
                await store.load("c")
            assert refused.value.retry_seconds is not None  # b will be free some time
        await store.load("b")
        with pytest.raises(ResourceExhausted) as refused:
            await store.load("c")
        assert refused.value.retry_seconds is None  # nothing happens by itself
        await store.unload("a")
        assert (await store.load("c")).state is ModelState.LOADED


async def test_a_model_larger_than_the_budget_frees_nothing(tmp_path):
    write_checkpoint(tmp_path / "models" / "a")
    async with model_store(tmp_path, memory_bytes=ONE - 1) as store:
        with pytest.raises(ResourceExhausted):
            await store.load("a")


async def test_models_take_half_of_the_memory_unless_told_otherwise(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "models" / "a")
    for total, has_room in ((2 * ONE, True), (2 * ONE - 2, False)):
        monkeypatch.setattr(module, "total_memory_bytes", lambda device, total=total: total)
        async with model_store(tmp_path, memory_bytes=None) as store:
            with nullcontext() if has_room else pytest.raises(ResourceExhausted):
                await store.load("a")


async def test_two_loads_do_not_count_on_the_same_room(tmp_path, builds):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / "models" / name)
    builds.gate.clear()
    async with model_store(tmp_path, memory_bytes=ONE) as store:
        first = asyncio.create_task(store.load("a"))
        await until(lambda: bool(builds))
        with pytest.raises(ResourceExhausted):
            await store.load("b")
        builds.gate.set()
        await first


async def test_a_newer_checkpoint_takes_over_while_an_old_stream_finishes(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    metrics = Metrics()
    async with model_store(tmp_path, metrics=metrics) as store:
        async with store.acquire("job:j1") as old:
            assert (old.name, old.weight_version) == ("trained", 100)
            running = old.engine.submit(request("running", 1000, seed=1))
            await running.next()
            write_job_checkpoint(tmp_path, "j1", 200)
            async with store.acquire("job:j1") as new:
                assert new.weight_version == 200
                await read(new.engine.submit(request("new", 5)))
                assert not old.engine.has_ended
            assert sample(metrics, "weight_version_info", model="trained", version="100") == 1
            tokens = await read(running)
        assert running.completion_tokens == 1000 and tokens
        await until(lambda: old.engine.has_ended)
        await until(lambda: metrics_versions(metrics) == {"200"})
        assert sample(metrics, "request_finished_total", model="trained", finish_reason="length")


def metrics_versions(metrics) -> set[str]:
    return {
        s.labels["version"]
        for family in metrics.registry.collect()
        if family.name == "nanogpt_weight_version_info"
        for s in family.samples
    }


async def test_an_older_look_at_a_job_does_not_bring_the_old_weights_back(tmp_path, monkeypatch):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with model_store(tmp_path) as store:
        old = store.resolve("job:j1")
        write_job_checkpoint(tmp_path, "j1", 200)
        await store.load("job:j1")
        with monkeypatch.context() as patch:
            patch.setattr(store, "resolve", lambda *_: old)  # a caller that looked long ago
            async with store.acquire("job:j1") as model:
                assert model.weight_version == 200


async def answer(store, reference: str) -> tuple[int, list[int]]:
    """The step that GetModel tells of, which is the one that answers, and the answer."""
    async with store.acquire(reference) as model:
        step = (await store.get(reference)).meta.step
        assert model.weight_version == step
        return step, await read(model.engine.submit(request("r", 20, temperature=0)))


async def test_a_job_that_went_back_answers_with_what_it_wrote_since(tmp_path, builds):
    write_job_checkpoint(tmp_path, "j1", 100)
    abandoned = write_job_checkpoint(tmp_path, "j1", 150)
    async with model_store(tmp_path) as store:
        before = await answer(store, "job:j1")
        pin_checkpoint(abandoned)
        go_back(tmp_path, "j1", 100)
        assert (await answer(store, "job:j1"))[0] == 100
        write_job_checkpoint(tmp_path, "j1", 125, rollbacks=1)
        assert (await answer(store, "job:j1"))[0] == 125
        write_job_checkpoint(tmp_path, "j1", 150, rollbacks=1)
        step, tokens = await answer(store, "job:j1")
        assert (before[0], step) == (150, 150) and tokens != before[1]
        # a crash can have a step written again without going back
        write_checkpoint(abandoned, step=150, seed=7, job_id="j1", rollbacks=1)
        assert await answer(store, "job:j1") not in (before, (step, tokens))
        loads = len(builds)
        go_back(tmp_path, "j1", 150, rollbacks=2)
        await answer(store, "job:j1")
        assert len(builds) == loads  # these weights were in memory


async def test_a_step_that_is_written_again_takes_over_from_the_abandoned_one(tmp_path):
    for step in (100, 150):
        write_job_checkpoint(tmp_path, "j1", step)
    async with model_store(tmp_path) as store:
        before = await answer(store, "job:j1@150")
        go_back(tmp_path, "j1", 100)
        assert await answer(store, "job:j1@150") == before  # held
        folder = write_job_checkpoint(tmp_path, "j1", 150, rollbacks=1)
        after = await answer(store, "job:j1@150")
        assert after[0] == 150 and after != before
        await until(lambda: len(store.in_memory) == 1)
        assert is_held(folder)
        await store.unload("job:j1@150")
        assert not is_held(folder)


async def test_a_damaged_checkpoint_that_is_written_again_is_tried_again(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with model_store(tmp_path) as store:
        await store.load("job:j1")
        damage(write_job_checkpoint(tmp_path, "j1", 150))
        async with store.acquire("job:j1") as model:
            assert model.weight_version == 100
        write_job_checkpoint(tmp_path, "j1", 150)
        assert (await answer(store, "job:j1"))[0] == 150


async def test_a_damaged_newer_checkpoint_leaves_the_old_one_serving(tmp_path, builds):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with model_store(tmp_path) as store:
        await store.load("job:j1")
        damage(write_job_checkpoint(tmp_path, "j1", 200))
        for _ in range(3):
            async with store.acquire("job:j1") as model:
                assert model.weight_version == 100
        assert len(builds) == 2  # the damaged one is not read again for each request
        write_job_checkpoint(tmp_path, "j1", 300)
        async with store.acquire("job:j1") as model:
            assert model.weight_version == 300


async def test_a_checkpoint_pruned_while_it_loads_gives_way_to_the_newer_one(tmp_path, builds):
    old = write_job_checkpoint(tmp_path, "j1", 100)
    builds.gate.clear()
    async with model_store(tmp_path) as store:
        loading = asyncio.create_task(store.load("job:j1"))
        await until(lambda: bool(builds))
        write_job_checkpoint(tmp_path, "j1", 200)
        shutil.rmtree(old)
        builds.gate.set()
        assert (await loading).meta.step == 200
        async with store.acquire("job:j1") as model:
            assert model.weight_version == 200


async def test_a_certain_checkpoint_outlives_pruning_while_it_is_loaded(tmp_path):
    for step in (100, 200):
        folder = write_job_checkpoint(tmp_path, "j1", step)
    async with model_store(tmp_path) as store:
        await store.load("job:j1@100")
        prune_checkpoints(folder.parent, 200, keep=1)
        async with store.acquire("job:j1@100") as old, store.acquire("job:j1") as newest:
            assert (old.weight_version, newest.weight_version) == (100, 200)
            async with store.export("job:j1@100", "nanogpt") as paths:
                assert torch.load(paths[0], weights_only=True)["iter_num"] == 100
        await store.unload("job:j1@100")
        prune_checkpoints(folder.parent, 200, keep=1)
        with pytest.raises(NotFound, match="has no checkpoint of step 100; there are 200"):
            await store.load("job:j1@100")


async def test_a_load_that_fails_keeps_no_checkpoint(tmp_path):
    folder = write_job_checkpoint(tmp_path, "j1", 100)
    damage(folder)
    async with model_store(tmp_path) as store:
        with pytest.raises(DataLoss):
            await store.load("job:j1@100")
        assert not is_held(folder)


async def test_loads_do_not_hold_up_what_else_needs_a_thread(tmp_path, builds):
    for name in "abcdefgh":
        write_checkpoint(tmp_path / "models" / name)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
    builds.gate.clear()
    async with model_store(tmp_path) as store:
        loads = [asyncio.create_task(store.load(name)) for name in "abcdefgh"]
        await until(lambda: bool(builds))
        async with asyncio.timeout(10):
            for name in "abcdefgh":
                assert (await store.tokenizer(name)).kind == "char"
        builds.gate.set()
        await asyncio.gather(*loads)


async def test_a_newer_checkpoint_that_does_not_fit_beside_the_old(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100)
    async with model_store(tmp_path, memory_bytes=ONE) as store:
        async with store.acquire("job:j1"):
            write_job_checkpoint(tmp_path, "j1", 200)
            async with store.acquire("job:j1") as model:  # in use: it stays
                assert model.weight_version == 100
        async with store.acquire("job:j1") as model:  # idle: it makes room
            assert model.weight_version == 200


async def test_loading_in_another_precision_lets_running_requests_finish(tmp_path, builds):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path) as store:
        async with store.acquire("tiny") as old:
            stream = old.engine.submit(request("old", 200, seed=1))
            await store.load("tiny", precision="bfloat16")
            async with store.acquire("tiny") as new:  # as it was asked for last
                assert (new.precision, old.precision) == ("bfloat16", "float32")
                assert new.engine is not old.engine
            assert len(await read(stream)) == 200
        assert len(builds) == 2


@pytest.fixture
def compiling(kernels, monkeypatch):
    """Compiling takes until this event is set, and leads to the session's kernels."""
    gate = threading.Event()
    monkeypatch.setattr(kernels_module, "cached_kernels", lambda folder: None)
    monkeypatch.setattr(
        kernels_module, "compiled_kernels", lambda folder, nice, cancelled: gate.wait(20) and folder
    )
    monkeypatch.setattr(kernels_module, "Library", lambda path: kernels)
    yield gate
    gate.set()


async def test_kernels_take_over_from_pytorch_without_a_pause(tmp_path, builds, compiling):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path, kernels=Kernels(tmp_path)) as store:
        await store.load("tiny")
        adopting = asyncio.create_task(store.adopt_kernels())
        async with store.acquire("tiny") as old:
            assert not old.is_native
            stream = old.engine.submit(request("old", 200, temperature=0))
            builds.gate.clear()
            compiling.set()
            await until(lambda: len(builds) == 2)
            async with store.acquire("tiny") as meanwhile:
                assert meanwhile is old
            builds.gate.set()
            await adopting
            async with store.acquire("tiny") as new:
                assert new.is_native and new.engine is not old.engine
                tokens = await read(new.engine.submit(request("new", 200, temperature=0)))
            assert await read(stream) == tokens
        assert len(builds) == 2
        write_checkpoint(tmp_path / "models" / "other")
        async with store.acquire("other") as other:
            assert other.is_native


@pytest.fixture
def exhausted(monkeypatch):
    """References that did not fit, one for each attempt."""
    found = []
    does_not_fit = module.ModelMemory._does_not_fit

    def note(self, needed, kept, slot):
        found.append(slot.reference)
        return does_not_fit(self, needed, kept, slot)

    monkeypatch.setattr(module.ModelMemory, "_does_not_fit", note)
    return found


@pytest.fixture
async def tight_store(tmp_path, kernels, compiling):
    """A store that has no room for its model with and without kernels."""
    write_checkpoint(tmp_path / "models" / "tiny")
    room = memory_bytes_of(CONFIG, 4, "float32", kernels) + ONE - 1
    async with model_store(tmp_path, kernels=Kernels(tmp_path), memory_bytes=room) as store:
        yield store


async def test_kernels_take_over_when_a_model_without_room_for_two_is_held_no_more(
    tight_store, compiling, exhausted
):
    adopting = asyncio.create_task(tight_store.adopt_kernels())
    async with tight_store.acquire("tiny"):
        compiling.set()
        await until(lambda: bool(exhausted))
    await adopting
    assert exhausted == ["tiny"]
    async with tight_store.acquire("tiny") as model:
        assert model.is_native


async def test_stopping_does_not_wait_for_kernels_to_take_over(tight_store, compiling, exhausted):
    adopting = asyncio.create_task(tight_store.adopt_kernels())
    async with tight_store.acquire("tiny"):
        compiling.set()
        await until(lambda: bool(exhausted))
        await tight_store.end_requests()
    await adopting


async def test_a_model_that_cannot_be_loaded_anew_keeps_no_other_from_kernels(
    tmp_path, compiling, monkeypatch
):
    def build(ref, *rest):
        if compiling.is_set() and ref.name == "a":
            raise RuntimeError("no")
        return build_engine(ref, *rest)

    for name in ("a", "b"):
        write_checkpoint(tmp_path / "models" / name)
    monkeypatch.setattr(module, "build_engine", build)
    async with model_store(tmp_path, kernels=Kernels(tmp_path)) as store:
        for name in ("a", "b"):
            await store.load(name)
        compiling.set()
        await store.adopt_kernels()
        async with store.acquire("a") as failed, store.acquire("b") as adopted:
            assert (failed.is_native, adopted.is_native) == (False, True)


async def test_without_kernels_pytorch_goes_on(tmp_path, compiling, builds, monkeypatch):
    monkeypatch.setattr(kernels_module, "compiled_kernels", lambda folder, nice, cancelled: 1 / 0)
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path, kernels=Kernels(tmp_path)) as store:
        await store.load("tiny")
        await store.adopt_kernels()
        async with store.acquire("tiny") as model:
            assert not model.is_native
        with pytest.raises(FailedPrecondition, match="cannot run models in int8 on cpu"):
            await store.load("tiny", precision="int8")
        assert len(builds) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
async def test_kernels_hold_weights_in_any_precision(tmp_path, compiling, precision):
    """What PyTorch does not have waits for them."""
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path, kernels=Kernels(tmp_path)) as store:
        if precision == "bfloat16":  # which PyTorch would begin with
            compiling.set()
            await store.adopt_kernels()
        loading = asyncio.create_task(store.load("tiny", precision=precision))
        await asyncio.sleep(0)
        compiling.set()
        assert (await loading).precision == precision
        async with store.acquire("tiny") as model:
            assert model.is_native
            assert len(await read(model.engine.submit(request("r", 5)))) == 5


async def test_a_failed_load_in_another_precision_is_told_and_leaves_the_old_one(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path) as store:
        await store.load("tiny")
        damage(tmp_path / "models" / "tiny")
        with pytest.raises(DataLoss):
            await store.load("tiny", precision="bfloat16")
        async with store.acquire("tiny") as model:
            assert model.precision == "float32"
            assert len(await read(model.engine.submit(request("r", 5)))) == 5


async def test_invariance_that_cannot_be_had_fails_the_load(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path, batch_invariant=True) as store:
        monkeypatch.setattr(runners, "is_batch_invariant", lambda runner: False)
        with pytest.raises(FailedPrecondition, match="depend on the batch"):
            await store.load("tiny")
        monkeypatch.undo()
        async with store.acquire("tiny") as model:
            assert len(await read(model.engine.submit(request("r", 5)))) == 5


async def test_unloading_waits_for_running_requests(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path) as store:
        await store.load("tiny")
        async with store.acquire("tiny") as model:
            stream = model.engine.submit(request("a", 500))
            unloading = asyncio.create_task(store.unload("tiny"))
            assert len(await read(stream)) == 500
            assert not unloading.done()
        assert (await unloading).state is ModelState.UNLOADED
        assert model.engine.has_ended
        assert (await store.unload("tiny")).state is ModelState.UNLOADED
        with pytest.raises(NotFound):
            await store.unload("other")


async def test_a_loaded_model_is_not_deleted(tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path) as store:
        await store.load("tiny")
        with pytest.raises(FailedPrecondition):
            await store.delete("tiny")
        await store.unload("tiny")
        await store.delete("tiny")
        assert await store.list() == []
        with pytest.raises(NotFound):
            await store.delete("tiny")


async def test_a_model_is_not_deleted_while_one_of_its_steps_is_loaded(tmp_path):
    write_job_checkpoint(tmp_path, "j1", 100, model="tiny")
    write_checkpoint(tmp_path / "models" / "tiny", step=200, job_id="j1")
    async with model_store(tmp_path) as store:
        await store.load("job:j1")  # the job's, and not deleted with the model
        await store.load("tiny@100")
        with pytest.raises(FailedPrecondition, match="tiny@100"):
            await store.delete("tiny")
        await store.unload("tiny@100")
        await store.delete("tiny")
        with pytest.raises(NotFound):  # else a later model of that name would get these weights
            await store.load("tiny@100")


async def test_a_model_that_another_call_has_just_deleted(tmp_path, monkeypatch):
    async with model_store(tmp_path) as store:
        monkeypatch.setattr(ModelCatalog, "_folder", lambda self, name: tmp_path / name)
        with pytest.raises(NotFound):
            await store.delete("tiny")


async def test_a_dead_engine_is_replaced(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "models" / "tiny")
    async with model_store(tmp_path, memory_bytes=ONE) as store:
        async with store.acquire("tiny") as model:
            with monkeypatch.context() as patch:
                patch.setattr(Engine, "step", lambda self: 1 / 0)
                with pytest.raises(EngineFailure):
                    await read(model.engine.submit(request("a")))
        with monkeypatch.context() as patch:
            later = time.monotonic() + 3600
            patch.setattr(time, "monotonic", lambda: later)
            assert store.heartbeat_age_seconds == 0  # the next request replaces it: nothing hangs
        async with store.acquire("tiny") as again:
            assert again is not model
            assert len(await read(again.engine.submit(request("a", 5)))) == 5


async def test_a_tokenizer_needs_no_weights(tmp_path, builds):
    write_checkpoint(tmp_path / "models" / "tiny", tokenizer=GPT2Tokenizer())
    async with model_store(tmp_path) as store:
        assert (await store.tokenizer("tiny")).kind == "gpt2"
        assert builds == []


async def test_importing_refuses_names_of_models_in_training(tmp_path):
    async def training() -> set[str]:
        return {"mine"}

    async with model_store(tmp_path, models_in_training=training) as store:
        with pytest.raises(AlreadyExists):
            await store.import_model("mine", "files", "nanogpt", "")
        with pytest.raises(NotFound):
            await store.import_model("other", "files", "nanogpt", "")
        with pytest.raises(NotFound):
            await store.import_model("other", "files", "nanogpt", "no-such-dataset")


async def test_a_name_is_imported_once_at_a_time(tmp_path, monkeypatch):
    gate, imports = threading.Event(), []

    def write(self, name, *rest, alive):
        imports.append(name)
        assert gate.wait(20)
        write_checkpoint(tmp_path / "models" / name)

    async def training() -> set[str]:
        await asyncio.sleep(0)
        return set()

    monkeypatch.setattr(ModelCatalog, "import_model", write)
    async with model_store(tmp_path, models_in_training=training) as store:
        calls = [
            asyncio.create_task(store.import_model("mine", "files", "nanogpt", ""))
            for _ in range(2)
        ]
        await until(lambda: bool(imports))
        with pytest.raises(AlreadyExists):
            await calls[1]
        assert store.has("mine")  # no job may take it either
        calls[0].cancel()  # its caller has gone, the thread writes on
        await asyncio.wait(calls[:1])
        with pytest.raises(AlreadyExists):
            await store.import_model("mine", "files", "nanogpt", "")
        gate.set()
        await until(lambda: not store._importing)
        assert imports == ["mine"]
        assert (await store.get("mine")).meta.step == 10


async def test_imports_do_not_hold_up_what_else_needs_a_thread(tmp_path, importing):
    write_checkpoint(tmp_path / "models" / "tiny")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
    async with model_store(tmp_path) as store:
        imports = [
            asyncio.create_task(store.import_model(name, "files", "nanogpt", ""))
            for name in "abcdefgh"
        ]
        await until(importing.begun.is_set)
        async with asyncio.timeout(10):
            for _ in range(8):
                assert (await store.tokenizer("tiny")).kind == "char"
        importing.gate.set()
        await asyncio.gather(*imports)


async def test_stopping_awaits_imports_which_write_nothing_more(tmp_path, importing):
    async with model_store(tmp_path) as store:
        calls = [
            asyncio.create_task(store.import_model(name, "files", "nanogpt", "")) for name in "abc"
        ]
        await until(importing.begun.is_set)
        stopping = asyncio.create_task(store.stop())
        for _ in range(100):  # far more turns of the loop than it takes to stop without models
            await asyncio.sleep(0)
        assert not stopping.done()
        importing.gate.set()
        await stopping
        assert list((tmp_path / "models").iterdir()) == []
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3


async def test_stopping_ends_requests_and_loads(tmp_path, builds):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / "models" / name)
    async with model_store(tmp_path) as store:

        async def generate() -> None:
            async with store.acquire("a") as model:
                await read(model.engine.submit(request("r", LONG)))

        running = asyncio.create_task(generate())
        await until(lambda: len(builds) == 1)
        builds.gate.clear()
        loading = asyncio.create_task(store.load("b"))
        await until(lambda: len(builds) == 2)
        await store.stop()
        results = await asyncio.gather(running, loading, return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable, Unavailable]
        with pytest.raises(Unavailable):
            await store.load("a")
        builds.gate.set()


async def test_load_unload_and_generate_hammered_at_once(tmp_path):
    for name in ("a", "b", "c"):
        write_checkpoint(tmp_path / "models" / name)
    metrics = Metrics()
    async with model_store(tmp_path, memory_bytes=2 * ONE, metrics=metrics) as store:

        async def generate(number: int) -> int | str:
            try:
                async with store.acquire("abc"[number % 3]) as model:
                    return len(await read(model.engine.submit(request(str(number), 3))))
            except ResourceExhausted:
                return "no room"

        async def unload(number: int) -> str:
            await store.unload("abc"[number % 3])
            return "unloaded"

        calls = [(unload if number % 5 == 0 else generate)(number) for number in range(60)]
        results = await asyncio.gather(*calls)
        assert set(results) <= {3, "no room", "unloaded"}
        assert results.count(3) > 0
    assert not [s for f in metrics.registry.collect() for s in f.samples if "model" in s.labels]
