"""Runs PEFT's own test suite with KronA among its methods: `python tools/peft_suite.py`.

Fetches the source distribution of the installed PEFT with pip into a temporary folder, adds KronA
to the parametrisations of its tests, and runs those that name KronA. Further arguments go to
pytest.

Exit code: pytest's, 0 if every test passed. The counts are the last line printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("test_custom_models.py", "test_config.py")

# A pair of factors that divides every layer, since PEFT's tests make configs without arguments.
MODULE = """
from dataclasses import dataclass

from peft import mapping

import diffusekrona.krona


@dataclass
class KronAConfig(diffusekrona.krona.KronAConfig):
    a1: int = 1
    a2: int = 1


mapping.PEFT_TYPE_TO_CONFIG_MAPPING[diffusekrona.krona.config.PEFT_TYPE] = KronAConfig
"""

PAIR = '"a1": 2, "a2": 5'  # divides both layers of PEFT's MLP, 10 -> 20 -> 2
CASES = {
    "TEST_CASES = [": f"""
    ("Vanilla MLP 1 KronA", "MLP", KronAConfig, {{"target_modules": "lin0", {PAIR}}}),
    ("Vanilla MLP 2 KronA", "MLP", KronAConfig, {{"target_modules": ["lin0"], {PAIR}}}),
    ("Vanilla MLP 3 KronA", "MLP", KronAConfig, {{"target_modules": ["lin1"], {PAIR}}}),
    ("Vanilla MLP 4 KronA", "MLP", KronAConfig, {{"target_modules": ["lin0", "lin1"], {PAIR}}}),
    (
        "Vanilla MLP 5 KronA",
        "MLP",
        KronAConfig,
        {{"target_modules": ["lin0"], "modules_to_save": ["lin1"], {PAIR}}},
    ),
    (
        "Vanilla MLP 6 KronA",
        "MLP",
        KronAConfig,
        {{
            "target_modules": ["lin0", "lin1"],
            "exclude_modules": ["lin0"],
            "modules_to_save": ["lin0"],
            {PAIR},
        }},
    ),
    ("Vanilla MLP 7 KronA", "MLP", KronAConfig, {{"target_modules": "lin0", "terms": 3, {PAIR}}}),
    ("Vanilla MLP 8 KronA", "MLP", KronAConfig, {{"target_modules": "lin0", "scale": 0.5, {PAIR}}}),
    (
        "Vanilla MLP 9 KronA",
        "MLP",
        KronAConfig,
        {{"target_modules": ["lin0", "lin1"], "factor_pattern": {{"lin1": (1, 4)}}, {PAIR}}},
    ),
    (
        "Vanilla MLP 10 KronA",
        "MLP",
        KronAConfig,
        {{"target_modules": "lin0", "output_order": "interleaved", {PAIR}}},
    ),
""",
    "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [": f"""
    (
        "KronA Same",
        "krona",
        KronAConfig,
        {{"target_modules": ["lin0"], "init_weights": False, {PAIR}}},
        {{"target_modules": ["lin0"], "init_weights": False, {PAIR}}},
    ),
    (
        "KronA Different",
        "krona",
        KronAConfig,
        {{"target_modules": ["lin0"], "init_weights": False, {PAIR}}},
        {{"target_modules": ["lin1"], "init_weights": False, {PAIR}}},
    ),
""",
}


def add_krona(text: str) -> str:
    """A test file of PEFT with KronA wherever LoKr is a parameter, and cases of its own."""
    text = re.sub(r"(?m)^(            )LoKrConfig,$", r"\1LoKrConfig,\n\1KronAConfig,", text)
    text = text.replace(
        "LoHaConfig, LoKrConfig, LoraConfig,", "LoHaConfig, LoKrConfig, KronAConfig,"
    )
    text = text.replace(
        "    (LoKrConfig, {}),\n", "    (LoKrConfig, {}),\n    (KronAConfig, {}),\n"
    )
    for start, cases in CASES.items():
        text = re.sub(rf"(?m)^{re.escape(start)}\n", lambda m, new=cases: m[0] + new, text)
    return text.replace(
        "\nfrom peft import (", "\nfrom .krona import KronAConfig\nfrom peft import (", 1
    )


def fetch(folder: Path) -> Path:
    """The folder of PEFT's tests, from the source distribution of the installed release."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(folder), f"peft=={version('peft')}"]
    subprocess.run(command, check=True)
    with tarfile.open(next(folder.glob("peft-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("peft-*/tests") if path.is_dir())


def main() -> int:
    """Fetch, add, run; returns pytest's exit code."""
    with tempfile.TemporaryDirectory() as temporary:
        tests = fetch(Path(temporary))
        (tests / "__init__.py").touch()  # it is not distributed
        (tests / "krona.py").write_text(MODULE, encoding="utf-8")
        if find_spec("datasets") is None:  # imported by PEFT's helpers, not used by these tests
            (tests.parent / "datasets.py").write_text("load_dataset = None\n", encoding="utf-8")
        for name in FILES:
            file = tests / name
            file.write_text(add_krona(file.read_text(encoding="utf-8")), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, "--rootdir", str(tests.parent), "-k", "KronA"]
        command += [*(f"tests/{name}" for name in FILES), *sys.argv[1:]]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            command, cwd=tests.parent, env={**os.environ, "PYTHONPATH": path}
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
