"""Training runs on tiny models: what they leave, and that nothing of it is lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chances import chances
from filelock import FileLock, Timeout
from PIL import Image
from processes import Program, run_two, wait_for
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.own_files import write_result
from diffusekrona.common.run_record import read_run_record_or_none
from diffusekrona.train_dreambooth import main
from diffusekrona.training import output, validation
from diffusekrona.training.checkpoint import what_is_wrong
from diffusekrona.training.optimizer import make_optimizer
from diffusekrona.training.settings import OptimisationSettings, OutputSettings

LAYERS = 32  # attention projections of a tiny UNet


def flags(base: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base),
        "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog",
        "--output_dir", str(out),
        "--a2", "16",
        "--max_train_steps", "4",
        "--checkpointing_steps", "100",
        "--report_to", "none",
        "--cpu",
        *more,
    ]  # fmt: skip


def run(base: Path, pictures: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    assert main(flags(base, pictures, out, *more)) == 0
    return load_file(out / "adapter.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sd2_v", "tiny_sdxl"])
@pytest.mark.parametrize("adapter", ["krona", "lora"])
def test_a_run_leaves_an_adapter_that_describes_itself(
    request, base, adapter, pictures, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(base)
    tensors = run(folder, pictures, tmp_path, "--adapter_type", adapter)
    assert len(tensors) == 2 * LAYERS
    zero_at_start = ".krona_b" if adapter == "krona" else ".lora_B"
    moved = [t for k, t in tensors.items() if zero_at_start in k]
    assert len(moved) == LAYERS and all(t.abs().max() > 0 for t in moved)
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["method"] == adapter
    assert metadata["base_family"] == {"tiny_sd2_v": "sd2"}.get(base, base.removeprefix("tiny_"))
    assert metadata["base_model"] == str(folder)
    assert (metadata["steps"], metadata["instance_prompt"]) == ("4", "a sks dog")
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["trained_parameters"] == sum(t.numel() for t in tensors.values())
    norms = summary["relative_norms"]
    assert 0 < norms["median"] <= norms["largest"] < 1 and norms["largest_layer"].startswith("unet")
    assert json.loads(metadata["relative_norms"]) == norms
    log = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert "a sks dog" in (tmp_path / "README.md").read_text()  # the model card


def test_push_to_hub_comes_after_the_result(
    tiny_sd1, pictures, tmp_path: Path, monkeypatch
) -> None:
    pushed = []

    def push(folder: Path, name: str, **options) -> str:
        pushed.append((name, sorted(p.name for p in folder.glob("[!.]*") if p.is_file())))
        return "https://example.org"

    monkeypatch.setattr("diffusekrona.hub.upload.push_to_hub", push)
    run(tiny_sd1, pictures, tmp_path / "dog", "--push_to_hub", "--max_train_steps", "1")
    assert pushed == [
        ("dog", ["README.md", "adapter.safetensors", "run.json", "run.yaml", "train_log.jsonl"])
    ]
    # The same command again, because the upload failed: nothing is trained, but it is sent.
    again = ("--push_to_hub", "--max_train_steps", "1", "--resume_from_checkpoint", "latest")
    run(tiny_sd1, pictures, tmp_path / "dog", *again)
    assert len(pushed) == 2


def test_training_lowers_the_loss(tiny_sd1, pictures, tmp_path: Path) -> None:
    more = ("--max_train_steps", "40", "--learning_rate", "1e-2", "--train_batch_size", "4")
    run(tiny_sd1, pictures, tmp_path, *more)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "train_log.jsonl").read_text().splitlines()
    ]
    assert sum(losses[-15:]) < 0.97 * sum(losses[:15])


def test_same_seed_same_run_other_seed_other_run(tiny_sd1, pictures, tmp_path: Path) -> None:
    one = run(tiny_sd1, pictures, tmp_path / "1")
    two = run(tiny_sd1, pictures, tmp_path / "2")
    other = run(tiny_sd1, pictures, tmp_path / "3", "--seed", "1")
    assert same(one, two) and not same(one, other)


def test_every_option_at_once(tiny_sdxl, pictures, tmp_path: Path) -> None:
    tensors = run(
        tiny_sdxl, pictures, tmp_path / "out",
        "--factors", "k=8x64,o=2x64", "--train_text_encoder", "--text_encoder_a1", "8",
        "--text_encoder_a2", "8", "--train_feed_forward", "--terms", "2", "--random_flip",
        "--aspect_ratio_buckets", "--use_ema", "--snr_gamma", "5", "--noise_offset", "0.1",
        "--with_prior_preservation", "--class_data_dir", str(tmp_path / "class"),
        "--class_prompt", "a dog", "--num_class_images", "3", "--train_batch_size", "2",
        "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "--lr_scheduler",
        "cosine", "--lr_warmup_steps", "1", "--validation_prompt", "a sks dog",
        "--validation_inference_steps", "2", "--save_precision", "fp16", "--max_train_steps", "2",
    )  # fmt: skip
    k = next(t for n, t in tensors.items() if n.endswith("to_k.krona_a"))
    assert k.shape == (2, 8, 64) and k.dtype == torch.float16
    assert any(n.startswith("text_encoder_2.") for n in tensors)
    assert any("ff.net.2" in n for n in tensors)
    assert len(list((tmp_path / "class").glob("*.png"))) == 3
    grid = Image.open(tmp_path / "out" / "validation" / "grid.png")
    assert min(grid.size) > 100
    adapter = read_adapter(tmp_path / "out")
    assert set(adapter.configs) == {"unet", "text_encoder", "text_encoder_2"}


def test_validation_does_not_change_the_run(tiny_sd1, pictures, tmp_path: Path) -> None:
    plain = run(tiny_sd1, pictures, tmp_path / "1")
    drawn = run(
        tiny_sd1, pictures, tmp_path / "2", "--validation_prompt", "a sks dog",
        "--validation_steps", "2", "--validation_inference_steps", "2",
    )  # fmt: skip
    assert same(plain, drawn)


def test_validation_pictures_have_the_runs_resolution(tiny_sd1, pictures, tmp_path: Path) -> None:
    more = ("--validation_prompt", "a sks dog", "--validation_inference_steps", "1")
    run(tiny_sd1, pictures, tmp_path, *more, "--resolution", "24", "--max_train_steps", "1")
    drawn = sorted((tmp_path / "validation").glob("step-*.png"))
    assert drawn and {Image.open(path).size for path in drawn} == {(24, 24)}


def test_a_validation_that_fails_costs_no_training(
    tiny_sd1, pictures, tmp_path: Path, monkeypatch, caplog
) -> None:
    def fail(*_args, step: int = 0, **_options):
        if _args[-1]:
            raise UserError("No space left on device")
        return []

    plain = run(tiny_sd1, pictures, tmp_path / "1")
    monkeypatch.setattr(validation, "draw_validation", fail)
    more = ("--validation_prompt", "a sks dog", "--validation_steps", "2")
    assert same(plain, run(tiny_sd1, pictures, tmp_path / "2", *more))
    assert "no validation pictures at step 2: No space left" in caplog.text


def test_a_checkpoint_names_its_base_and_prompt(tiny_sd1, pictures, tmp_path: Path) -> None:
    run(tiny_sd1, pictures, tmp_path, "--checkpointing_steps", "2")
    reported = read_adapter(tmp_path / "checkpoint-2").metadata
    assert (reported["base_model"], reported["instance_prompt"]) == (str(tiny_sd1), "a sks dog")


def test_an_overwritten_run_that_is_killed_goes_on(tiny_sd1, pictures, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny_sd1, pictures, out)
    (out / "adapter.safetensors").rename(tmp_path / "old")
    more = ("--seed", "1", "--checkpointing_steps", "2")
    whole = run(tiny_sd1, pictures, out, *more, "--overwrite_output_dir")
    # As a kill after the first checkpoint leaves it: the old adapter, no record of a whole run.
    (tmp_path / "old").replace(out / "adapter.safetensors")
    (out / "run.json").unlink()
    shutil.rmtree(out / "checkpoint-4")
    assert same(run(tiny_sd1, pictures, out, *more, "--resume_from_checkpoint", "latest"), whole)


def test_overwriting_forgets_the_record_of_the_old_run(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_text("{}")
    write_result(tmp_path / "run.json", "{}")
    output.delete_old_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]
    (tmp_path / "run.json").write_text("{}")  # of another program
    output.delete_old_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter.safetensors",
        "run.json.set-aside",
    }


def test_another_vae_has_its_own_revision(tiny_sd1, pictures, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_sd1, tmp_path / "base")
    shutil.copytree(base / "vae", tmp_path / "vae")
    for path in base.glob("*/*.safetensors"):  # a base of which there is fp16 alone
        path.rename(path.with_suffix(".fp16.safetensors"))
    other = ("--pretrained_vae_model_name_or_path", str(tmp_path / "vae"), "--variant", "fp16")
    more = ("--with_prior_preservation", "--class_data_dir", str(tmp_path / "class"))
    more += ("--class_prompt", "a dog", "--num_class_images", "1", "--max_train_steps", "1")
    assert run(base, pictures, tmp_path / "out", *other, *more)


def test_prodigy_has_one_rate_for_all(caplog, monkeypatch) -> None:
    class Prodigy(torch.optim.SGD):
        def __init__(self, groups, lr, **_options):
            super().__init__(groups, lr=lr)

    monkeypatch.setitem(sys.modules, "prodigyopt", types.SimpleNamespace(Prodigy=Prodigy))
    models = {name: torch.nn.Linear(2, 2) for name in ("unet", "text_encoder")}
    settings = OptimisationSettings(optimizer="prodigy")
    optimizer = make_optimizer(settings, models, 1)
    assert {group["lr"] for group in optimizer.param_groups} == {6e-4}
    assert "usually 1" in caplog.text
    with pytest.raises(UserError, match="one learning rate for all"):
        make_optimizer(replace(settings, text_encoder_lr=1e-5), models, 1)


def test_gradient_accumulation_is_a_larger_batch(tiny_sd1, tmp_path: Path) -> None:
    # One picture, so that both ways of dealing batches deal the same samples.
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    batch = run(tiny_sd1, tmp_path, tmp_path / "1", "--train_batch_size", "2")
    steps = run(tiny_sd1, tmp_path, tmp_path / "2", "--gradient_accumulation_steps", "2")
    for name, tensor in batch.items():
        torch.testing.assert_close(steps[name], tensor, atol=2e-4, rtol=0)


def run_with_two(base: Path, pictures: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    arguments = flags(base, pictures, out, *more)
    run_two("diffusekrona.train_dreambooth", *arguments, said=out.with_name(f"{out.name}.txt"))
    return load_file(out / "adapter.safetensors")


def test_two_processes_that_share_the_base_do_the_same_and_resume(
    tiny_sdxl, pictures, tmp_path: Path
) -> None:
    one = run(tiny_sdxl, pictures, tmp_path / "1", "--train_batch_size", "2")
    out = tmp_path / "2"
    more = ("--shard_base", "--gradient_checkpointing", "--checkpointing_steps", "2")
    two = run_with_two(tiny_sdxl, pictures, out, *more)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=0)
    saved = sum(p.stat().st_size for p in (out / "checkpoint-2").iterdir())
    assert saved < 1e6  # factors and what belongs to them, not the base
    shutil.rmtree(out / "checkpoint-4")
    (out / "adapter.safetensors").unlink()
    assert same(
        run_with_two(tiny_sdxl, pictures, out, *more, "--resume_from_checkpoint", "latest"), two
    )


def test_deepspeed_does_the_same_and_resumes(tiny_sd1, pictures, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    plain = run(tiny_sd1, pictures, tmp_path / "plain")
    out = tmp_path / "deepspeed"
    config = Path(__file__).parents[2] / "configs" / "accelerate" / "deepspeed_zero2.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--num_processes", "1", "--mixed_precision", "no", "-m"]
    more = ["--checkpointing_steps", "2", "--resume_from_checkpoint", "latest"]
    arguments = [flag for flag in flags(tiny_sd1, pictures, out, *more) if flag != "--cpu"]
    cpu = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def trained() -> dict[str, torch.Tensor]:
        result = subprocess.run(
            [sys.executable, *launch, "diffusekrona.train_dreambooth", *arguments],
            capture_output=True, text=True, timeout=240, env={**os.environ, **cpu},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
        return load_file(out / "adapter.safetensors")

    assert same(trained(), plain)
    state = out / "checkpoint-2" / "pytorch_model"
    assert 0 < sum(path.stat().st_size for path in state.iterdir()) < 1e6  # without the base
    shutil.rmtree(out / "checkpoint-4")
    (out / "adapter.safetensors").unlink()
    assert same(trained(), plain)
    shutil.rmtree(out / "checkpoint-4")
    next(state.iterdir()).write_bytes(b"damaged")
    assert what_is_wrong(out / "checkpoint-2") is not None


def start(base: Path, pictures: Path, out: Path, *more: str) -> Program:
    said = out.with_name(f"{out.name}.txt")
    arguments = flags(base, pictures, out, *more)
    return Program("diffusekrona.train_dreambooth", *arguments, said=said, OMP_NUM_THREADS="1")


EXACT = ("--checkpointing_steps", "3", "--use_ema", "--lr_scheduler", "cosine")


def test_killed_and_resumed_is_never_killed(tiny_sd1, pictures, tmp_path: Path) -> None:
    whole = run(tiny_sd1, pictures, tmp_path / "1", *EXACT, "--max_train_steps", "40")
    out = tmp_path / "2"
    process = start(tiny_sd1, pictures, out, *EXACT, "--max_train_steps", "40")
    process.wait_for(out / "checkpoint-6" / "state.json")
    process.send(signal.SIGKILL)
    process.wait()
    assert not (out / "adapter.safetensors").exists()
    more = (*EXACT, "--max_train_steps", "40", "--resume_from_checkpoint", "latest")
    assert same(run(tiny_sd1, pictures, out, *more), whole)
    log = [json.loads(line)["step"] for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert log == list(range(1, 41))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_before_leaving(tiny_sd1, pictures, tmp_path: Path, number) -> None:
    out = tmp_path / "out"
    process = start(tiny_sd1, pictures, out, "--max_train_steps", "100000")
    process.wait_for(out / "train_log.jsonl")
    process.send(number)
    assert process.wait() == 128 + number
    assert "Traceback" not in process.text()
    goes_on(tiny_sd1, pictures, out)


def test_a_reader_that_leaves_costs_nothing(tiny_sd1, pictures, tmp_path: Path) -> None:
    """As with `train … 2>&1 | head`: saved, and resumable."""
    arguments = flags(tiny_sd1, pictures, tmp_path, "--max_train_steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusekrona.train_dreambooth", *arguments], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    wait_for(tmp_path / "train_log.jsonl", lambda: process.poll() is None)
    process.stderr.close()
    assert process.wait(timeout=120) == 128 + 13
    goes_on(tiny_sd1, pictures, tmp_path)


def goes_on(base: Path, pictures: Path, out: Path) -> None:
    """A run that was stopped has one checkpoint and can be resumed from it."""
    (saved,) = out.glob("checkpoint-*")
    step = int(saved.name.removeprefix("checkpoint-"))
    more = ("--max_train_steps", str(step + 1), "--resume_from_checkpoint", "latest")
    run(base, pictures, out, *more)


def test_branching_and_a_kill_do_not_go_on_from_the_old_branch(
    tiny_sd1, pictures, tmp_path: Path
) -> None:
    more = ("--checkpointing_steps", "1")
    whole = run(tiny_sd1, pictures, tmp_path, *more)
    log = (tmp_path / "train_log.jsonl").read_bytes()
    # Damaged on the way: a byte that is not UTF-8, a number instead of a line.
    (tmp_path / "train_log.jsonl").write_bytes(log.replace(b'"step": 1', b'"st\xffp": 1') + b"17\n")
    args = (*more, "--resume_from_checkpoint", "checkpoint-2")
    assert same(run(tiny_sd1, pictures, tmp_path, *args), whole)
    assert (tmp_path / "checkpoint-3.set-aside").is_dir() and (tmp_path / "checkpoint-4").is_dir()
    assert (tmp_path / "run.json.set-aside").is_file()
    lines = (tmp_path / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 4]


def test_a_checkpoint_past_the_end_is_refused_and_nothing_false_is_recorded(
    tiny_sd1, pictures, tmp_path: Path
) -> None:
    run(tiny_sd1, pictures, tmp_path, "--checkpointing_steps", "2")
    (tmp_path / "run.json").unlink()
    resume = ("--resume_from_checkpoint", "latest")
    with pytest.raises(UserError, match="is past --max_train_steps 3"):
        run(tiny_sd1, pictures, tmp_path, *resume, "--max_train_steps", "3")
    assert not (tmp_path / "run.json").exists()
    run(tiny_sd1, pictures, tmp_path, *resume)  # all steps were done, only the result is missing
    record = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert (
        record["last_loss"]
        == json.loads((tmp_path / "train_log.jsonl").read_text().splitlines()[-1])["loss"]
    )
    assert set(record["peak_memory_by_phase"]) == {"data", "loading", "training"}


def test_overwriting_deletes_what_runs_made_alone(tiny_sd1, pictures, tmp_path: Path) -> None:
    validation = ("--validation_prompt", "a", "--num_validation_images", "1")
    validation += ("--validation_inference_steps", "1")
    run(tiny_sd1, pictures, tmp_path, "--checkpointing_steps", "2", *validation)
    mine = [tmp_path / "checkpoint-best" / "state.json", tmp_path / "validation" / "mine.png"]
    mine += [tmp_path / "validation" / "step-000009-00.png", tmp_path / "checkpoint-4" / "a.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    run(tiny_sd1, pictures, tmp_path, "--overwrite_output_dir")
    assert all(path.read_text() == "mine" for path in mine)
    assert {p.name for p in (tmp_path / "validation").iterdir()} == {p.name for p in mine[1:3]}
    assert not (tmp_path / "checkpoint-2").exists()


def test_the_log_has_each_steps_rate_and_mean_loss(tiny_sd1, pictures, tmp_path: Path) -> None:
    schedule = ("--lr_scheduler", "linear", "--learning_rate", "1e-3", "--max_train_steps", "2")
    run(tiny_sd1, pictures, tmp_path / "2", *schedule, "--gradient_accumulation_steps", "2")
    run(tiny_sd1, pictures, tmp_path / "b", *schedule, "--train_batch_size", "2")

    def logged(name: str) -> list[dict]:
        text = (tmp_path / name / "train_log.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    assert [line["lr"] for line in logged("2")] == [1e-3, 5e-4]
    assert logged("2")[0]["loss"] == pytest.approx(logged("b")[0]["loss"], rel=1e-3)


def test_a_lengthened_schedule_is_followed_from_the_first_step(
    tiny_sd1, pictures, tmp_path: Path
) -> None:
    more = ("--lr_scheduler", "cosine", "--learning_rate", "1e-3", "--checkpointing_steps", "2")
    run(tiny_sd1, pictures, tmp_path, *more, "--max_train_steps", "2")
    resume = ("--resume_from_checkpoint", "latest", "--max_train_steps", "4")
    run(tiny_sd1, pictures, tmp_path, *more, *resume)
    rates = [json.loads(x)["lr"] for x in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert rates[2:] == pytest.approx([5e-4, 1e-3 * (1 + math.cos(0.75 * math.pi)) / 2])


def test_a_checkpoint_that_cannot_be_written_stops_no_process(
    tiny_sd1, pictures, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".checkpoint-2.partial").write_text("in the way")
    run_with_two(tiny_sd1, pictures, out, "--checkpointing_steps", "2")
    assert (out / "checkpoint-4").is_dir() and not (out / "checkpoint-2").exists()


def test_a_card_that_cannot_be_written_costs_no_run(tiny_sd1, pictures, tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    run(tiny_sd1, pictures, tmp_path)
    assert (tmp_path / "run.json").is_file()


def test_prodigy_resumes_exactly(tiny_sd1, pictures, tmp_path: Path) -> None:
    pytest.importorskip("prodigyopt")
    more = ("--optimizer", "prodigy", "--learning_rate", "1", "--checkpointing_steps", "2")
    whole = run(tiny_sd1, pictures, tmp_path, *more)
    (tmp_path / "adapter.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resume = ("--resume_from_checkpoint", "latest")
    assert same(run(tiny_sd1, pictures, tmp_path, *more, *resume), whole)


def test_a_damaged_record_is_passed_over(tmp_path: Path) -> None:
    folder = OutputSettings(output_dir=tmp_path, resume_from_checkpoint="latest")
    record = json.dumps({"steps": 4, "fixed_settings": {"seed": 0}, "last_loss": 0.5})
    (tmp_path / "adapter.safetensors").touch()
    for chance in chances(150):
        data = bytearray(record.encode())
        for _ in range(chance.choice((1, 2, 4))):
            place = chance.randrange(len(data))
            data[place : place + chance.randrange(4)] = chance.choice(
                (b"null", b"[", b"{}", b"NaN", b"\xff", b'"', b"-", b"1e999", b"", b"[[[[")
            )
        (tmp_path / "run.json").write_bytes(data)
        try:
            output.already_finished(folder, 4, {"seed": 0})
        except UserError as error:
            assert "\n" not in str(error)
        read = read_run_record_or_none(tmp_path)
        assert read is None or read.steps is None or read.steps >= 0


def test_damaged_newest_checkpoint_falls_back(tiny_sd1, pictures, tmp_path: Path, caplog) -> None:
    whole = run(tiny_sd1, pictures, tmp_path, "--checkpointing_steps", "1")
    (tmp_path / "adapter.safetensors").unlink()
    damaged = tmp_path / "checkpoint-4" / "training_state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    (tmp_path / "checkpoint-3" / "adapter.safetensors").unlink()
    (tmp_path / "checkpoint-2" / "state.json").write_text("{")
    more = ("--checkpointing_steps", "1", "--resume_from_checkpoint", "latest")
    assert same(run(tiny_sd1, pictures, tmp_path, *more), whole)
    assert "checkpoint-4 is damaged" in caplog.text and "checkpoint-1" in caplog.text
    (tmp_path / "checkpoint-4" / "training_state.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"checkpoint-4: its training_state\.safetensors has changed"
    ):
        run(tiny_sd1, pictures, tmp_path, "--resume_from_checkpoint", "checkpoint-4")


def test_resume_with_other_settings_is_refused(tiny_sd1, pictures, tmp_path: Path) -> None:
    run(tiny_sd1, pictures, tmp_path, "--checkpointing_steps", "2")
    for more in (("--a1", "8"), ("--seed", "5"), ("--adapter_type", "lora")):
        with pytest.raises(UserError, match="was trained with"):
            run(tiny_sd1, pictures, tmp_path, "--resume_from_checkpoint", "latest", *more)


def test_checkpoints_total_limit(tiny_sd1, pictures, tmp_path: Path) -> None:
    more = ("--checkpointing_steps", "1", "--checkpoints_total_limit", "2")
    run(tiny_sd1, pictures, tmp_path, *more)
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert not list(tmp_path.glob(".*partial"))


def test_a_result_is_not_overwritten_unasked(tiny_sd1, pictures, tmp_path: Path) -> None:
    first = run(tiny_sd1, pictures, tmp_path)
    with pytest.raises(UserError, match=r"already holds adapter\.safetensors"):
        run(tiny_sd1, pictures, tmp_path, "--seed", "1")
    assert same(load_file(tmp_path / "adapter.safetensors"), first)
    assert not same(
        run(tiny_sd1, pictures, tmp_path, "--seed", "1", "--overwrite_output_dir"), first
    )


def test_only_its_own_run_is_resumed_over_a_result(tmp_path: Path) -> None:
    for run in "ab":
        (tmp_path / run / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "b" / "adapter.safetensors").touch()

    def refuse(folder: str, wanted: str) -> None:
        output.refuse_to_overwrite(OutputSettings(tmp_path / folder, resume_from_checkpoint=wanted))

    for own in ("latest", "checkpoint-2", str(tmp_path / "a" / ".." / "b" / "checkpoint-2")):
        refuse("b", own)
    other = str(tmp_path / "a" / "checkpoint-2")
    refuse("new", other)
    with pytest.raises(UserError, match=r"b already holds adapter\.safetensors, of another run"):
        refuse("b", other)


def test_a_finished_run_is_not_run_again(tiny_sd1, pictures, tmp_path: Path, caplog) -> None:
    resume = ("--resume_from_checkpoint", "latest")
    first = run(tiny_sd1, pictures, tmp_path, *resume)  # nothing to resume: from the beginning
    written = (tmp_path / "adapter.safetensors").stat().st_mtime_ns
    assert same(run(tiny_sd1, pictures, tmp_path, *resume), first)
    assert (tmp_path / "adapter.safetensors").stat().st_mtime_ns == written
    assert "trained already" in caplog.text
    with pytest.raises(UserError, match=r"was trained with --learning_rate = 0\.0006"):
        run(tiny_sd1, pictures, tmp_path, *resume, "--learning_rate", "1e-3")


def test_run_yaml_repeats_the_run(tiny_sd1, pictures, tmp_path: Path) -> None:
    more = ("--snr_gamma", "5", "--seed", "3", "--random_flip", "--validation_prompt", "a sks dog")
    more += ("--validation_inference_steps", "1", "--resume_from_checkpoint", "latest")
    first = run(tiny_sd1, pictures, tmp_path / "1", *more)
    again = ["--config", str(tmp_path / "1" / "run.yaml"), "--output_dir", str(tmp_path / "2")]
    assert main(again) == 0
    assert same(load_file(tmp_path / "2" / "adapter.safetensors"), first)
    assert main([*again, "--overwrite_output_dir", "--seed", "4"]) == 0
    assert not same(load_file(tmp_path / "2" / "adapter.safetensors"), first)


def test_a_resume_with_other_content_is_refused(tiny_sd1, pictures, tmp_path: Path) -> None:
    base, classes = shutil.copytree(tiny_sd1, tmp_path / "base"), tmp_path / "class"
    classes.mkdir()
    Image.new("RGB", (32, 32), "red").save(classes / "a.png")
    more = ("--with_prior_preservation", "--class_data_dir", str(classes), "--class_prompt", "a")
    more += ("--num_class_images", "1", "--no_latents_cache")
    run(base, pictures, tmp_path / "out", *more, "--checkpointing_steps", "2")
    (tmp_path / "out" / "adapter.safetensors").unlink()
    resume = (*more, "--resume_from_checkpoint", "latest", "--max_train_steps", "5")
    with pytest.raises(UserError, match=r"--max_grad_norm = 1\.0; this run has 2\.0"):
        run(base, pictures, tmp_path / "out", *resume, "--max_grad_norm", "2")
    Image.new("RGB", (32, 32), "blue").save(classes / "a.png")
    with pytest.raises(UserError, match="the pictures of --class_data_dir"):
        run(base, pictures, tmp_path / "out", *resume)
    Image.new("RGB", (32, 32), "red").save(classes / "a.png")
    schedule = base / "scheduler/scheduler_config.json"
    written = schedule.read_text()
    schedule.write_text(json.dumps(json.loads(written) | {"prediction_type": "v_prediction"}))
    with pytest.raises(UserError, match="the configs of --pretrained_model_name_or_path"):
        run(base, pictures, tmp_path / "out", *resume)
    schedule.write_text(written)
    weights = next(base.glob("vae/*.safetensors"))
    tensors = load_file(weights)
    tensors[min(tensors)].view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match="the weights of --pretrained_model_name_or_path"):
        run(base, pictures, tmp_path / "out", *resume)


def test_a_diverging_run_stops_and_keeps_the_last_good_state(
    tiny_sd1, pictures, tmp_path: Path
) -> None:
    # A schedule that is harmless for two steps and then is not.
    more = ("--learning_rate", "1e30", "--lr_scheduler", "piecewise_constant")
    rules = ("--lr_step_rules", "0.0:2,1")
    steps = ("--checkpointing_steps", "1", "--max_train_steps", "30")
    with pytest.raises(UserError, match=r"became NaN or infinite.*lower --learning_rate"):
        run(tiny_sd1, pictures, tmp_path, *more, *rules, *steps)
    assert not (tmp_path / "adapter.safetensors").exists()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        tensors = load_file(checkpoint / "adapter.safetensors")
        assert all(torch.isfinite(t).all() for t in tensors.values())
    assert (tmp_path / "checkpoint-2").is_dir()


@pytest.fixture
def full_disk(tmp_path: Path):
    """A file system of half a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_no_trained_weights(tiny_sd1, pictures, full_disk: Path, caplog) -> None:
    ballast = full_disk / "ballast"
    ballast.write_bytes(b"x" * 480_000)
    out = full_disk / "out"
    with pytest.raises(UserError, match="no space left") as error:
        run(tiny_sd1, pictures, out, "--checkpointing_steps", "2", "--a1", "1", "--a2", "1")
    assert "training continues" in caplog.text  # the checkpoints could not be saved either
    rescued = Path(str(error.value).rpartition(" ")[2])
    assert len(load_file(rescued)) == 2 * LAYERS
    assert not list(out.glob("checkpoint-*")) and not list(out.glob(".checkpoint-*"))
    rescued.unlink()


