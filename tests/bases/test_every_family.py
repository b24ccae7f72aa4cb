"""What every family of base models must do, on a tiny base of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from processes import run_two

from diffusekrona import KronAConfig
from diffusekrona.adapters.deltas import KronDelta
from diffusekrona.adapters.file import (
    collect_adapter,
    put_adapter,
    read_adapter,
    save_adapter,
)
from diffusekrona.adapters.layers import add_adapters
from diffusekrona.adapters.methods import targets_of
from diffusekrona.bases.base import BUNDLED_DRAWING
from diffusekrona.bases.bundled import bundled_models
from diffusekrona.bases.families import FAMILIES, identify
from diffusekrona.bases.resolve import drawing_defaults
from diffusekrona.bases.schedulers import set_scheduler
from diffusekrona.common.errors import UserError
from diffusekrona.inference import main as draw
from diffusekrona.inspect import main as inspect
from diffusekrona.sampling.pipeline import encode, generate, load_pipeline
from diffusekrona.train_dreambooth import main as train

FACTORS = (4, 16)


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_pipeline(
        tmp_path_factory.mktemp("bases") / request.param, request.param
    )


def inputs(family: Any, denoiser: Any, batch: int = 2) -> tuple:
    """Arguments of `Family.predict` after the denoiser."""
    g = torch.Generator().manual_seed(0)
    shapes = family.text_shapes(denoiser.config)
    text = {name: torch.randn(batch, *shape, generator=g) for name, shape in shapes.items()}
    if "prompt_mask" in text:
        text["prompt_mask"] = (torch.arange(family.tokens) < 7).float().expand(batch, -1)
    noisy = torch.randn(batch, *family.latent_shape(denoiser.config, 16), generator=g)
    time_ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * batch)
    return noisy, torch.tensor([400, 700][:batch]), text, time_ids


def adapted(base: Path) -> tuple[Any, Any, KronAConfig]:
    family, _ = identify(str(base))
    denoiser = family.load_denoiser(str(base)).eval()
    names = targets_of("kqvo", family.letters, family.denoiser).names
    config = KronAConfig(a1=FACTORS[0], a2=FACTORS[1], target_modules=list(names))
    return family, denoiser, config


@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_a_trained_one_is_the_kronecker_product(base) -> None:
    family, denoiser, config = adapted(base)
    arguments = inputs(family, denoiser)
    weights = {n: t.clone() for n, t in denoiser.state_dict().items()}
    before = family.predict(denoiser, *arguments)
    add_adapters({family.denoiser: config}, {family.denoiser: denoiser}, "default")
    assert torch.equal(family.predict(denoiser, *arguments), before)

    tiny_models.random_factors(denoiser)
    live = family.predict(denoiser, *arguments)
    assert not torch.allclose(live, before)
    tensors = collect_adapter(denoiser).method.by_layer(collect_adapter(denoiser).tensors)
    dense = family.load_denoiser(str(base)).eval()
    for name, own in tensors.items():
        delta = KronDelta(own["krona_a"][None], own["krona_b"][None])
        a, b = delta.a[0], delta.b[0]
        dense.get_submodule(name).weight.add_(torch.kron(a, b))
    torch.testing.assert_close(family.predict(dense, *arguments), live, rtol=1e-4, atol=1e-4)

    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, BaseTunerLayer)}
    for layer in layers.values():
        layer.merge()
    torch.testing.assert_close(family.predict(denoiser, *arguments), live, rtol=1e-4, atol=1e-4)
    for name, layer in layers.items():
        layer.unmerge()
        assert torch.equal(layer.get_base_layer().weight, weights[f"{name}.weight"])


def test_every_letter_has_layers_and_every_layer_a_place(base) -> None:
    family, denoiser, _ = adapted(base)
    linear = [n for n, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    for letter, ends in family.letters.items():
        layers = [name for name in linear if name.endswith(tuple(f".{end}" for end in ends))]
        assert layers
        for name in layers:
            place = family.place(name)
            assert place.projection == letter
            assert place.attention in ("self", "cross", "joint") and place.block


@torch.no_grad()
def test_captions_of_different_lengths_are_predicted_together_as_each_alone(base) -> None:
    family, denoiser, _ = adapted(base)
    pipeline = load_pipeline(str(base))
    prompts = ["a dog", "a sks dog in the snow, " * 3]
    states = [encode(pipeline, [prompt]) for prompt in prompts]
    alone = [{name: state[name] for name in family.text_states} for state in states]
    noisy, timesteps, _, time_ids = inputs(family, denoiser)
    together = family.predict(denoiser, noisy, timesteps, family.stack_text(alone), time_ids)
    for n, text in enumerate(alone):
        one = [tensor[n : n + 1] for tensor in (noisy, timesteps)]
        want = family.predict(denoiser, *one, text, time_ids[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], want, rtol=1e-4, atol=1e-5)


def test_words_past_the_last_token_are_named_once(base: Path, caplog) -> None:
    family, _ = identify(str(base))
    long = "a sks dog in the snow, " * 60
    family.tokenize(family.load_tokenizers(str(base)), [long, "a dog", long])
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("diffusekrona")]
    assert len(lines) == 1 and "not seen by it: '" in lines[0]


def flags(base: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(base)),
        *("--instance_data_dir", str(base.parent / "pictures")),
        *("--instance_prompt", "a sks dog", "--resolution", "32"),
        *("--a1", str(FACTORS[0]), "--a2", str(FACTORS[1]), "--report_to", "none", "--cpu"),
        *("--output_dir", str(output), *more),
    ]


def test_it_is_trained_drawn_resumed_and_loaded(base: Path, tmp_path: Path, capsys) -> None:
    (base.parent / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (40, 32), "red").save(base.parent / "pictures" / "red.png")
    Image.new("RGB", (32, 48), "blue").save(base.parent / "pictures" / "blue.png")
    (base.parent / "pictures" / "red.txt").write_text("a red sks dog")
    common = ["--gradient_checkpointing", "--aspect_ratio_buckets", "--resolution", "64"]
    prior = ["--with_prior_preservation", "--class_prompt", "a dog", "--num_class_images", "1"]
    (base.parent / "class").mkdir(exist_ok=True)
    Image.new("RGB", (40, 32), "green").save(base.parent / "class" / "green.png")
    prior += ["--class_data_dir", str(base.parent / "class")]
    common += prior
    assert train(flags(base, tmp_path / "dry", *common, "--dry_run")) == 0
    printed = capsys.readouterr().out
    family, _ = identify(str(base))
    assert f"({family.title})" in printed and "GiB, in " in printed

    validation = ["--validation_prompt", "a dog", "--validation_inference_steps", "1"]
    validation += ["--num_validation_images", "1"]
    whole = tmp_path / "whole"
    assert train(flags(base, whole, *common, *validation, "--max_train_steps", "4")) == 0
    assert (whole / "validation" / "grid.png").is_file()
    half = [*common, "--checkpointing_steps", "2"]
    assert train(flags(base, tmp_path / "half", *half, "--max_train_steps", "2")) == 0
    more = [*half, "--max_train_steps", "4", "--resume_from_checkpoint", "latest"]
    assert train(flags(base, tmp_path / "half", *more)) == 0
    adapter, again = read_adapter(whole), read_adapter(tmp_path / "half")
    assert adapter.base_family == family.name
    for name, tensor in adapter.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
    assert any(t.abs().max() > 0 for n, t in adapter.tensors.items() if n.endswith("krona_b"))

    pictures = tmp_path / "pictures"
    arguments = ["--adapter", str(whole), "--prompt", "a sks dog", "--num_inference_steps", "2"]
    arguments += ["--height", "32", "--width", "32", "--output_dir", str(pictures)]
    assert not draw([*arguments, "--device", "cpu"])
    assert list(pictures.glob("*.png"))


def test_two_processes_train_as_one_with_twice_the_batch(base: Path, tmp_path: Path) -> None:
    """With captions of different lengths, which one process has in a batch, and two have alone."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "blue.png")
    (tmp_path / "red.txt").write_text("a red sks dog in front of a wall of many bricks")
    found = {}
    for processes in (1, 2):
        more = ["--instance_data_dir", str(tmp_path), "--max_train_steps", "3"]
        more += ["--train_batch_size", str(3 - processes)]
        arguments = flags(base, tmp_path / str(processes), *more)
        if processes == 1:
            assert train(arguments) == 0
        else:
            run_two("diffusekrona.train_dreambooth", *arguments, said=tmp_path / "said")
        found[processes] = read_adapter(tmp_path / str(processes)).tensors
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[2][name], tensor, rtol=0, atol=1e-5)


