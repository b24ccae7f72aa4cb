"""Other programs' rules, written down again from their descriptions, to check our files against.

Nothing here uses the code under test.
"""

from __future__ import annotations

from pathlib import Path

import tiny_models
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

LETTERS = {"k": "to_k", "q": "to_q", "v": "to_v", "o": "to_out.0"}


def plain_unet(family: str = "sd1", **changes) -> nn.Module:
    """The tiny UNet of a family, the same weights every time."""
    torch.manual_seed(0)
    if not changes:
        return tiny_models.unet(family).eval()
    config = {k: v for k, v in tiny_models.unet(family).config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**config, **changes}).eval()


def save_base(folder: Path, family: str) -> Path:
    """A tiny base of a family, with the published models' two layers a block.

    SDXL's text encoders differ in width, by which diffusers distinguishes them in a single file; it
    predicts v with zero terminal SNR, which the original layout has marks for.
    """
    torch.manual_seed(0)
    if family != "sdxl":
        return tiny_models.save_pipeline(folder, family)
    vae = AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae,
        unet=plain_unet("sdxl", layers_per_block=2, cross_attention_dim=64 + 32),
        scheduler=EulerDiscreteScheduler(
            **tiny_models.SCHEDULE, prediction_type="v_prediction", rescale_betas_zero_snr=True
        ),
        text_encoder=CLIPTextModel(tiny_models.text_config(32, 32)),
        tokenizer=tiny_models.tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(tiny_models.text_config(64)),
        tokenizer_2=tiny_models.tokenizer(),
    ).save_pretrained(folder)
    return folder


def base_inputs(family: str) -> dict:
    """Arguments of a UNet call for a base of `save_base`."""
    given = tiny_models.unet_inputs(family)
    if family == "sdxl":
        given["encoder_hidden_states"] = given["encoder_hidden_states"][:, :, :96]
    return given


def output(unet: nn.Module, family: str = "sd1") -> torch.Tensor:
    with torch.no_grad():
        return unet(**tiny_models.unet_inputs(family)).sample


def projections(unet: nn.Module, letters: str = "kqvo") -> dict[str, nn.Linear]:
    ends = tuple("." + LETTERS[letter] for letter in letters)
    return {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear) and n.endswith(ends)}


class PublishedLayer(nn.Module):
    """The published code's layer around a linear one: y = W x + up (X^T down), X (a2, b2).

    The result (b1, a1) is read row by row, which is what interleaves its outputs.
    """

    def __init__(self, base: nn.Linear, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up  # (a2, a1), (b1, b2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a2, b2 = self.down.shape[0], self.up.shape[1]
        columns = x.reshape(-1, a2, b2).transpose(1, 2)  # (n, b2, a2)
        change = self.up @ (columns @ self.down)  # (n, b1, a1)
        return self.base(x) + change.reshape(*x.shape[:-1], -1)


def published_checkpoint(
    unet: nn.Module, path: Path, letters: str = "kqvo", factors: tuple[int, int] = (8, 16), seed=1
) -> tuple[Path, nn.Module]:
    """A checkpoint of the published code with random factors, and the UNet that it makes.

    Args:
        factors: the published code's own (a1, a2): a1 divides out_features.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in projections(unet, letters).items():
        a1, a2 = factors
        b1, b2 = layer.out_features // a1, layer.in_features // a2
        down = torch.randn(a2, a1, generator=generator) * 0.1
        up = torch.randn(b1, b2, generator=generator) * 0.1
        block, _, which = name.removesuffix(".0").rpartition(".")
        tensors[f"unet.{block}.processor.{which}_lora.down.weight"] = down
        tensors[f"unet.{block}.processor.{which}_lora.up.weight"] = up
        unet.set_submodule(name, PublishedLayer(layer, down, up))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path, unet


def apply_ui_rule(tensors: dict[str, torch.Tensor], stems: dict[str, nn.Module]) -> None:
    """What the user interfaces do with a LoKr: weight += kron(w1, w2) reshaped; alpha unused.

    Raises AssertionError for a key that no layer takes.
    """
    taken = set()
    for stem, layer in stems.items():
        if f"{stem}.lokr_w1" not in tensors:
            continue
        w1, w2 = tensors[f"{stem}.lokr_w1"].float(), tensors[f"{stem}.lokr_w2"].float()
        if w2.dim() == 4:
            w1 = w1[:, :, None, None]
        layer.weight.data += torch.kron(w1, w2).reshape(layer.weight.shape)
        taken |= {f"{stem}.lokr_w1", f"{stem}.lokr_w2", f"{stem}.alpha"}
    assert not set(tensors) - taken, sorted(set(tensors) - taken)[:3]


def ui_stems(unet: nn.Module, sgm: bool) -> dict[str, nn.Module]:
    """Kohya's stem of every weighted module, by counting the blocks as the original model does."""
    stems = {}
    for name, module in unet.named_modules():
        if getattr(module, "weight", None) is None:
            continue
        stems["lora_unet_" + (sgm_name(name, unet) if sgm else name).replace(".", "_")] = module
    return stems


def sgm_name(name: str, unet: nn.Module) -> str:
    """The original's name of an attention's module, counted by walking the UNet's blocks."""
    number = 1  # input block 0 is conv_in
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            head = f"down_blocks.{i}.attentions.{j}."
            if name.startswith(head):
                return f"input_blocks.{number}.1." + name.removeprefix(head)
            number += 1
        number += bool(block.downsamplers)
    if name.startswith("mid_block.attentions.0."):
        return "middle_block.1." + name.removeprefix("mid_block.attentions.0.")
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            head = f"up_blocks.{i}.attentions.{j}."
            if name.startswith(head):
                return f"output_blocks.{number}.1." + name.removeprefix(head)
            number += 1
    return name
