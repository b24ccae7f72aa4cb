"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_trains_and_draws_on_pocket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/dog/input").mkdir(parents=True)
    for name in ("00.png", "01.png"):
        shutil.copy(ROOT / "data/dog/input" / name, tmp_path / "data/dog/input" / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STEPS", "2")
    notebook = nbformat.read(ROOT / "notebooks/diffusekrona.ipynb", as_version=4)
    for cell in notebook.cells:  # fewer steps of denoising than a person would take
        cell.source = re.sub(r'("--num_inference_steps",\s+)25', r"\g<1>2", cell.source)
        cell.source = cell.source.replace(
            '"validation_steps":', '"validation_inference_steps": 2, "validation_steps":'
        )
        cell.source = cell.source.replace("time.sleep(5)", "time.sleep(0.2)")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    run = tmp_path / "outputs/dog/notebook"
    assert (run / "dog_lokr.safetensors").is_file() and (run / "images/grid.png").is_file()
    assert "learning_rate: 0.006\n" in (run / "run.yaml").read_text()  # pocket's, as the scripts'
    shown = [out for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out]
    assert sum("image/png" in out["data"] for out in shown) >= 4  # photos, loss, pictures, grid
