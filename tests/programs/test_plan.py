"""The planner's counts are those of real layers, and what it recommends fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffusekrona import KronAConfig
from diffusekrona.bases.published import SD15_UNET, SDXL_UNET
from diffusekrona.common.errors import UserError
from diffusekrona.krona.functional import kron_linear
from diffusekrona.plan import (
    cost_of,
    fitting_pairs,
    layer_shapes,
    main,
    nearness,
    parse_budget,
    recommend,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that hold the published architectures' configs and nothing else."""
    folders = {}
    for name, config in (("sd15", SD15_UNET), ("sdxl", SDXL_UNET)):
        folder = tmp_path_factory.mktemp(name)
        (folder / "unet").mkdir()
        (folder / "model_index.json").write_text("{}")
        whole = {"_class_name": "UNet2DConditionModel", **config}
        (folder / "unet" / "config.json").write_text(json.dumps(whole))
        folders[name] = folder
    return folders


def shapes_of(folder: Path, letters: str = "kqvo") -> list[tuple[int, int]]:
    from diffusekrona.plan import PlanSettings

    return layer_shapes(PlanSettings(str(folder), attn_update_unet=letters))[1]


@pytest.mark.parametrize(
    "name, pair, parameters",
    [
        ("sdxl", (4, 64), 3_874_560),
        ("sdxl", (16, 16), 3_874_560),
        ("sd15", (4, 64), 398_048),
        ("sd15", (8, 64), 248_176),
    ],
)
def test_counts_of_the_published_architectures(bases, name, pair, parameters) -> None:
    assert cost_of(pair, shapes_of(bases[name])).parameters == parameters


def test_counts_are_those_of_a_real_adapter(bases) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
        unet.add_adapter(KronAConfig(a1=8, a2=16, terms=2, target_modules=["to_q", "to_v"]))
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    assert cost_of((8, 16), shapes_of(bases["sd15"], "qv"), terms=2).parameters == trained


def test_multiplications_are_those_of_the_forward_pass() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    out, inside, a1, a2 = 1280, 640, 4, 64
    a, b = torch.randn(a1, a2), torch.randn(out // a1, inside // a2)
    with FlopCounterMode(display=False) as counter:
        kron_linear(torch.randn(1, inside), a, b)
    cost = cost_of((a1, a2), [(out, inside)])
    assert counter.get_total_flops() == 2 * cost.multiplications
    assert cost.slowdown == cost.multiplications / (out * inside)
    assert cost.rank == torch.linalg.matrix_rank(torch.kron(a, b)).item()


def test_pairs_divide_all_layers(bases) -> None:
    shapes = shapes_of(bases["sdxl"])
    pairs = fitting_pairs(shapes)
    assert (4, 64) in pairs and (640, 128) in pairs and (3, 64) not in pairs
    assert all(o % a1 == 0 and i % a2 == 0 for a1, a2 in pairs for o, i in set(shapes))


@pytest.mark.parametrize("budget, pair", [(None, (4, 64)), (4e6, (4, 64)), (2.2e6, (8, 64))])
def test_recommendation(bases, budget, pair) -> None:
    shapes = shapes_of(bases["sdxl"])
    costs = [cost_of(p, shapes) for p in fitting_pairs(shapes)]
    chosen = recommend(costs, budget)
    assert chosen.pair == pair
    assert budget is None or chosen.parameters <= budget


def test_small_factors_come_last() -> None:
    assert sorted([(8, 8), (4, 4), (2, 64), (64, 2), (4, 64)], key=nearness)[-2:] == [
        (8, 8),
        (4, 4),
    ]


def test_budgets() -> None:
    assert parse_budget("2M") == 2_000_000 and parse_budget("500k") == 500_000
    assert parse_budget("1,500,000") == 1_500_000
    assert parse_budget("8MB") == 2_000_000 and parse_budget("8 MB", "fp16") == 4_000_000
    assert parse_budget("1,500.5k") == 1_500_500 and parse_budget("2_000") == 2000
    for text in (
        "9" * 400,
        "",
        "much",
        "-2M",
        "0",
        "2X",
        "1.2.3M",
        "2,5M",
        "1,50,000",
        ",500",
        "1500,000",
    ):
        with pytest.raises(UserError, match="--budget"):
            parse_budget(text)


def test_program(bases, capsys) -> None:
    main(["--base", str(bases["sdxl"]), "--budget", "2.5M"])
    reported = capsys.readouterr().out
    assert "560 layers" in reported and "Use --a1 8 --a2 64" in reported and "2,152" in reported
    with pytest.raises(UserError, match="No pair of factors fits"):
        main(["--base", str(bases["sdxl"]), "--budget", "10k"])


def test_one_line_for_a_missing_base() -> None:
    with pytest.raises(UserError, match="No base model at '/nowhere'"):
        main(["--base", "/nowhere"])


@pytest.mark.parametrize(
    ("base", "parameters"),
    [("black-forest-labs/FLUX.2-klein-base-4B", 768_000), ("Tongyi-MAI/Z-Image", 1_046_656)],
)
def test_wide_transformers_have_a_default_of_their_own(base, parameters, capsys) -> None:
    main(["--base", base])
    printed = capsys.readouterr().out
    assert (
        f"{parameters:,}" in printed and "Use --a1 64 --a2 64: the default for this base" in printed
    )
