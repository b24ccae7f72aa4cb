"""A text encoder whose layers are on the device one at a time gives the same states."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from diffusekrona.bases.families import FAMILIES
from diffusekrona.bases.offload import input_device, largest_layer_bytes, offload_layers


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
