"""What the documents say of results, files and commands holds."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from processes import printing_python

from diffusekrona.__main__ import PROGRAMS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
INTERVAL = re.compile(r"\[[-+]?\d\.\d+, [-+]?\d\.\d+\] \|")
PROGRAM = re.compile(r"(?:-m diffusekrona\.([a-z_.]+)|diffusekrona ([a-z][a-z-]+))\b(.*)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if "://" not in link and not (document.parent / link).resolve().exists()
    ]
    assert missing == []


def test_tables_with_intervals_are_the_studies_own() -> None:
    shown = [
        line
        for document in (ROOT / "README.md", ROOT / "docs" / "studies.md")
        for line in document.read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and INTERVAL.search(line)
    ]
    written = {
        line
        for results in (ROOT / "docs" / "studies").glob("*/results.md")
        for line in results.read_text(encoding="utf-8").splitlines()
    }
    assert len(shown) > 25
    assert [line for line in shown if line not in written] == []


def commands(document: Path) -> list[str]:
    """The lines of a document's code, those that continue after a backslash joined."""
    text = document.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.S | re.M)
    blocks = [block for language, block in fenced if language in ("", "bash")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    return [line.strip() for line in lines]


def everywhere() -> list[tuple[str, str]]:
    return [(document.name, line) for document in DOCUMENTS for line in commands(document)]


def test_scripts_and_programs_that_are_named_exist() -> None:
    for document, line in everywhere():
        for script in re.findall(r"\b(?:scripts|benchmarks)/[\w/]+\.(?:sh|py)", line):
            assert (ROOT / script).is_file(), f"{document}: {line}"
        if match := PROGRAM.search(line):
            module, name, _ = match.groups()
            there = name in PROGRAMS if name else find_spec(f"diffusekrona.{module}")
            assert there, f"{document}: {line}"


@cache
def help_of(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.replace("-", "_")  # a flag may be written either way


def test_tests_that_are_named_exist() -> None:
    for document in (*DOCUMENTS, *(ROOT / "configs").rglob("*.yaml")):
        text = document.read_text(encoding="utf-8")
        for file, name in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", text):
            assert (ROOT / file).is_file(), f"{document.name}: {file}"
            there = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {name}" in there, f"{document.name}: {file}::{name}"


@pytest.mark.slow
def test_flags_that_are_named_exist() -> None:
    unknown = []
    for document, line in everywhere():
        if not (match := PROGRAM.search(line)):
            continue
        module, name, rest = match.groups()
        module = PROGRAMS[name][0] if name else f"diffusekrona.{module}"
        for flag in re.findall(r"(?<!\S)--([a-z0-9_-]+)", rest.split("#")[0]):
            if not re.search(rf"\b_*{flag.replace('-', '_')}\b", help_of(module)):
                unknown.append(f"{document}: --{flag} in {line}")
    assert unknown == []


def recipes() -> list[str]:
    """Every fine-tuning command of the README and the recipes, once."""
    found = [
        line.split("#")[0].strip()
        for name in ("README.md", "docs/recipes.md")
        for line in commands(ROOT / name)
        if "scripts/finetune_" in line and "accelerate" not in line
    ]
    return list(dict.fromkeys(found))


def flags_of(command: str, folder: Path) -> list[str]:
    """What a fine-tuning command passes to the program, on the small base of its kind."""
    stub = printing_python(folder)
    # What needs a GPU, and what would train on a published base.
    command = re.sub(r"\b(?:MODEL_NAME|NUM_PROCESSES|PRECISION|LOW_VRAM)=\S+ ", "", command)
    base = "pocket-sdxl" if "finetune_sdxl" in command else "pocket"
    env = {
        **os.environ,
        "PYTHON": str(stub),
        "MODEL_NAME": base,
        "OUTPUT_DIR": str(folder / "run"),
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    return words[words.index("diffusekrona.train_dreambooth") + 1 :]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("command", recipes())
def test_recipes_have_a_plan(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from diffusekrona.train_dreambooth import main

    flags = flags_of(command, tmp_path)
    main([*flags, *([] if "--dry_run" in flags else ["--dry_run"])])
    assert "adapter file" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("command", [c for c in recipes() if "--dry_run" not in c])
def test_recipes_run_whole(command: str, tmp_path: Path) -> None:
    """Each for one step, with one validation picture and one class picture, to its last file."""
    from diffusekrona.train_dreambooth import main

    few = {
        "max_train_steps": 1,
        "train_batch_size": 1,
        "validation_inference_steps": 1,
        "num_validation_images": 1,
    }
    flags = flags_of(command, tmp_path)
    if "--class_data_dir" in flags:
        folder = tmp_path / "class"
        few |= {"num_class_images": 1, "sample_batch_size": 1, "class_data_dir": folder}
    flags += [word for name, value in few.items() for word in (f"--{name}", str(value))]
    assert main(flags) == 0
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter.safetensors", "run.json", "run.yaml", "validation", "README.md"} <= left


def program_lines() -> list[str]:
    """Every command of the documents that draws, converts, inspects, plans or runs a study."""
    found = [
        line.split("#")[0].split(">")[0].strip()
        for document in DOCUMENTS
        for line in commands(document)
        if "`" not in line  # prose
        and (match := PROGRAM.search(line))
        and (match[1] or PROGRAMS.get(match[2], ("",))[0].removeprefix("diffusekrona."))
        in ("inference", "convert", "inspect", "plan", "study")
    ]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one step of training on pocket."""
    from diffusekrona.train_dreambooth import main

    folder = tmp_path_factory.mktemp("documents") / "run"
    main(
        ["--pretrained_model_name_or_path", "pocket", "--instance_data_dir", "data/dog/input",
         "--instance_prompt", "a sks dog", "--max_train_steps", "1",
         "--output_dir", str(folder)]
    )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", program_lines())
def test_documented_programs_run_on_pocket(
    line: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a small adapter, base and number of steps; a study up to its description."""
    _, name, rest = (match := PROGRAM.search(line)).groups()
    module = PROGRAMS[name][0] if name else f"diffusekrona.{match[1]}"
    words = shlex.split(rest)
    if module.endswith("study") and any(word.endswith(".yaml") for word in words):
        pytest.skip("needs a study of the reader's own")
    for folder in re.findall(r"outputs/((?:rex|dog|cat)/\w+)", rest):
        shutil.copytree(trained, tmp_path / folder, dirs_exist_ok=True)
    words = [re.sub(r"^outputs/(?=(?:rex|dog|cat)/)", f"{tmp_path}/", word) for word in words]
    words = ["pocket" if word.startswith("stabilityai/") else word for word in words]
    words = [str(tmp_path / word) if word.endswith(".safetensors") else word for word in words]
    if module.endswith("inference"):
        words += ["--num_inference_steps", "2", "--output_dir", str(tmp_path / "pictures")]
    elif module.endswith("study"):
        words += [] if "--list" in words or "--print" in words else ["--print"]
    elif "--draw" in words:
        words += ["--num_inference_steps", "2", "--seeds", "0"]
    module += ".__main__" if module.endswith("study") else ""
    monkeypatch.chdir(ROOT)
    assert not importlib.import_module(module).main(words)


YAML_FILES = [
    path
    for pattern in (
        *("docs/studies/*/*.yaml", "configs/**/*.yaml", ".github/**/*.yml"),
        *("mkdocs.yml", ".pre-commit-config.yaml", "*.cff"),
    )
    for path in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_yaml_file_is_read_by_what_it_is_for(path: Path) -> None:
    if path.name == "study.yaml":
        from diffusekrona.study.yaml_files import read_study

        assert read_study(path).arms
    elif "accelerate" in path.parts:
        from accelerate.commands.config.config_args import load_config_from_file

        assert load_config_from_file(str(path)).num_processes >= 1
    else:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
