"""What a VAE gains from channels-last tensors, as `bases.vae.load_vae` lays them.

    python benchmarks/vae_layout.py                    # pocket's, and one of the published size

Encoding and decoding, plain and channels-last in turns; the median of the paired ratios, with the
95 % bootstrap interval over rounds. Beside it the seconds of plain ones, and on a GPU the peak
memory of a plain decoding, weights included.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from adapter_step import DTYPES, in_turns, interval_in_words, ratio_with_interval
from diffusers import AutoencoderKL
from record import show, write_record

from diffusekrona.bases.bundled import BUNDLED
from diffusekrona.bases.published import VAE
from diffusekrona.bases.vae import channels_last
from diffusekrona.common.cpu_memory import keep_freed_memory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--pixels", type=int, default=256, help="a side, of the published size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    return parser.parse_args()


@torch.no_grad()
def measure(args: argparse.Namespace, name: str, vae: Any, pixels: int) -> list[dict[str, Any]]:
    """One row per precision."""
    rows = []
    for dtype in ("fp32", "bf16"):
        plain = copy.deepcopy(vae).to(args.device, DTYPES[dtype])
        last = channels_last(copy.deepcopy(plain))
        pictures = torch.rand(1, 3, pixels, pixels, device=args.device).to(DTYPES[dtype])
        latents = plain.encode(pictures).latent_dist.mean
        steps = {
            "plain encode": lambda vae=plain, x=pictures: vae.encode(x),
            "last encode": lambda vae=last, x=pictures: vae.encode(x),
            "plain decode": lambda vae=plain, z=latents: vae.decode(z),
            "last decode": lambda vae=last, z=latents: vae.decode(z),
        }
        in_turns(steps, 1, args.device)  # to warm up
        times = in_turns(steps, args.rounds, args.device)
        row = {"VAE": f"{name}, {pixels} px, {dtype}"}
        for kind in ("encode", "decode"):
            ratio = ratio_with_interval(times[f"last {kind}"], times[f"plain {kind}"])
            row[kind] = interval_in_words(ratio)
            row[f"plain {kind}, s"] = f"{statistics.median(times[f'plain {kind}']):.4f}"
        if args.device == "cuda":
            row["plain decode, MiB"] = round(peak_mib(vae, pictures.dtype, latents))
        rows.append(row)
    return rows


def peak_mib(vae: Any, dtype: torch.dtype, latents: torch.Tensor) -> float:
    """The most memory of a decoding, over what was there before, weights included."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    alone = copy.deepcopy(vae).to(latents.device, dtype)
    torch.cuda.reset_peak_memory_stats()
    alone.decode(latents)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory(args.device)  # as training does
    torch.manual_seed(0)
    pocket = AutoencoderKL.from_pretrained(BUNDLED / "pocket" / "vae").eval()
    rows = measure(args, "pocket", pocket, 64)
    rows += measure(args, "published size", AutoencoderKL(**VAE).eval(), args.pixels)
    title = f"channels-last over plain, {args.device}"
    show(title, rows)
    if args.output:
        settings = {key: str(value) for key, value in vars(args).items() if key != "output"}
        write_record(args.output, "vae_layout", {"title": title, "rows": rows}, settings)


if __name__ == "__main__":
    main()
