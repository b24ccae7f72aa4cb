"""Every program on the families that are not Stable Diffusion: a run of each is evaluated, chosen
from, inspected, drawn with the base's own defaults, and repeated in a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import yaml
from PIL import Image
from tiny_scorers import save_clip, save_dino

from diffusekrona import choose, evaluate, inference, inspect, train_dreambooth
from diffusekrona.bases.families import identify
from diffusekrona.bases.resolve import drawing_defaults
from diffusekrona.sampling.grids import read_recipe
from diffusekrona.study.__main__ import main as study

STUDY = {
    "name": "tiny",
    "title": "Tiny",
    "question": "Does it run?",
    "flags": {"resolution": 32, "max_train_steps": 1, "a1": 4, "a2": 16},
    "seeds": [0],
    "arms": [{"label": "KronA", "flags": {"adapter_type": "krona"}}],
}


@pytest.fixture(scope="module", params=tiny_models.TRANSFORMERS)
def run(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base, photos, scorers, prompts and a run of two checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_models.save_pipeline(folder / "base", request.param)
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 32, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    (folder / "prompts.txt").write_text("{subject} in the snow\na red {name}\n")
    flags = ["--pretrained_model_name_or_path", str(base), "--output_dir", str(folder / "run")]
    flags += ["--instance_data_dir", str(folder / "photos"), "--instance_prompt", "a sks dog"]
    flags += ["--resolution", "32", "--a1", "4", "--a2", "16", "--max_train_steps", "2", "--cpu"]
    flags += ["--checkpointing_steps", "1", "--report_to", "none", "--learning_rate", "0.1"]
    assert train_dreambooth.main(flags) == 0
    scorers = ["--clip", str(save_clip(folder / "clip")), "--dino", str(save_dino(folder / "dino"))]
    prompts = ["--prompts", str(folder / "prompts.txt"), "--num_inference_steps", "1"]
    small = ["--height", "32", "--width", "32", "--device", "cpu"]
    return {
        "base": base, "run": folder / "run", "photos": folder / "photos", "small": small,
        "scorers": scorers, "prompts": prompts,
    }  # fmt: skip


def recipe_in(folder: Path) -> dict[str, Any]:
    recipe = read_recipe(next(path for path in folder.rglob("*seed*.png")))
    assert recipe
    return recipe


def test_a_run_is_evaluated_beside_its_base(run, tmp_path) -> None:
    evaluate.main(
        ["--adapter", "none", "--adapter", str(run["run"]), "--subject_dir", str(run["photos"]),
         "--class_word", "dog", "--seeds", "0", "--output_dir", str(tmp_path),
         *run["prompts"], *run["scorers"], *run["small"]]
    )  # fmt: skip
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 4
    assert recipe_in(tmp_path)["guidance"] == 4.0


def test_the_best_checkpoint_is_chosen(run) -> None:
    choose.main(
        [str(run["run"]), "--seeds", "0", "--weights", "1", *run["prompts"], *run["scorers"],
         *run["small"]]
    )  # fmt: skip
    found = json.loads((run["run"] / "choice.json").read_text())
    assert [one["step"] for one in found["candidates"]] == [1, 2]
    assert found["settings"]["guidance"] == 4.0


def test_a_sheet_of_its_parts_is_drawn(run, tmp_path) -> None:
    inspect.main(
        [str(run["run"]), "--output", str(tmp_path / "page.html"), "--draw", "a sks dog",
         "--seeds", "0", "--num_inference_steps", "1", "--resolution", "32", *run["scorers"][:2],
         "--device", "cpu"]
    )  # fmt: skip
    assert list(tmp_path.glob("page_*_groups.png"))


def test_a_study_trains_and_scores_it(run, tmp_path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    code = study(
        [str(tmp_path / "study.yaml"), "--base", str(run["base"]),
         "--subject", f"{run['photos']}:dog", "--image_seeds", "0", "--image_resolution", "32",
         "--device", "cpu", "--output_dir", str(tmp_path / "out"), *run["prompts"],
         *run["scorers"]]
    )  # fmt: skip
    assert code == 0 and (tmp_path / "out" / "index.html").is_file()
    assert recipe_in(tmp_path / "out")["guidance"] == 4.0


def test_a_distilled_base_is_drawn_in_few_steps_and_without_guidance(run, tmp_path) -> None:
    copy = tmp_path / "distilled"
    copy.mkdir()
    for part in run["base"].iterdir():
        (copy / part.name).symlink_to(part)
    for name, change in (
        ("model_index.json", {"is_distilled": True}),
        ("scheduler/scheduler_config.json", {"shift": 3.0}),
    ):
        config = json.loads((run["base"] / name).read_text())
        top = copy / name.split("/")[0]
        top.unlink()
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(json.dumps(config | change))
    family, _ = identify(str(copy))
    assert drawing_defaults(str(copy)) == family.distilled
    inference.main(
        ["--adapter", str(run["run"]), "--pretrained_model_name_or_path", str(copy), "--prompt",
         "a sks dog", "--output_dir", str(tmp_path / "drawn"), *run["small"]]
    )  # fmt: skip
    recipe = recipe_in(tmp_path / "drawn")
    assert (recipe["steps"], recipe["guidance"]) == (
        family.distilled.steps,
        family.distilled.guidance,
    )


def test_a_base_in_fp8_draws_nearly_the_same_with_its_adapter_unmerged(run, tmp_path: Path) -> None:
    pictures, merged = {}, {}
    for kind in ("none", "fp8"):
        flags = ["--adapter", str(run["run"]), "--prompt", "a sks dog", *run["small"]]
        flags += ["--num_inference_steps", "2", "--quantize_base", kind]
        assert inference.main([*flags, "--output_dir", str(tmp_path / kind)]) is None
        pictures[kind] = np.asarray(Image.open(next((tmp_path / kind).glob("0*.png"))), dtype=float)
        merged[kind] = recipe_in(tmp_path / kind)["merged"]
    difference = abs(pictures["fp8"] - pictures["none"])
    assert difference.max() > 0 and difference.mean() < 10
    assert merged == {"none": True, "fp8": False}