def test_mistakes_get_one_line_and_exit_code_2(tiny_sd1, pictures, tmp_path: Path) -> None:
    out, said = tmp_path / "out", tmp_path / "said.txt"
    arguments = flags(tiny_sd1, pictures, out, "--a1", "3")
    program = Program("diffusekrona.train_dreambooth", *arguments, said=said)
    assert program.wait() == 2
    *_, line = said.read_text().splitlines()
    assert line.startswith("error: Kronecker factors (a1=3, a2=16) do not fit layer")
    assert "Traceback" not in said.read_text()
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--pretrained_model_name_or_path", "./nowhere"], "No base model at './nowhere'"),
        (["--instance_data_dir", "./nowhere"], "nowhere"),
        (["--attn_update_unet", "kx"], "letters k, q, v, o"),
        (["--factors", "k=8by8"], "cannot read 'k=8by8'"),
        (["--factors", "k=8x" + "9" * 5000], "cannot read 'k=8x9"),
        (["--attn_update_unet", "kq", "--factors", "o=2x8"], "--factors gives 'o'"),
        (["--resolution", "33"], "multiples of 2"),
        (["--with_prior_preservation"], "needs --class_data_dir"),
        (["--max_train_steps", "0"], "at least 1"),
        (["--optimizer", "prodigy"], "pip install prodigyopt"),
        (["--report_to", "clearml"], "pip install clearml"),
        (["--report_to", "out/x.safetensors"], "give one of all, aim, tensorboard, wandb"),
        (["--use_8bit_adam"], "pip install bitsandbytes"),
        (["--mixed_precision", "fp16"], "fp16 needs a GPU"),
        (["--rank", "0", "--adapter_type", "lora"], "--rank must be at least 1"),
        (["--lr_scheduler", "piecewise_constant"], "--lr_step_rules"),
    ],
)
def test_mistakes(tiny_sd1, pictures, tmp_path: Path, monkeypatch, more, says) -> None:
    for package in ("bitsandbytes", "clearml", "prodigyopt"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    with pytest.raises(UserError) as error:
        main(flags(tiny_sd1, pictures, tmp_path / "out", *more))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_two_runs_do_not_write_to_one_folder(
    tiny_sd1, pictures, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    monkeypatch.setattr(output, "PATIENCE", 0.2)
    with FileLock(tmp_path / ".lock"):  # as another run holds it
        with pytest.raises(UserError, match="another run is writing to"):
            main(flags(tiny_sd1, pictures, tmp_path, "--overwrite_output_dir"))
        assert (tmp_path / "checkpoint-2").exists()
    assert main(flags(tiny_sd1, pictures, tmp_path, "--overwrite_output_dir")) == 0


def test_the_rank_of_a_recipe_is_not_a_process(
    tiny_sd1, pictures, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.2)
    monkeypatch.setenv("RANK", "4")  # as the scripts name the rank of a LoRA
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another run is writing to"):
        main(flags(tiny_sd1, pictures, tmp_path))


def test_a_killed_run_may_take_a_moment_to_leave(tmp_path: Path) -> None:
    other = FileLock(tmp_path / ".lock", thread_local=False)
    other.acquire()
    leaving = threading.Timer(0.3, other.release)
    leaving.start()
    with output.claim_output(tmp_path):
        leaving.join()
        with pytest.raises(Timeout):
            other.acquire(timeout=0)


def test_dry_run_tells_and_writes_nothing(tiny_sdxl, pictures, tmp_path: Path, capsys) -> None:
    assert main(flags(tiny_sdxl, pictures, tmp_path / "out", "--dry_run")) == 0
    reported = capsys.readouterr().out
    assert (
        "Stable Diffusion XL" in reported
        and f"{LAYERS} layers" in reported
        and "4 of batch 1" in reported
    )
    assert not (tmp_path / "out").exists()


def test_dry_run_of_endless_steps(tiny_sd1, pictures, tmp_path: Path, capsys) -> None:
    """The largest number that the flag takes, which no list of checkpoints may hold."""
    more = ("--dry_run", "--max_train_steps", str(2**63 - 1), "--checkpointing_steps", "1")
    assert main(flags(tiny_sd1, pictures, tmp_path / "out", *more)) == 0
    assert f"checkpoint-{2**63 - 1}" in "".join(capsys.readouterr().out.split())


def test_a_damaged_validation_picture_is_left_out(tmp_path: Path, caplog) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "step-000001-00.png")
    (tmp_path / "step-000002-00.png").write_bytes(b"damaged")
    ((_, (first,)), (_, (second,))) = validation.validation_grid(tmp_path, ["x"]).rows
    assert first.getpixel((3, 3)) == (255, 0, 0) and second is None
    assert "step-000002-00.png is damaged" in caplog.text


def test_captions_of_single_pictures_are_used(tiny_sd1, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a red square")
    (folder / ".DS_Store").write_bytes(b"x")
    main(flags(tiny_sd1, folder, tmp_path / "out", "--dry_run"))
    assert "a red square" in capsys.readouterr().out


def test_bf16(tiny_sdxl, pictures, tmp_path: Path) -> None:
    tensors = run(tiny_sdxl, pictures, tmp_path, "--mixed_precision", "bf16")
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in tensors.values())
