"""Metrics: names, buckets, one registry for each server, and no series of models that are gone."""

import itertools
import math
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import REQUEST_SECONDS, TOKEN_SECONDS, Metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def exposed(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_buckets_are_geometric():
    assert len(TOKEN_SECONDS) == 26 and len(REQUEST_SECONDS) == 32
    assert TOKEN_SECONDS[:4] == (0.00025, 0.000375, 0.0005625, 0.0008437)
    assert TOKEN_SECONDS[-1] == 6.313
    assert REQUEST_SECONDS[:4] == (0.001, 0.0015, 0.00225, 0.003375)
    assert REQUEST_SECONDS[-1] == 287.6
    for bounds in (TOKEN_SECONDS, REQUEST_SECONDS):
        ratios = [b / a for a, b in itertools.pairwise(bounds)]
        assert all(math.isclose(ratio, 1.5, rel_tol=1e-3) for ratio in ratios)


def test_attributes_are_named_after_their_metrics():
    metrics = Metrics()
    families = {f.name: f.type for f in text_string_to_metric_families(exposed(metrics))}
    for name in vars(metrics):
        if name != "registry" and not name.startswith("_"):
            plain = name if name.startswith("grpc_") else f"nanogpt_{name}"
            assert plain in families or plain.removesuffix("_total") in families, plain


def test_names_end_in_their_unit():
    metrics = Metrics()
    for family in text_string_to_metric_families(exposed(metrics)):
        assert ":" not in family.name
        if family.type == "histogram" and family.name.startswith("nanogpt_"):
            assert family.name.endswith(("_seconds", "_size", "_tokens")), family.name


def test_several_servers_live_in_one_process():
    first, second = Metrics(), Metrics()
    first.train_steps_total.inc(3)
    assert first.registry.get_sample_value("nanogpt_train_steps_total") == 3
    assert second.registry.get_sample_value("nanogpt_train_steps_total") == 0


def test_a_forgotten_model_leaves_no_series():
    metrics = Metrics()
    for model in ("old", "kept"):
        metrics.batch_size.labels(model=model).observe(3)
        metrics.num_requests_running.labels(model=model).set(1)
        metrics.request_finished_total.labels(model=model, finish_reason="length").inc()
        metrics.request_finished_total.labels(model=model, finish_reason="stop").inc()
        metrics.weight_version_info.labels(model=model, version="10").set(1)
    metrics.forget_model("old")
    metrics.forget_model("never loaded")
    assert 'model="old"' not in exposed(metrics)
    assert exposed(metrics).count('model="kept"') > 4


@pytest.mark.parametrize("name", ["train_loss", "train_mfu_ratio", "train_learning_rate"])
def test_what_is_not_known_yet_is_not_zero(name):
    assert math.isnan(Metrics().registry.get_sample_value(f"nanogpt_{name}"))


def test_the_process_is_described():
    assert "process_resident_memory_bytes" in exposed(Metrics())


def test_names_beside_those_of_vllm_exist():
    rows = re.findall(r"^\| `(\w+)` \| `(\S+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    ours, theirs = zip(*rows, strict=True)
    assert all(name.startswith("vllm:") for name in theirs)
    assert len(set(ours)) == len(set(theirs)) == len(rows) > 20
    assert {name.removeprefix("nanogpt_") for name in ours} <= vars(Metrics()).keys()
