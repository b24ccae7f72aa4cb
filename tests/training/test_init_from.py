"""A run that starts from an adapter file starts exactly there, whatever the file's format."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch

from diffusekrona.adapters.file import save_adapter
from diffusekrona.adapters.methods import METHODS
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.training.init_from import start_from

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def adapted(method: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    unet = tiny_models.unet()
    unet.add_adapter(METHODS[method].config_class(target_modules=TARGETS, **options), "default")
    return unet


def answer(unet: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return unet.eval()(**tiny_models.unet_inputs()).sample


@pytest.fixture
def krona(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    unet = adapted("krona", a1=4, a2=16, scale=0.5)
    tiny_models.random_factors(unet)
    return save_adapter(unet, tmp_path / "krona.safetensors"), answer(unet)


@pytest.mark.parametrize("target", ["krona", "peft", "lokr"])
@pytest.mark.parametrize("scale, terms", [(0.5, 1), (2.0, 3)])
def test_a_kronecker_adapter_of_any_format(krona, target, scale, terms, tmp_path: Path) -> None:
    file, wanted = krona
    source = tmp_path / ("folder" if target == "peft" else f"{target}-2.safetensors")
    convert(file, source, target)
    unet = adapted("krona", a1=4, a2=16, scale=scale, terms=terms, init_weights="both")
    assert start_from(source, {"unet": unet}, "sd1", "default") > 0
    torch.testing.assert_close(answer(unet), wanted, atol=1e-5, rtol=0)


def test_the_weight_that_the_file_names_counts(tmp_path: Path) -> None:
    """`diffusekrona.choose` writes it; drawing and conversion use it, too."""
    unet = adapted("krona", a1=4, a2=16)
    tiny_models.random_factors(unet)
    metadata = {"default_weight": "0.5"}
    file = save_adapter(unet, tmp_path / "best.safetensors", metadata=metadata)
    for module in unet.modules():
        if hasattr(module, "krona_a"):
            module.set_scale("default", 0.5)
    other = adapted("krona", a1=4, a2=16)
    start_from(file, {"unet": other}, "sd1", "default")
    torch.testing.assert_close(answer(other), answer(unet), atol=1e-5, rtol=0)


def test_a_lora_of_any_rank_up_to_this_runs(tmp_path: Path) -> None:
    unet = adapted("lora", r=2, lora_alpha=6)
    tiny_models.random_factors(unet)
    file = save_adapter(unet, tmp_path / "a.safetensors")
    convert(file, tmp_path / "kohya.safetensors", "lora-kohya")
    for source in (file, tmp_path / "kohya.safetensors"):
        other = adapted("lora", r=4, lora_alpha=4)
        start_from(source, {"unet": other}, "sd1", "default")
        torch.testing.assert_close(answer(other), answer(unet), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="give --rank 2"):
        start_from(file, {"unet": adapted("lora", r=1)}, "sd1", "default")
    with pytest.raises(UserError, match="--init_from: a LoKr cannot start from another adapter"):
        start_from(file, {"unet": adapted("lokr", r=4)}, "sd1", "default")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"a1": 8, "a2": 16}, "a1=4, a2=16: set them with --a1"),
        ({"a1": 4, "a2": 16, "output_order": "interleaved"}, "needs --output_order kron"),
        ({"a1": 4, "a2": 16, "target_modules": ["to_q"]}, "layers that this run does not"),
    ],
)
def test_what_would_not_be_exact_is_refused(krona, options, words) -> None:
    options = {"target_modules": TARGETS} | options
    unet = tiny_models.unet()
    unet.add_adapter(METHODS["krona"].config_class(**options), "default")
    with pytest.raises(UserError, match=words):
        start_from(krona[0], {"unet": unet}, "sd1", "default")
