"""What the page shows: models and jobs, newest first."""

from collections.abc import Iterable

from server.jobs.service import JobService, Report
from server.models.store import ModelInfo, ModelStore
from server.web.page import Table

NUM_JOBS = 50


async def overview(models: ModelStore, jobs: JobService) -> list[Table]:
    """Every model, and the newest jobs."""
    reports, _ = await jobs.page(NUM_JOBS, None)
    return [_models(await models.list()), _jobs(reports)]


def _models(models: Iterable[ModelInfo]) -> Table:
    return Table(
        title="Models",
        columns=("name", "state", "parameters", "step", "validation loss"),
        rows=[
            (
                model.name,
                model.state.lower(),
                f"{model.parameter_count:,}",
                f"{model.meta.step:,}",
                _loss(model.meta.val_loss),
            )
            for model in models
        ],
        empty="None yet. Train one, or import one.",
    )


def _jobs(reports: Iterable[Report]) -> Table:
    return Table(
        title="Training jobs",
        columns=("id", "model", "dataset", "state", "step", "validation loss"),
        rows=[
            (
                report.job.id,
                report.job.model,
                report.job.dataset,
                report.job.state.lower(),
                f"{report.progress.step:,} of {report.job.config.max_iters:,}",
                _loss(report.progress.best_val_loss),
            )
            for report in reports
        ],
        empty="None yet.",
    )


def _loss(nats: float | None) -> str:
    return "" if nats is None else f"{nats:.4f}"
