"""Several processes that train one run: averages, agreements, and a model spread over all of them.

Two ways to spread it: DDP, each process has all of it and gradients are averaged, and FSDP2, each
has a share of every weight, gradient and moment. https://arxiv.org/abs/2006.15704,
https://arxiv.org/abs/2304.11277. Checkpoints hold whole tensors either way, so any number of
processes can go on with them. What the methods promise stands in `world.py`. Who starts the
processes it does not know.
"""

import datetime
import faulthandler
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from nanogpt.config import TrainConfig
from nanogpt.device import pick_device
from nanogpt.ensemble import Network
from nanogpt.option import InvalidConfig, Violation
from nanogpt.training.step import autocast
from nanogpt.training.world import Forward, Place, T, World

START_SECONDS = 300
"""How long processes wait for each other at the start; then they end, with a trace of where."""

COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)
"""For one that hangs; one that dies is noticed at once. Longer than any evaluation or save."""


class Group(World):
    """Two or more processes, over torch's process group. Create with `join`."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._unsynchronized: Callable[[], AbstractContextManager[None]] = nullcontext

    def leave(self) -> None:
        """Waits until all are about to end: whoever does takes the connections along. Together.

        One that failed ends without it: the others may be anywhere, and notice at once.
        """
        self.any(False)

    def any(self, flag: bool) -> bool:
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def mean(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value / self.size

    def of_first(self, value: T) -> T:
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def spread(self, model: Network, sharding: str, device: torch.device) -> None:
        if sharding == "fsdp":
            mesh = init_device_mesh(device.type, (self.size,))
            for member in model.members:
                for block in member.transformer.h:
                    fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def synchronize(
        self,
        model: Network,
        forward: Forward,
        example: tuple[Tensor, Tensor],
        dtype: torch.dtype,
    ) -> Forward:
        if isinstance(model, FSDPModule):
            self._unsynchronized = lambda: _keep_gradients(model)
            return forward
        assert isinstance(forward, nn.Module)
        devices = [model.device] if model.device.type == "cuda" else []
        replica = DistributedDataParallel(forward, device_ids=devices or None)
        # The first backward pass decides in which order gradients are added up from then on. One
        # before the first step, so that a resumed run has the same order in all of its steps.
        with torch.random.fork_rng(devices):
            with autocast(model.device, dtype):
                loss = replica(*example)[1]
            loss.backward()
        model.zero_grad(set_to_none=True)
        self._unsynchronized = replica.no_sync
        return replica

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._unsynchronized()

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            tensor = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
            if self.is_first:  # others drop each before the next one comes
                found[name] = tensor
        return found

    def whole_number(self, value: Tensor) -> Tensor:
        return value.full_tensor() if isinstance(value, DTensor) else value

    def part_like(self, weight: Tensor, tensor: Tensor) -> Tensor:
        if not isinstance(weight, DTensor) or weight.shape != tensor.shape:
            return tensor
        tensor = tensor.to(weight.device)
        return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)

    def of_each(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        gathered: list[dict[str, Tensor]] | None = [{}] * self.size if self.is_first else None
        dist.gather_object(tensors, gathered)
        return {
            self._own_name(name, rank): tensor
            for rank, its in enumerate(gathered or [])
            for name, tensor in its.items()
        }

    def diverge_draws(self, seed: int, step: int) -> None:
        if not self.is_first:
            words = np.random.SeedSequence((seed, self.rank, step)).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0]))


def join(place: Place, config: TrainConfig) -> Group:
    """The world of several processes, of which this is one; its address is in torch's variables.

    Returns when all have come, and ends the process if they do not in START_SECONDS. End the
    process with `os._exit`: torch tears a process group down under the interpreter's lock, for
    which a thread of gloo may be waiting, and then the process does not end. Raises InvalidConfig.
    """
    where = _pick_device_type(config)
    if where == "cuda":
        _check_gpus(place)
        torch.cuda.set_device(place.local_rank)
    # tensors of the CPU go through gloo in any case
    backend = f"cpu:gloo,{where}:{_pick_backend(config, where)}" if where == "cuda" else "gloo"
    faulthandler.dump_traceback_later(START_SECONDS, exit=True)
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    world = Group(place)
    world.any(False)  # connects them
    faulthandler.cancel_dump_traceback_later()
    return world


def has_nccl(config: TrainConfig) -> bool:
    """Whether processes exchange gradients by NCCL: in it they wait for one that has ended."""
    return config.device != "cpu" and config.backend != "gloo" and torch.cuda.is_available()


def _check_gpus(place: Place) -> None:
    """All processes of a machine find the same fault, so that all of them say it."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", place.local_rank + 1))
    num_gpus = torch.cuda.device_count()
    if num_processes > num_gpus:
        problem = f"must be at most {num_gpus} on this machine, one for each GPU"
        raise InvalidConfig([Violation("processes", f"{problem}, got {num_processes}")])


def _pick_device_type(config: TrainConfig) -> str:
    try:
        where = pick_device(config.device).type
    except ValueError as error:
        raise InvalidConfig([Violation("device", str(error))]) from error
    if where == "mps":
        raise InvalidConfig([Violation("processes", "must be 1 on mps")])
    return where


def _pick_backend(config: TrainConfig, where: str) -> str:
    if config.backend == "nccl" and where != "cuda":
        raise InvalidConfig([Violation("backend", f"must be gloo or auto on {where}, got nccl")])
    if config.backend != "auto":
        return config.backend
    return "nccl" if where == "cuda" else "gloo"


@contextmanager
def _keep_gradients(model: FSDPModule) -> Iterator[None]:
    """Backward passes inside add up this process's gradients, and exchange none."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
