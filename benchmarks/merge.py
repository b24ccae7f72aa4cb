"""Merging an SDXL-size adapter, taking it back, and swapping adapters on a live model.

    python benchmarks/merge.py --threads 2 --dtype bf16

The UNet has SDXL's architecture and random weights, whole; the adapters have 560 layers. Measured:

    load           read the file, put its factors on the model
    merge          for good and in place, no copy of a weight (what inference does)
    fuse           keep the old weights too, so that `unfuse` is exact (diffusers' fuse_lora)
    unfuse         give the old weights back
    swap           two adapters on the model: make the other one the active one
    replace        delete one adapter, load another from its file

Before anything is timed the results are checked: a merge equals W + scale * torch.kron(A, B) summed
in fp32 and rounded once, and unfused weights are the old ones bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from random_models import random_unet  # noqa: E402
from record import show, write_record  # noqa: E402

from diffusekrona import KronAConfig, load_adapter, merge_and_unload, save_adapter  # noqa: E402
from diffusekrona.bases.published import SD15_UNET, SDXL_UNET  # noqa: E402
from diffusekrona.krona import KronALinear  # noqa: E402

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=DTYPES, default="bf16", help="of the base")
    add("--a1", type=int, default=4)
    add("--a2", type=int, default=64)
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=2)
    add("--quick", action="store_true", help="SD 1.5's UNet and two repeats")
    add("--output", type=Path, help="JSON file of the results")
    return parser.parse_args()


def make_adapters(unet: Any, folder: Path, a1: int, a2: int) -> list[Path]:
    """Two adapter files with random factors, as if trained."""
    files = []
    for name in ("first", "second"):
        unet.add_adapter(KronAConfig(a1=a1, a2=a2), name)
        for key, parameter in unet.named_parameters():
            if f".{name}" in key and "krona_" in key:
                parameter.data.uniform_(-0.02, 0.02)
        files.append(save_adapter(unet, folder / f"{name}.safetensors", name))
        unet.delete_adapters(name)
    return files


def plain_weights(unet: Any) -> dict[str, torch.Tensor]:
    """The base weights of every adapted layer, copied."""
    return {n: m.get_base_layer().weight.clone() for n, m in krona_layers(unet).items()}


def krona_layers(unet: Any) -> dict[str, KronALinear]:
    return {n: m for n, m in unet.named_modules() if isinstance(m, KronALinear)}


def check(unet: Any) -> None:
    """See that fusing adds the product and unfusing gives the weights back; raises if not."""
    before = plain_weights(unet)
    unet.fuse_lora()
    for name, layer in list(krona_layers(unet).items())[:: len(before) // 8]:
        a, b = layer.krona_a["first"].data, layer.krona_b["first"].data
        wanted = (before[name].float() + torch.kron(a.contiguous(), b.contiguous())).to(unet.dtype)
        torch.testing.assert_close(layer.get_base_layer().weight.data, wanted)
    unet.unfuse_lora()
    for name, layer in krona_layers(unet).items():
        if not torch.equal(layer.get_base_layer().weight, before[name]):
            raise AssertionError(f"{name} is not as it was before it was fused")


def timed(action: Callable[[], Any], device: str) -> float:
    """Seconds that `action` takes, work queued on a GPU included."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def one_round(unet: Any, files: list[Path], device: str) -> dict[str, float]:
    """Every operation once, from a plain model back to a plain model."""
    seconds = {"load": timed(lambda: load_adapter(unet, files[0], "first"), device)}
    seconds["fuse"] = timed(unet.fuse_lora, device)
    seconds["unfuse"] = timed(unet.unfuse_lora, device)

    def replace() -> None:
        unet.delete_adapters("first")
        load_adapter(unet, files[1], "first")

    seconds["replace"] = timed(replace, device)
    load_adapter(unet, files[0], "second")
    seconds["swap"] = timed(lambda: unet.set_adapters(["first"], [1.0]), device)
    unet.delete_adapters("second")
    seconds["merge"] = timed(lambda: merge_and_unload(unet), device)
    seconds["load + merge"] = seconds["load"] + seconds["merge"]
    return seconds


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    config, title = (SD15_UNET, "SD 1.5") if args.quick else (SDXL_UNET, "SDXL")
    unet = random_unet(config, DTYPES[args.dtype], args.device)
    with tempfile.TemporaryDirectory() as folder:
        files = make_adapters(unet, Path(folder), args.a1, args.a2)
        load_adapter(unet, files[0], "first")
        layers = len(krona_layers(unet))
        check(unet)
        merge_and_unload(unet)
        rounds = [
            one_round(unet, files, args.device) for _ in range(2 if args.quick else args.repeats)
        ]
    rows = [
        {
            "operation": name,
            "seconds (median)": round(statistics.median(r[name] for r in rounds), 3),
            "least": round(min(r[name] for r in rounds), 3),
            "most": round(max(r[name] for r in rounds), 3),
        }
        for name in rounds[0]
    ]
    title = f"{title} UNet, {args.dtype}, {layers} layers, ({args.a1}, {args.a2}), {args.device}"
    if args.device == "cpu":
        title += f", {torch.get_num_threads()} threads"
    show(title, rows)
    if args.output:
        settings = {k: str(v) for k, v in vars(args).items() if k != "output"}
        write_record(args.output, "merge", {"title": title, "rows": rows}, settings)


if __name__ == "__main__":
    main()