def test_drawing_is_the_pipelines_own(base: Path) -> None:
    """Pictures are what diffusers' pipeline draws from the same prompt, seed and weights."""
    pipeline = load_pipeline(str(base))
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    generator = torch.Generator().manual_seed(5)
    (want,) = pipeline(prompt="a dog", generator=generator, **options).images
    (got,) = generate(
        pipeline, ["a dog"], [5], steps=2, guidance=3.0, size=(32, 32), progress=False
    )
    difference = np.asarray(want, dtype=float) - np.asarray(got, dtype=float)
    assert abs(difference).max() <= 1


def test_an_adapter_is_put_on_diffusers_own_pipeline(base: Path) -> None:
    family, denoiser, config = adapted(base)
    add_adapters({family.denoiser: config}, {family.denoiser: denoiser}, "default")
    tiny_models.random_factors(denoiser)
    arguments = inputs(family, denoiser)
    with torch.no_grad():
        want = family.predict(denoiser, *arguments)
        pipeline = load_pipeline(str(base))
        put_adapter(pipeline, collect_adapter(denoiser))
        got = family.predict(getattr(pipeline, family.denoiser), *arguments)
    torch.testing.assert_close(got, want)


def test_a_family_s_own_defaults_are_taken_unless_flags_are_given(base: Path, tmp_path) -> None:
    (base.parent / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (40, 32), "red").save(base.parent / "pictures" / "red.png")
    family, _ = identify(str(base))
    plain = [f for f in flags(base, tmp_path / "out", "--max_train_steps", "1")]
    without = [f for n, f in enumerate(plain) if not {"--a1", "--a2"} & {f, plain[n - 1]}]
    assert train(without) == 0
    used = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert [used["a1"], used["a2"]] == [family.defaults.get("a1", 4), 64]
    assert (
        train(flags(base, tmp_path / "out", "--overwrite_output_dir", "--max_train_steps", "1"))
        == 0
    )
    used = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert (used["a1"], used["a2"]) == FACTORS


