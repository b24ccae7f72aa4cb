"""Whether the base is sharded, as accelerate is configured, and what accelerate is told of it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from diffusekrona.bases.settings import PrecisionSettings
from diffusekrona.common.errors import UserError
from diffusekrona.training.setup import check_accumulation
from diffusekrona.training.sharded import shards_base, take_over


class Accelerator:
    def __init__(self, kind: DistributedType, processes: int = 2, stage: int = 2) -> None:
        config = {"zero_optimization": {"stage": stage}}
        plugin = SimpleNamespace(deepspeed_config=config)
        self.state = SimpleNamespace(distributed_type=kind, deepspeed_plugin=plugin)
        self.num_processes = processes

    @property
    def distributed_type(self) -> DistributedType:
        return self.state.distributed_type


@pytest.mark.parametrize(
    ("own", "deepspeed", "fits"),
    [(4, None, True), (2, None, False), (4, "auto", True), (4, 4, True), (4, 1, False)],
)
def test_steps_are_counted_as_accelerate_counts_them(
    own: int, deepspeed: object, fits: bool
) -> None:
    plugin = None if deepspeed is None else SimpleNamespace(get_value=lambda _name: deepspeed)
    accelerator = SimpleNamespace(
        gradient_accumulation_steps=own, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    with nullcontext() if fits else pytest.raises(UserError, match="--gradient_accumulation_steps"):
        check_accumulation(accelerator, 4)


@pytest.mark.parametrize(
    ("kind", "flag", "processes", "wanted"),
    [
        (DistributedType.FSDP, False, 2, True),
        (DistributedType.FSDP, False, 1, False),
        (DistributedType.MULTI_GPU, True, 2, True),
        (DistributedType.MULTI_GPU, False, 2, False),
        (DistributedType.NO, True, 1, False),
        (DistributedType.DEEPSPEED, True, 2, False),
    ],
)
def test_asking_changes_nothing(kind, flag: bool, processes: int, wanted: bool) -> None:
    accelerator = Accelerator(kind, processes)
    for _ in range(2):
        assert shards_base(PrecisionSettings(shard_base=flag), accelerator) is wanted
    assert accelerator.distributed_type == kind
    assert list(accelerator.state.deepspeed_plugin.deepspeed_config) == ["zero_optimization"]


def test_accelerate_is_to_average_and_to_know_the_batch() -> None:
    fsdp, deepspeed = Accelerator(DistributedType.FSDP), Accelerator(DistributedType.DEEPSPEED)
    take_over(fsdp, 3)
    assert fsdp.distributed_type == DistributedType.MULTI_GPU
    take_over(deepspeed, 3)
    assert deepspeed.distributed_type == DistributedType.DEEPSPEED
    config = deepspeed.state.deepspeed_plugin.deepspeed_config
    assert config["train_micro_batch_size_per_gpu"] == 3


def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(UserError, match="ZeRO 3"):
        shards_base(PrecisionSettings(), Accelerator(DistributedType.DEEPSPEED, stage=3))
    for kind in (DistributedType.FSDP, DistributedType.MULTI_GPU):
        with pytest.raises(UserError, match="--quantize_base and a sharded base"):
            shards_base(PrecisionSettings(shard_base=True, quantize_base="nf4"), Accelerator(kind))
