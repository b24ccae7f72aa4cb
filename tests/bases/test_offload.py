"""Models whose layers or blocks are on the device one at a time compute the same."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from diffusekrona.bases.families import FAMILIES
from diffusekrona.bases.meta import weight_bytes
from diffusekrona.bases.offload import (
    input_device,
    largest_layer_bytes,
    offload_blocks,
    offload_layers,
    offloaded_bytes,
)


@pytest.mark.parametrize("name", tiny_models.TRANSFORMERS)
@torch.no_grad()
def test_an_offloaded_text_encoder_gives_the_same_states(name: str) -> None:
    family, pipeline = FAMILIES[name], tiny_models.TRANSFORMERS[name]()
    encoder = pipeline.text_encoder.eval()
    tokens = family.tokenize([pipeline.tokenizer], ["a sks dog", "a cat"])
    want = family.encode_text({"text_encoder": encoder}, tokens)
    assert 0 < largest_layer_bytes(encoder) < sum(p.nbytes for p in encoder.parameters())
    offload_layers(encoder, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in encoder.parameters())  # between calls
    assert input_device(encoder) == torch.device("cpu")
    got = family.encode_text({"text_encoder": encoder}, tokens)
    for key, states in want.items():
        assert torch.equal(got[key], states)


@pytest.mark.parametrize("name", tiny_models.TRANSFORMERS)
@torch.no_grad()
def test_a_pipeline_offloaded_block_by_block_draws_the_same_picture(name: str) -> None:
    pipeline = tiny_models.TRANSFORMERS[name]()
    pipeline.set_progress_bar_config(disable=True)
    blocks = sum(len(part) for part in blocks_of(pipeline.transformer))

    def draw() -> torch.Tensor:
        options = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
        return pipeline(
            prompt="a dog", generator=torch.Generator().manual_seed(0), **options
        ).images

    want, onloaded = draw(), []
    assert 0 < offloaded_bytes(pipeline.transformer) < weight_bytes(pipeline.transformer)
    offload_blocks(pipeline.transformer, torch.device("cpu"))
    offload_layers(pipeline.text_encoder, torch.device("cpu"))
    for part in blocks_of(pipeline.transformer):
        for block in part:
            group = block._diffusers_hook.get_hook("group_offloading").group
            assert group.modules == [block]
            onloaded.append(group)
    assert len(onloaded) == blocks
    assert torch.equal(draw(), want)


def blocks_of(transformer: torch.nn.Module) -> list[torch.nn.ModuleList]:
    return [part for part in transformer.children() if isinstance(part, torch.nn.ModuleList)]