def test_settings_that_the_objective_does_not_read_are_refused(base: Path, tmp_path) -> None:
    (base.parent / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (40, 32), "red").save(base.parent / "pictures" / "red.png")
    family, _ = identify(str(base))
    wrong = ["--snr_gamma", "5"] if "snr_gamma" not in family.loss_settings else []
    wrong = wrong or ["--weighting_scheme", "none"]
    with pytest.raises(UserError, match=f"{wrong[0]} does not apply to {family.title}"):
        train(flags(base, tmp_path / "out", *wrong))
    if not family.text_letters:
        with pytest.raises(UserError, match="stays frozen"):
            train(flags(base, tmp_path / "out", "--train_text_encoder"))


def test_a_sampler_and_a_schedule_that_the_base_cannot_draw_with_are_refused(base: Path) -> None:
    family, _ = identify(str(base))
    if "prediction_type" in family.loss_settings:
        pytest.skip("a diffusion model, which draws with any of them")
    for name, value in (("prediction_type", "v_prediction"), ("rescale_betas_zero_snr", True)):
        with pytest.raises(UserError, match=f"--{name} does not apply to {family.title}"):
            load_pipeline(str(base), **{name: value})
    with pytest.raises(UserError, match="leave --scheduler out"):
        set_scheduler(load_pipeline(str(base), rescale_betas_zero_snr=False), "euler")


def test_an_adapter_is_inspected_with_its_base(base: Path, tmp_path: Path) -> None:
    family, denoiser, config = adapted(base)
    add_adapters({family.denoiser: config}, {family.denoiser: denoiser}, "default")
    tiny_models.random_factors(denoiser)
    path = save_adapter(denoiser, tmp_path / "adapter.safetensors")
    page = tmp_path / "page.html"
    inspect([str(path), "--base", str(base), "--output", str(page)])
    assert "joint" in page.read_text() or family.denoiser == "unet"


def test_the_bundled_bases_draw_with_their_own_guidance() -> None:
    for base in bundled_models():
        assert drawing_defaults(base) == BUNDLED_DRAWING
