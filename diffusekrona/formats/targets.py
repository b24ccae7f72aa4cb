"""The formats that `convert` writes and reads; to add one, begin here. Importable without torch.

`conversion` has the function that writes each target, `recognise.READERS` the one that reads each
source.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..adapters.layout import ADAPTER_FILE, LORA_WEIGHTS


@dataclass(frozen=True)
class Target:
    """A format to write.

    Attributes:
        name: on the command line.
        help: what it is, for `--help`.
        kind: what it holds of a layer: "krona" a sum of Kronecker products, "lokr" one product,
            "lora" low-rank factors, "merged" the whole weight.
        is_folder: a folder is always written, not a file.
        file_name: of the file in a folder that the user named; by default the folder's own name.
        not_transformers: it is written for UNets alone.
        only_transformers: it is written for transformers alone; UNets are written as this target.
        text_encoders: it holds layers of text encoders.
        bundled: it carries textual inversions along.
    """

    name: str
    help: str
    kind: str
    is_folder: bool = False
    file_name: str = ""
    not_transformers: bool = False
    only_transformers: str = ""
    text_encoders: bool = True
    bundled: bool = False


_ALL = (
    Target("krona", "DiffuseKronA's adapter file", "krona", file_name=ADAPTER_FILE),
    Target(
        "lokr",
        "LoKr under kohya's names, for ComfyUI, Forge, A1111, InvokeAI",
        "lokr",
        bundled=True,
    ),
    Target(
        "lokr-diffusers",
        "LoKr under diffusers' names, for unet.load_lora_adapter (square factors)",
        "lokr",
        text_encoders=False,
    ),
    Target(
        "lokr-lycoris",
        "LoKr under LyCORIS' names, for its wrapper and SimpleTuner (square factors)",
        "lokr",
        not_transformers=True,
        text_encoders=False,
    ),
    Target(
        "lokr-ai-toolkit",
        "LoKr under ai-toolkit's names (Z-Image; square factors)",
        "lokr",
        only_transformers="lokr",
    ),
    Target(
        "lora",
        "LoRA for diffusers' pipe.load_lora_weights",
        "lora",
        file_name=LORA_WEIGHTS,
    ),
    Target(
        "lora-kohya", "LoRA under kohya's names, for every user interface", "lora", bundled=True
    ),
    Target(
        "lora-ai-toolkit",
        "LoRA under ai-toolkit's names (FLUX.2-klein, Z-Image)",
        "lora",
        only_transformers="lora-kohya",
    ),
    Target(
        "merged",
        "the whole model: one file in the original layout if the destination ends in "
        ".safetensors, else a diffusers folder",
        "merged",
    ),
    Target(
        "peft", "PEFT folder of a KronA adapter", "krona", is_folder=True, not_transformers=True
    ),
    Target(
        "peft-lora",
        "PEFT folder of a LoRA, for stock PEFT",
        "lora",
        is_folder=True,
        not_transformers=True,
    ),
)
TARGETS = {target.name: target for target in _ALL}
SOURCES = ("krona", "published", "lokr", "lora", "peft", "full")


def targets_of(*kinds: str) -> list[str]:
    """Names of the targets of these kinds."""
    return [target.name for target in TARGETS.values() if target.kind in kinds]
