"""Maps of words are the probabilities of cross-attention, and recording them changes no picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from tiny_scorers import save_clip

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.adapters.file import collect_adapter
from diffusekrona.bases.families import denoiser_of
from diffusekrona.common.errors import UserError
from diffusekrona.inspect import main
from diffusekrona.inspection.attention import (
    ALL_STEPS,
    THIRDS,
    draw_maps,
    maps_of,
    recorded,
    tokens_of,
)
from diffusekrona.inspection.switched import Drawing
from diffusekrona.sampling.pipeline import generate, load_pipeline

PROMPT = "a sks dog, dog"


@pytest.fixture(params=["tiny_sd1", "tiny_sdxl"])
def base(request) -> Path:
    return request.getfixturevalue(request.param)


def adapted(base: Path):
    pipeline = load_pipeline(str(base))
    unet = denoiser_of(pipeline)
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    return pipeline


def draw(pipeline, guidance: float = 4.0, steps: int = 3) -> np.ndarray:
    images = generate(pipeline, [PROMPT], [0], steps=steps, guidance=guidance, progress=False)
    return np.asarray(images[0])


def test_the_picture_stays_and_probabilities_sum_to_1(base: Path) -> None:
    pipeline = adapted(base)
    before, plain = denoiser_of(pipeline).attn_processors, draw(pipeline)
    with recorded(pipeline, [range(77), [2]]) as record:
        assert np.array_equal(draw(pipeline), plain)
    assert denoiser_of(pipeline).attn_processors == before
    maps = maps_of(record, 16, 16)
    assert list(maps) == [ALL_STEPS, "at 16×16", "at 8×8", *THIRDS]
    for every, one in (each for each in maps.values()):
        assert every.shape == (16, 16)
        assert torch.allclose(every, torch.ones(16, 16), atol=1e-5)
        assert one.min() > 0 and one.max() < 1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_maps_are_those_of_the_prompt_computed_by_hand(base: Path, guidance: float) -> None:
    pipeline = adapted(base)
    seen: list[torch.Tensor] = []

    def look(module, args, kwargs) -> None:
        picture, text = args[0][-1], kwargs["encoder_hidden_states"][-1]
        heads = [
            layer(states).unflatten(1, (module.heads, -1)).transpose(0, 1)
            for layer, states in ((module.to_q, picture), (module.to_k, text))
        ]
        scores = heads[0] @ heads[1].transpose(1, 2) / heads[0].shape[-1] ** 0.5
        seen.append(scores.softmax(-1).mean(0)[:, 3:5].sum(1))

    for name, module in denoiser_of(pipeline).named_modules():
        if name.endswith(".attn2"):
            module.register_forward_pre_hook(look, with_kwargs=True)
    with recorded(pipeline, [[3, 4]]) as record:
        draw(pipeline, guidance, steps=2)
    sizes = sorted({len(one) for one in seen})
    assert len(sizes) == 2  # the tiny UNets have attention at two resolutions
    maps = maps_of(record, 16, 16)
    for size in sizes:
        side = int(size**0.5)
        mean = torch.stack([one for one in seen if len(one) == size]).mean(0)
        found = maps[f"at {side}×{side}"][0]
        if side == 16:
            assert torch.allclose(found.flatten(), mean, atol=1e-6)
        else:
            assert found.mean().item() == pytest.approx(mean.mean().item(), rel=1e-5)


def test_words_of_several_tokens_and_of_several_places(base: Path) -> None:
    pipeline = load_pipeline(str(base))
    # One token per character here, after that of the start: a sks dog, dog
    assert tokens_of(pipeline, PROMPT, ["sks", "dog", "sks dog"]) == [
        [2, 3, 4], [5, 6, 7, 9, 10, 11], [2, 3, 4, 5, 6, 7],
    ]  # fmt: skip
    with pytest.raises(UserError, match="--words cat: there is no such word"):
        tokens_of(pipeline, PROMPT, ["dog", "cat"])


def test_base_and_adapter_for_each_seed(tiny_sd1: Path) -> None:
    adapter = collect_adapter(denoiser_of(adapted(tiny_sd1)))
    drawing = Drawing(PROMPT, seeds=(3, 1), steps=1)
    mapped = draw_maps(lambda: load_pipeline(str(tiny_sd1)), adapter, drawing, ["sks"])
    assert [(one.seed, one.adapted) for one in mapped] == [
        (3, False), (3, True), (1, False), (1, True),
    ]  # fmt: skip
    for base, tuned in (mapped[:2], mapped[2:]):
        assert not torch.equal(base.maps[ALL_STEPS], tuned.maps[ALL_STEPS])
        assert base.image != tuned.image


def test_a_base_without_cross_attention_says_so(tmp_path: Path, capsys) -> None:
    base = tiny_models.save_pipeline(tmp_path / "base", "z-image")
    denoiser = denoiser_of(load_pipeline(str(base)))
    denoiser.add_adapter(KronAConfig(a1=4, a2=16, target_modules=["to_q", "to_v"]))
    tiny_models.random_factors(denoiser)
    save_adapter(denoiser, tmp_path / "adapter.safetensors", metadata={"base_model": str(base)})
    main(
        [
            str(tmp_path / "adapter.safetensors"), "--draw", "a dog", "--seeds", "0",
            "--device", "cpu", "--num_inference_steps", "1", "--resolution", "32",
            "--clip", str(save_clip(tmp_path / "clip")),
        ]
    )  # fmt: skip
    assert "has no cross-attention" in capsys.readouterr().out
    assert not list(tmp_path.glob("*_words.png"))
    assert list(tmp_path.glob("*_groups.png"))
