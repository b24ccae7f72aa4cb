"""Shared fixtures: tiny pipelines on disk, made once a test run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_pipeline(tmp_path_factory.mktemp("models") / "sd1", "sd1")


@pytest.fixture(scope="session")
def tiny_sd2_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd2"
    return tiny_models.save_pipeline(folder, "sd2", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_pipeline(tmp_path_factory.mktemp("models") / "sdxl", "sdxl")
