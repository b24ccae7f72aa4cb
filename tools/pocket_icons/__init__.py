"""The program that made the embedded icon bases; nothing of the package imports it."""

from pathlib import Path

MODELS = Path(__file__).parents[2] / "diffusekrona" / "pocket" / "models"
