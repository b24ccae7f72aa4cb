"""How far an adapter moves at one learning rate: ||delta W|| after Adam's first step, and later.

    python benchmarks/step_size.py --steps 100
    python benchmarks/step_size.py --widths 64 128 256 512      # of untrained UNets, (4, 64)

Adam's first step moves every entry of the factor that starts at zero by the learning rate, so

    KronA  ||delta W|| = scale * rate * std(A) * sqrt(terms * out * in)
    LoRA   ||delta W|| = alpha / r * rate * std(A) * sqrt(r * out * in), where PEFT's std(A) is 1/r

With std(A) = 1/64, which is `init_weights="paper"`, and a scale of 1/sqrt(terms), or for LoRA
alpha = r^1.5 / 64, it is rate / 64 * sqrt(out * in) for all of them: the unit of the table, as the
root mean square over the layers. Trained is the bundled base `pocket` on noise of fixed latents and
text states, drawn at random: how far a step goes depends little on what is learned. With --widths
the UNets have pocket's layout at other widths and untrained weights. Relative to ||W||, whose
entries shrink with sqrt(in), the first step then grows with sqrt(in).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from diffusers import DDPMScheduler, UNet2DConditionModel  # noqa: E402
from peft import LoraConfig, PeftConfig  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from torch import nn  # noqa: E402

from diffusekrona import KronAConfig  # noqa: E402

POCKET = ROOT / "diffusekrona" / "pocket" / "models" / "pocket"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PAIRS = ((4, 64), (64, 64), (16, 16), (4, 4), (8, 64))


def arms() -> Iterator[tuple[str, PeftConfig]]:
    """Every adapter that is measured, with its name in the table."""
    for start in ("normal", "paper"):
        for a1, a2 in PAIRS:
            yield f"KronA ({a1}, {a2}) {start}", krona(a1, a2, start)
    for scaled in (False, True):
        for terms in (2, 3, 4):
            scale = terms**-0.5 if scaled else 1.0
            name = f"KronA (4, 64) paper, {terms} terms, scale {scale:.2f}"
            yield name, krona(4, 64, "paper", terms=terms, scale=scale)
    for rank in (1, 2, 4, 8):
        for alpha in (float(rank), rank**1.5 / 64):
            yield (
                f"LoRA r = {rank}, alpha = {alpha:.3g}",
                LoraConfig(
                    r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=TARGETS
                ),
            )


def krona(a1: int, a2: int, start: str, **more: float) -> KronAConfig:
    return KronAConfig(a1=a1, a2=a2, init_weights=start, target_modules=TARGETS, **more)


def unet_of(width: int | None) -> UNet2DConditionModel:
    """Pocket's UNet, or an untrained one whose attention is `width` wide."""
    if width is None:
        return UNet2DConditionModel.from_pretrained(POCKET, subfolder="unet")
    config = UNet2DConditionModel.load_config(POCKET, subfolder="unet")
    heads = width // 64  # attention_head_dim is their number, as in diffusers' own configs
    more = {"block_out_channels": (width // 2, width), "attention_head_dim": max(heads, 1)}
    return UNet2DConditionModel.from_config({**config, **more, "cross_attention_dim": width})


def train(
    config: PeftConfig, rate: float, steps: int, width: int | None = None
) -> Iterator[nn.Module]:
    """Train a UNet, and yield it after the first and the last step."""
    torch.manual_seed(0)
    unet = unet_of(width)
    noise_schedule = DDPMScheduler.from_pretrained(POCKET, subfolder="scheduler")
    unet.requires_grad_(False)
    latents = torch.randn(4, unet.config.in_channels, 8, 8)
    text = torch.randn(1, 77, unet.config.cross_attention_dim).expand(4, -1, -1)
    unet.add_adapter(config)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    for step in range(1, steps + 1):
        noise = torch.randn(latents.shape)
        times = torch.randint(0, 1000, (len(latents),))
        noisy = noise_schedule.add_noise(latents, noise, times)
        loss = (unet(noisy, times, text).sample - noise).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in (1, steps):
            yield unet


def moved(unet: nn.Module, unit: float) -> tuple[float, float]:
    """(root mean square over layers of ||delta W|| / (unit sqrt(out in)), median relative norm)."""
    squares, relative = [], []
    for layer in (m for m in unet.modules() if isinstance(m, BaseTunerLayer)):
        weight, norm = layer.get_base_layer().weight, layer.get_delta_weight("default").norm()
        squares.append((norm / unit).square().item() / weight.numel())
        relative.append((norm / weight.norm()).item())
    return math.sqrt(sum(squares) / len(squares)), median(relative)


def main() -> None:
    """Print one line per adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=6e-4, help="Learning rate.")
    parser.add_argument("--steps", type=int, default=100, help="Optimizer steps.")
    parser.add_argument("--only", nargs="*", default=[""], help="Parts of the adapters' names.")
    parser.add_argument("--widths", nargs="*", type=int, help="Untrained UNets of these widths.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.widths:
        print(f"(4, 64), rate {args.rate:g}, {args.steps} steps: median ||dW||/||W||")
        print(f"{'width':>8}{'step 1':>12}{'last':>12}{'last / sqrt(width)':>22}")
        for width in args.widths:
            config = krona(4, 64, "paper")
            found = [moved(u, 1)[1] for u in train(config, args.rate, args.steps, width)]
            share = found[-1] / math.sqrt(width)
            print(f"{width:8}{found[0]:12.5f}{found[-1]:12.5f}{share:22.6f}", flush=True)
        return
    print(f"unit: rate / 64 * sqrt(out * in); rate {args.rate:g}; {args.steps} steps")
    print(f"{'adapter':46}{'step 1':>9}{'last':>9}{'median ||dW||/||W||':>22}")
    for name, config in arms():
        if not any(part in name for part in args.only):
            continue
        found = [moved(unet, args.rate / 64) for unet in train(config, args.rate, args.steps)]
        print(f"{name:46}{found[0][0]:9.2f}{found[-1][0]:9.1f}{found[-1][1]:22.4f}", flush=True)


if __name__ == "__main__":
    main()
