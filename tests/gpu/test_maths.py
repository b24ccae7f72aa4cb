"""The Kronecker maths on a GPU against torch.kron. Needs torch and nothing else.

Under pytest, or as a program where there is no pytest: `python tests/gpu/test_maths.py`.
`KRONA_TEST_DEVICE=cpu` runs the same on a CPU, to test the tests.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import types
from pathlib import Path

import torch

DEVICE = os.environ.get("KRONA_TEST_DEVICE", "cuda")
PACKAGE = Path(__file__).resolve().parents[2] / "diffusekrona"
# Under names of their own, so that the packages' __init__, which imports PEFT, is not run.
for name, folder in (("bare", PACKAGE), ("bare.krona", PACKAGE / "krona")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
functional = importlib.import_module("bare.krona.functional")
fused_linear = importlib.import_module("bare.krona.fused_linear")

PAIRS = ((2, 64), (4, 64), (8, 64), (64, 8), (64, 4), (16, 16), (64, 64), (1, 1))
# Largest error allowed, relative to the largest number of the result.
ACCURACY = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
CASES = list(itertools.product(PAIRS, ACCURACY))

try:
    import pytest
except ImportError:
    cases = lambda function: function  # noqa: E731
else:
    pytestmark = pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"
    )
    cases = pytest.mark.parametrize(("pair", "dtype"), CASES)


def factors(pair: tuple[int, int], out: int = 1280, into: int = 640) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    a1, a2 = pair
    a = torch.randn(a1, a2, generator=generator).to(DEVICE) / a2**0.5
    b = torch.randn(out // a1, into // a2, generator=generator).to(DEVICE)
    return a, b / b.shape[1] ** 0.5


def error(have: torch.Tensor, want: torch.Tensor) -> float:
    return float((have.double() - want).abs().max() / want.abs().max())


@cases
def test_the_product_without_forming_it(pair, dtype) -> None:
    a, b = (f.to(dtype) for f in factors(pair))
    x = torch.randn(77, 640, device=DEVICE, dtype=dtype)
    want = x.double() @ torch.kron(a.contiguous(), b.contiguous()).double().T
    for order in ("a_first", "b_first", None):
        assert error(functional.kron_linear(x, a, b, order), want) < ACCURACY[dtype]


@cases
def test_layer_and_adapter_in_one_step_and_its_gradients(pair, dtype) -> None:
    chance = torch.Generator().manual_seed(1)
    x, weight, dy = (
        torch.randn(*s, generator=chance) for s in ((77, 640), (1280, 640), (77, 1280))
    )
    found = []
    for kind in (dtype, torch.float64):
        leaves = [t.to(DEVICE, dtype).to(kind, copy=True) for t in (x, *factors(pair))]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        frozen = (weight / 640**0.5).to(DEVICE, dtype).to(kind)
        if kind is torch.float64:
            y = leaves[0] @ (frozen + 0.7 * torch.kron(*leaves[1:])).T
        else:
            y = fused_linear.fused_kron_linear(leaves[0], frozen, None, *leaves[1:], 0.7)
        y.backward(dy.to(DEVICE, dtype).to(kind))
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for have, want in zip(*found, strict=True):
        assert error(have, want) < ACCURACY[dtype]


@cases
def test_a_merge_is_the_sum_rounded_once(pair, dtype) -> None:
    a, b = factors(pair)
    weight = torch.randn(1280, 640, device=DEVICE).to(dtype)
    want = (weight.double() + 0.7 * torch.kron(a, b).double()).to(dtype)
    merged = functional.add_kron_(weight.clone(), a, b, 0.7)
    # fp32 sums differ from fp64 ones in the last place: now and then half precision rounds up.
    assert (merged != want).float().mean() < (0.9 if dtype is torch.float32 else 0.01)
    torch.testing.assert_close(merged, want)


if __name__ == "__main__":
    for pair, dtype in CASES:
        test_the_product_without_forming_it(pair, dtype)
        test_layer_and_adapter_in_one_step_and_its_gradients(pair, dtype)
        test_a_merge_is_the_sum_rounded_once(pair, dtype)
    print(f"{3 * len(CASES)} passed on {DEVICE}", file=sys.stderr)
