"""The sheet of groups drawn alone and off, and adapters with fewer singular terms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from tiny_scorers import save_clip

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.adapters.file import collect_adapter, put_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.inspect import main
from diffusekrona.inspection.facts import facts_of
from diffusekrona.inspection.terms import keep_terms

CONFIGS = {
    "krona": KronAConfig(a1=4, a2=16, scale=0.5),
    "terms": KronAConfig(a1=4, a2=16, terms=2),
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"]),
}


def adapted(kind: str) -> UNet2DConditionModel:
    unet = tiny_models.unet()
    unet.add_adapter(CONFIGS[kind])
    tiny_models.random_factors(unet)
    return unet


def delta(unet: UNet2DConditionModel, layer: str, name: str) -> torch.Tensor:
    return unet.get_submodule(layer).get_delta_weight(name).detach().double()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_kept_terms_hold_their_share_with_the_least_rank(kind, share) -> None:
    unet = adapted(kind)
    adapter = collect_adapter(unet)
    facts = facts_of(adapter, kind)
    kept = keep_terms(adapter, facts, share)
    other = tiny_models.unet()
    put_adapter(other, kept.adapter, "kept")
    total = 0
    for layer in facts.layers[::7]:
        whole, fewer = delta(unet, layer.name, "default"), delta(other, layer.name, "kept")
        singular = torch.linalg.svdvals(whole).square()
        rank = torch.linalg.matrix_rank(fewer, rtol=1e-4).item()
        missed = (whole - fewer).square().sum() / whole.square().sum()
        assert missed <= 1 - share + 1e-5
        assert missed.item() == pytest.approx(
            (singular[rank:].sum() / singular.sum()).item(), abs=1e-5
        )
        assert rank == 1 or singular[: rank - 1].sum() < share * singular.sum()
        total += rank
    assert 0 < total <= kept.terms <= kept.of


@pytest.fixture
def setting(tiny_sd1: Path, tmp_path: Path) -> list[str]:
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet")
    unet.add_adapter(CONFIGS["krona"])
    tiny_models.random_factors(unet)
    save_adapter(
        unet, tmp_path / "run" / "adapter.safetensors", metadata={"base_model": str(tiny_sd1)}
    )
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 32), "red").save(tmp_path / "photos" / "one.png")
    return [
        f"a <b>dog={tmp_path / 'run'}", "--draw", "a <i>dog", "--photos", str(tmp_path / "photos"),
        "--seeds", "0", "--num_inference_steps", "1", "--device", "cpu", "--factors", "1",
        "--clip", str(save_clip(tmp_path / "clip")), "--output", str(tmp_path / "page.html"),
        "--json", str(tmp_path / "all.json"),
    ]  # fmt: skip


def test_one_sheet_with_every_group_alone_and_off(setting, tmp_path, capsys) -> None:
    main(setting)
    drawn = json.loads((tmp_path / "all.json").read_text())["a <b>dog"]["drawn"]
    groups = [(one["kind"], one["group"]) for one in drawn["groups"]]
    assert groups == [
        ("", ""),
        *(("projections", name) for name in "qkvo"),
        ("attention", "self"), ("attention", "cross"),
        ("blocks", "down.0"), ("blocks", "mid"), ("blocks", "up.1"),
        *(("rows", f"{row}/4") for row in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert all(set(one["off"]) == {"CLIP-I", "CLIP-T"} for one in drawn["groups"])
    for kind in ("projections", "attention", "blocks", "rows"):
        assert math.isclose(sum(o["share"] for o in drawn["groups"] if o["kind"] == kind), 1)
    whole, *others = drawn["groups"]
    assert whole["alone"] != whole["off"]
    assert any(one["alone"] != whole["alone"] for one in others)
    assert [one["share"] for one in drawn["terms"]] == [0.5, 0.9, 0.99]
    page = (tmp_path / "page.html").read_text()
    assert "<b>" not in page and "<i>" not in page and "projection k" in page
    assert "‖ΔW‖ / ‖W‖, median" in page  # the adapter's own base is a folder here
    assert [(one["word"], one["adapter"]) for one in drawn["words"]] == [
        ("a", False), ("a", True), ("<i>dog", False), ("<i>dog", True),
    ]  # fmt: skip
    for kind in ("groups", "words"):
        (sheet,) = tmp_path.glob(f"page_*_{kind}.png")
        assert np.asarray(Image.open(sheet)).std() > 0
    assert "projection" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_inference_steps", "0"], "--num_inference_steps"),
        (["--photos", "nowhere"], "nowhere"),
        (["--words", "cat"], "no such word"),
    ],
)
def test_mistakes_are_one_line(setting, flags, words) -> None:
    with pytest.raises(UserError, match=words):
        main([*setting, *flags])
