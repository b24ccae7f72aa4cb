"""What `diffusekrona.inspect` reports equals what plain linear algebra on delta W says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from peft import LoraConfig

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.adapters.file import read_adapter
from diffusekrona.adapters.groups import place_of
from diffusekrona.common import devices
from diffusekrona.common.errors import UserError
from diffusekrona.inspect import InspectedSettings, SheetSettings, draw_sheets, main, read
from diffusekrona.inspection.facts import (
    add_base_norms,
    effective_rank,
    facts_of,
    rank_holding,
    shares,
)
from diffusekrona.inspection.lowered import lowered, missed, smaller
from diffusekrona.inspection.page import inspection_page
from diffusekrona.inspection.tables import as_json, share_tables, totals

QKVO = ["to_q", "to_k", "to_v", "to_out.0"]
CONFIGS = {
    "krona": KronAConfig(a1=4, a2=16, scale=0.5),
    "interleaved": KronAConfig(a1=4, a2=16, output_order="interleaved"),
    "terms": KronAConfig(a1=4, a2=16, terms=2),
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=QKVO),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.nn.Module]]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for name, config in CONFIGS.items():
        unet = tiny_models.unet()
        unet.add_adapter(config)
        tiny_models.random_factors(unet)
        made[name] = (save_adapter(unet, folder / name / "adapter.safetensors"), unet)
    return made


def delta(unet: torch.nn.Module, name: str) -> torch.Tensor:
    return unet.get_submodule(name).get_delta_weight("default").detach().double()


@pytest.mark.parametrize("kind", CONFIGS)
def test_norms_and_spectra_are_those_of_delta_w(files, kind) -> None:
    path, unet = files[kind]
    facts = facts_of(read_adapter(path), kind)
    assert len(facts.layers) == 32
    for layer in facts.layers[::5]:
        weight = delta(unet, layer.name)
        assert layer.shape == tuple(weight.shape)
        assert layer.norm == pytest.approx(weight.norm().item(), rel=1e-5)
        want = torch.linalg.svdvals(weight)
        got = torch.zeros_like(want)
        got[: len(layer.singular)] = layer.singular[: len(want)]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    together = math.sqrt(sum(delta(unet, x.name).norm().item() ** 2 for x in facts.layers))
    assert facts.norm == pytest.approx(together, rel=1e-5)


def test_effective_rank_of_a_product_is_the_product(files) -> None:
    for layer in facts_of(read_adapter(files["krona"][0]), "k").layers[:4]:
        parts = effective_rank(layer.singular_a) * effective_rank(layer.singular_b)
        assert effective_rank(layer.singular) == pytest.approx(parts, rel=1e-6)
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_rank_holding() -> None:
    singular = torch.tensor([3.0, 2.0, 1.0, 0.0])  # energies 9, 4, 1 of 14
    assert [rank_holding(singular, s) for s in (0.5, 9 / 14, 0.7, 13 / 14, 1.0)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("pair", [(2, 8), (4, 16), (1, 1), (8, 4), (2, 32), (16, 64)])
def test_error_of_the_nearest_product_is_van_loans(files, kind, pair) -> None:
    path, unet = files[kind]
    layer = facts_of(read_adapter(path), kind).layers[3]
    weight = delta(unet, layer.name)
    (a1, a2), (rows, columns) = pair, weight.shape
    b1, b2 = rows // a1, columns // a2
    if kind == "interleaved":
        blocks = weight.reshape(b1, a1, a2, b2).permute(1, 2, 0, 3)
    else:
        blocks = weight.reshape(a1, b1, a2, b2).transpose(1, 2)
    singular = torch.linalg.svdvals(blocks.reshape(a1 * a2, b1 * b2))
    want = (1 - singular[0] ** 2 / singular.square().sum()).item()
    assert missed(layer, pair) == pytest.approx(want, abs=1e-5)


def test_what_was_small_can_be_lowered_for_nothing() -> None:
    unet = tiny_models.unet()
    unet.add_adapter(KronAConfig(a1=16, a2=16))
    tiny_models.random_factors(unet)
    with torch.no_grad():  # A itself a product of (4, 16) and (4, 1)
        for name, factor in unet.named_parameters():
            if "krona_a" in name:
                factor.copy_(torch.kron(factor[:4, :16].clone(), torch.randn(4, 1)))
    from diffusekrona.adapters.file import collect_adapter

    facts = facts_of(collect_adapter(unet), "k")
    results = {r.pair: r for r in lowered(facts)}
    assert results[4, 16].error < 1e-3 and results[2, 16].error > 0.1
    count = sum(64 + (x.shape[0] // 4) * (x.shape[1] // 16) for x in facts.layers)
    assert results[4, 16].parameters == count
    assert all(r.parameters < facts.parameters for r in smaller(facts, list(results.values())))


@pytest.mark.parametrize(
    "name, want",
    [
        ("down_blocks.1.attentions.0.transformer_blocks.2.attn1.to_q", ("down.1", "self", "q")),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", ("mid", "cross", "o")),
        ("up_blocks.0.attentions.2.transformer_blocks.1.ff.net.2", ("up.0", "feed-forward", "ff")),
        ("text_model.encoder.layers.3.self_attn.v_proj", ("text_encoder", "text", "v")),
    ],
)
def test_where(name, want) -> None:
    place = place_of("unet" if "block" in name else "text_encoder", name)
    assert (place.block, place.attention, place.projection) == want


def test_base_norms_shares_and_tables(files, tiny_sd1) -> None:
    facts = read([f"one={files['krona'][0]}", str(files["lora"][0].parent)])
    assert [f.label for f in facts] == ["one", "lora"]
    add_base_norms(facts, str(tiny_sd1))
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_sd1, subfolder="unet")
    layer = facts[0].layers[5]
    norm = unet.get_submodule(layer.name).weight.norm().item()
    assert layer.relative == pytest.approx(layer.norm / norm, rel=1e-4)
    parts = shares(facts[0].layers, "projections")
    assert set(parts) == set("qkvo") and sum(parts.values()) == pytest.approx(1)
    assert any("‖W‖" in row[0] for row in totals(facts)[1])
    assert [row[0] for row in share_tables(facts)["blocks"][1]] == ["down.0", "mid", "up.1"]


def test_a_base_of_another_family_is_refused(files, tiny_sdxl) -> None:
    with pytest.raises(UserError, match="sd1"):
        add_base_norms(read([str(files["krona"][0])]), str(tiny_sdxl))


def test_page_needs_no_network(files) -> None:
    facts = read([str(files[kind][0]) for kind in ("terms", "lora")])
    results = [lowered(one) for one in facts]
    page = inspection_page(facts, results, 1, [])
    assert "http" not in page.replace("http-equiv", "") and 'src="data:' in page
    assert all(f.label in page for f in facts)
    with pytest.raises(UserError, match="No layer"):
        inspection_page(facts, results, 1, ["nowhere"])
    json.dumps(as_json(facts, results))


def test_names_reach_the_page_as_text(files) -> None:
    facts = [facts_of(read_adapter(files["krona"][0]), "<script>alert(1)</script> $x$ of $5")]
    facts[0].metadata["learning_rate"] = "<img src=x>"
    page = inspection_page(facts, [lowered(facts[0])], 1)
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page and "&lt;img src=x&gt;" in page


def test_program(files, tmp_path: Path, capsys) -> None:
    more = ["--output", str(tmp_path / "page.html"), "--layers", "--factors", "1"]
    main([str(files["krona"][0].parent), *more, "--json", str(tmp_path / "all.json")])
    reported = capsys.readouterr().out.replace("\n", "").replace(" ", "")
    assert "attn2.to_out.0" in reported and "effectiverankofA" in reported
    assert (tmp_path / "page.html").stat().st_size > 50_000
    assert len(json.loads((tmp_path / "all.json").read_text())["krona"]["layers"]) == 32


def test_one_line_for_a_missing_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No adapter file at"):
        main([str(tmp_path / "none")])


def test_sheets_are_drawn_on_whatever_accelerator_there_is(tmp_path, monkeypatch) -> None:
    def choose(name: str | None, default: torch.device) -> torch.device:
        raise UserError(f"{name} or {default}")

    there = SimpleNamespace(device=torch.device("mps"))
    monkeypatch.setattr(devices, "process_state", lambda device: there)
    monkeypatch.setattr(devices, "choose_device", choose)
    with pytest.raises(UserError, match="None or mps"):
        draw_sheets(InspectedSettings(("x",)), SheetSettings("a dog"), [], tmp_path)
