"""How the scripts launch programs: values, exit codes, processes, saved configurations."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from processes import printing_python

from diffusekrona.bases.bundled import BUNDLED

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch", ROOT / "scripts/common/launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def words(tmp_path: Path):
    """Run a script with a Python that prints its arguments, one per line; returns them."""
    stub = printing_python(tmp_path)

    def run(script: str, *arguments: str, **variables: str) -> list[str]:
        env = {"PATH": os.environ["PATH"], "PYTHON": str(stub), **variables}
        command = ["bash", str(ROOT / "scripts" / script), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_fine_tuning_passes_its_block_on(words) -> None:
    block = {"VARIANT": "fp16", "LOW_VRAM": "yes", "LR": "2e-4"}
    arguments = words("finetune_sdxl.sh", "--random_flip", **block)
    assert arguments[0].endswith("launch.py") and "--num_processes" not in arguments
    assert value(arguments, "-m") == "diffusekrona.train_dreambooth"
    assert value(arguments, "--learning_rate") == "2e-4" and value(arguments, "--variant") == "fp16"
    assert {"--low_vram", "--gradient_checkpointing", "--random_flip"} <= set(arguments)
    assert value(arguments, "--output_dir").endswith(
        "outputs/dog/krona_kqvo_4x64_stable-diffusion-xl-base-1.0_lr2e-4"
    )
    assert value(words("finetune_sd.sh", NUM_PROCESSES="2"), "--num_processes") == "2"


def test_scoring_passes_its_block_on(words) -> None:
    block = {"LOW_VRAM": "yes", "VARIANT": "fp16", "TOKEN": "zwx"}
    passed = words("evaluate.sh", ADAPTERS="none one", **block)
    assert passed.count("--adapter") == 2 and "--low_vram" in passed
    assert value(passed, "--identifier") == "zwx"
    assert value(passed, "--variant") == "fp16" and "--low_vram" not in words(
        "evaluate.sh", ADAPTERS="none"
    )


@pytest.mark.parametrize("family", ["flux2_klein", "z_image"])
def test_transformers_are_fine_tuned_and_drawn_with_values_of_their_own(words, family) -> None:
    passed = words(f"finetune_{family}.sh")
    assert value(passed, "--a1") == "64" and value(passed, "--mixed_precision") == "bf16"
    drawn = words(f"inference_{family}.sh", ADAPTER="some/run")
    assert "--guidance_scale" not in drawn and value(drawn, "--adapter") == "some/run"
    drawn = words(f"inference_{family}.sh", ADAPTER="some/run", GUIDANCE="3", STEPS="9")
    assert value(drawn, "--guidance_scale") == "3" and value(drawn, "--num_inference_steps") == "9"


@pytest.mark.parametrize(
    ("variables", "rate"),
    [
        ({}, "6e-4"),
        ({"ADAPTER_TYPE": "lora"}, "1e-4"),
        ({"MODEL_NAME": "pocket"}, "6e-3"),
        ({"MODEL_NAME": "pocket", "ADAPTER_TYPE": "lora"}, "6e-4"),
        ({"ADAPTER_TYPE": "lora", "LR": "3e-4"}, "3e-4"),
    ],
)
def test_the_rate_suits_the_method_and_the_base(words, variables: dict, rate: str) -> None:
    said = words("finetune_sd.sh", **variables)
    assert value(said, "--learning_rate") == rate
    assert value(said, "--output_dir").endswith(f"_lr{rate}")


def test_a_method_given_as_a_flag_has_its_rate(words) -> None:
    said = words("finetune_sd.sh", "--adapter_type", "lora")
    assert value(said, "--learning_rate") == "1e-4"
    assert Path(value(said, "--output_dir")).name.startswith("lora_kqvo_r4_")


def test_epochs_given_as_a_flag_replace_the_steps(words) -> None:
    assert "--max_train_steps" not in words("finetune_sd.sh", "--num_train_epochs", "3", STEPS="7")


def test_a_bundled_base_has_its_values_by_its_folder_too(words) -> None:
    said = words("finetune_sd.sh", MODEL_NAME=str(BUNDLED / "pocket"), STEPS="7")
    assert value(said, "--learning_rate") == "6e-3" and value(said, "--max_train_steps") == "7"
    assert value(said, "--max_relative_norm") == "0.15" and value(said, "--a1") == "2"
    assert value(said, "--lr_scheduler") == "cosine" and "--train_text_encoder" not in said
    other = words("finetune_sd.sh", MODEL_NAME="pockets/own")
    assert value(other, "--lr_scheduler") == "constant" and "--train_text_encoder" in other
    assert "--max_relative_norm" not in other and value(other, "--a1") == "4"


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "scripts").glob("study_*.sh")))
def test_studies_pass_their_block_on(words, script: str) -> None:
    name = script.removeprefix("study_").removesuffix(".sh").replace("_", "-")
    arguments = words(script, SUBJECTS="dog a:cat", SEEDS="4 5")
    assert arguments[:3] == ["-m", "diffusekrona.study", name]
    assert value(arguments, "--base") == "pocket" and value(arguments, "--seeds") == "4"
    assert arguments.count("--subject") == 2
    assert value(arguments, "--output_dir").endswith(f"outputs/studies/{name}")


def test_drawing_takes_prompts_apart(words, tmp_path: Path) -> None:
    arguments = words(
        "inference_sd.sh", ADAPTER=str(tmp_path), PROMPTS="a cat|$HOME, it's *| ", SEEDS="1"
    )
    assert [w for w in arguments if w.startswith("--prompt=")] == [
        "--prompt=a cat",
        "--prompt=$HOME, it's *",
    ]


def test_choosing_follows_the_flags_of_training(words) -> None:
    """The run's folder and the subject's name, wherever they were given."""

    def chosen(*flags: str, **variables: str) -> list[str]:
        printed = words("finetune_sd.sh", *flags, CHOOSE="yes", **variables)
        return printed[printed.index("diffusekrona.choose") + 1 :]

    assert chosen(OUTPUT_DIR="one")[0] == "one"
    assert chosen("--output_dir", "two", "--random_flip", OUTPUT_DIR="one")[0] == "two"
    assert chosen("--output_dir=a b", TOKEN="xyz") == [
        "a b", "--class_word", "dog", "--identifier", "xyz",
    ]  # fmt: skip
    assert chosen("--output_dir=a", "--instance_prompt=a zwx cat") == ["a"]
    small = chosen("--output_dir=a", LOW_VRAM="yes", VARIANT="fp16")
    assert "--low_vram" in small and value(small, "--variant") == "fp16"
    printed = words("finetune_sd.sh", OUTPUT_DIR="one", CHOOSE="--every 100 --budget 1h")
    assert printed[-4:] == ["--every", "100", "--budget", "1h"]
    assert chosen("--output-dir=a-b", "--instance-prompt", "a-b c") == ["a-b"]
    for flag in ("--dry_run", "--dry-run", "--help", "-h"):
        assert "diffusekrona.choose" not in words("finetune_sd.sh", flag, CHOOSE="yes")
    with pytest.raises(subprocess.CalledProcessError):
        words("finetune_sd.sh", CHOOSE="perhaps")


def test_the_newest_run_is_drawn_with_its_chosen_adapter(words, tmp_path, monkeypatch) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    run = tmp_path / "outputs/dog/one"
    run.mkdir(parents=True)
    script, best = str(tmp_path / "scripts/inference_sd.sh"), run / "best.safetensors"

    def drawn(**variables: str) -> str:
        return value(words(script, **variables), "--adapter")

    (tmp_path / "best.safetensors").touch()  # in the current folder, of no run
    monkeypatch.chdir(tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        drawn()
    (run / "adapter.safetensors").touch()
    assert drawn() == f"{run}/adapter.safetensors"
    best.touch()
    assert drawn() == str(best) and drawn(WEIGHT="0.5") == f"{best}:0.5"
    os.utime(best, (1, 1))  # trained further since
    assert drawn() == f"{run}/adapter.safetensors"


def test_the_quick_start_draws_with_the_identifier_that_it_trains_with(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts/common/install.sh").write_text(
        "say() { :; }\ninstall_into_venv() { :; }\n"
    )
    for folder in ("data/dog/input", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(printing_python(tmp_path), tmp_path / ".venv/bin/python")
    env = {"PATH": os.environ["PATH"], "TOKEN": "zwx", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(tmp_path / "scripts/quickstart.sh")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()
    assert value(printed, "--instance_prompt") == "a zwx dog"
    assert value(printed, "--identifier") == "zwx"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("code", [0, 2])
def test_the_programs_exit_code_is_the_scripts(tmp_path: Path, processes: int, code: int) -> None:
    (tmp_path / "program.py").write_text(f"import sys; print('here'); sys.exit({code})")
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/common/launch.py",
            f"--num_processes={processes}",
            tmp_path / "program.py",
        ],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and done.stdout.count("here") == processes
    assert "Traceback" not in done.stderr


def parse(launch: ModuleType, *flags: str):
    parser = launch.launch.launch_command_parser()
    return launch.complete(parser.parse_args([*flags, "program.py"]))


def test_a_saved_configuration_holds_but_for_more_processes(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")  # so that what is set is taken back
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none.yaml"))
    alone = parse(launch)
    assert (alone.num_processes, alone.mixed_precision, alone.multi_gpu) == (1, "no", False)
    assert alone.num_cpu_threads_per_process == launch.physical_cores() >= 1
    one = tmp_path / "one.yaml"
    one.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\n"
        "num_processes: 1\nnum_machines: 1\nuse_cpu: false\n"
    )
    saved = parse(launch, "--config_file", str(one))
    assert saved.num_processes is None and saved.mixed_precision is None  # accelerate reads them
    assert not saved.multi_gpu
    assert parse(launch, "--config_file", str(one), "--num_processes", "2").multi_gpu
    sharded = str(ROOT / "configs/accelerate/fsdp.yaml")
    assert not parse(launch, "--config_file", sharded, "--num_processes", "2").multi_gpu
