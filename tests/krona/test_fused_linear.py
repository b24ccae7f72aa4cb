"""The layer and its adapter computed as one: equal to the plain form, and no hungrier than LoRA."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from counted import Kernels, saved_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusekrona.krona.config import KronAConfig
from diffusekrona.krona.functional import kron_linear
from diffusekrona.krona.fused_linear import fused_kron_linear
from diffusekrona.krona.layer import KronALinear


def tensors(a1, a2, b1, b2, tokens, dtype=torch.float64, seed=0):
    """x, weight, bias, A, B."""
    chance = torch.Generator().manual_seed(seed)
    shapes = ((*tokens, a2 * b2), (a1 * b1, a2 * b2), (a1 * b1,), (a1, a2), (b1, b2))
    return [torch.randn(*s, generator=chance, dtype=dtype) for s in shapes]


def both_ways(a1, a2, b1, b2, tokens, scale=1.0, x_grad=True, with_bias=True):
    """(output, gradients) of the fused form and of the plain one."""
    x, weight, bias, a, b = tensors(a1, a2, b1, b2, tokens)
    bias = bias if with_bias else None
    found = []
    for fused in (True, False):
        leaves = [x.clone().requires_grad_(x_grad), *(t.clone().requires_grad_() for t in (a, b))]
        if fused:
            y = fused_kron_linear(leaves[0], weight, bias, *leaves[1:], scale)
        else:
            y = F.linear(leaves[0], weight, bias) + scale * kron_linear(*leaves)
        y.sin().sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    return found


@given(
    shape=st.tuples(*(st.integers(1, 12) for _ in range(4))),
    tokens=st.sampled_from([(), (1,), (3,), (2, 5), (2, 1, 3)]),
    scale=st.sampled_from([1.0, 0.0, -0.3, 2.0]),
    x_grad=st.booleans(),
    with_bias=st.booleans(),
)
@settings(max_examples=150)
def test_equals_the_plain_form(shape, tokens, scale, x_grad, with_bias) -> None:
    fused, plain = both_ways(*shape, tokens, scale, x_grad, with_bias)
    assert len(fused) == (4 if x_grad else 3)
    for have, want in zip(fused, plain, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)


# Narrow and wide, thin and fat: every way that a product from the left or a sum is made.
PAIRS = [(4, 64), (64, 4), (64, 64), (16, 16), (2, 32), (64, 2), (8, 8), (4, 4)]


@pytest.mark.parametrize("pair, size", itertools.product(PAIRS, (64, 320, 1280)))
def test_equals_the_plain_form_at_real_sizes(pair, size) -> None:
    a1, a2 = pair
    fused, plain = both_ways(a1, a2, size // a1, size // a2, (1, 3))
    for have, want in zip(fused, plain, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)


# Half precision has ways of its own.
@pytest.mark.parametrize("pair, size", itertools.product(PAIRS, (64, 320, 640, 1280)))
def test_half_precision_is_near_the_plain_form(pair, size) -> None:
    a1, a2 = pair
    x, weight, bias, a, b = tensors(a1, a2, size // a1, size // a2, (1, 3))
    a, b = a / a2**0.5, b / (size // a2) ** 0.5
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (x, a, b)]
        frozen = weight.to(dtype), bias.to(dtype)
        if dtype is torch.bfloat16:
            y = fused_kron_linear(leaves[0], *frozen, *leaves[1:], 0.5)
        else:
            y = F.linear(leaves[0], *frozen) + 0.5 * kron_linear(*leaves)
        y.sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for have, want in zip(*found, strict=True):
        assert (have.double() - want).abs().max() / want.abs().max() < 0.03


@pytest.mark.parametrize("pair, size", itertools.product(PAIRS, (320, 640, 1280)))
def test_no_tokens_at_all(pair, size) -> None:
    a1, a2 = pair
    x, weight, bias, a, b = tensors(a1, a2, size // a1, size // a2, (0, 5), torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, a, b)]
    y = fused_kron_linear(x, weight, bias, a, b)
    y.sum().backward()
    assert y.shape == (0, 5, size) and x.grad.shape == x.shape
    assert all(not leaf.grad.any() for leaf in leaves[1:])


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 2, 3, 30), (20, 20, 2, 2)])
def test_gradcheck(shape) -> None:
    x, weight, bias, a, b = tensors(*shape, (2,))
    x, a, b = (t.requires_grad_() for t in (x, a, b))
    assert torch.autograd.gradcheck(
        lambda x, a, b: fused_kron_linear(x, weight, bias, a, b, 0.5), (x, a, b)
    )


def test_input_that_is_not_contiguous() -> None:
    x, weight, bias, a, b = tensors(2, 4, 3, 5, (6, 7))
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    for given_x in (turned, x[:, ::2], x[:1].expand(6, 7, 20)):
        want = F.linear(given_x, weight, bias) + kron_linear(given_x, a, b)
        torch.testing.assert_close(fused_kron_linear(given_x, weight, bias, a, b), want)


@pytest.mark.parametrize("pair", [(2, 4), (4, 2)])
def test_gradient_that_is_not_contiguous(pair) -> None:
    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.view(2, 5, 4, 4).transpose(1, 2).square()  # whose gradient comes back transposed

    x, weight, bias, a, b = tensors(*pair, 16 // pair[0], 8 // pair[1], (2, 5))
    leaves = [t.requires_grad_() for t in (x, a, b)]
    plain = F.linear(x, weight, bias) + kron_linear(x, a, b)
    want = torch.autograd.grad(heads(plain).sum(), leaves, retain_graph=True)
    y = fused_kron_linear(x, weight, bias, a, b)
    transposed = torch.autograd.grad(plain, leaves, torch.ones(2, 16, 5).double().mT)
    assert not torch.ones(2, 16, 5).mT.is_contiguous()
    found = torch.autograd.grad(heads(y).sum(), leaves, retain_graph=True)
    for have, wanted in zip(found, want, strict=True):
        torch.testing.assert_close(have, wanted)
    found = torch.autograd.grad(y, leaves, torch.ones(2, 16, 5).double().mT)
    for have, wanted in zip(found, transposed, strict=True):
        torch.testing.assert_close(have, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_fp32_factors(dtype) -> None:
    x, weight, bias, *factors = tensors(4, 8, 8, 4, (2, 9), torch.float32)
    x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
    a, b = (f.requires_grad_() for f in factors)
    y = fused_kron_linear(x.requires_grad_(), weight, bias, a, b, 0.5)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype and a.grad.dtype == b.grad.dtype == torch.float32
    want = F.linear(x.double(), weight.double(), bias.double())
    want += 0.5 * kron_linear(x.double(), a.double(), b.double())
    torch.testing.assert_close(y.double(), want, rtol=2e-2, atol=0.2)


def layer(**options) -> KronALinear:
    torch.manual_seed(0)
    base = nn.Linear(32, 24).requires_grad_(False)
    config = KronAConfig(target_modules=["x"], a1=4, a2=8, init_weights="both", **options)
    return KronALinear(base, "default", config, 4, 8)


def is_fused(y: torch.Tensor) -> bool:
    return "FusedKron" in type(y.grad_fn).__name__


def test_the_layer_takes_the_plain_form_where_it_must() -> None:
    x = torch.randn(5, 32)
    assert is_fused(layer()(x))
    hooked, calls = layer(), []
    hooked.base_layer.register_forward_hook(lambda *_: calls.append(1))
    trained = layer()
    trained.base_layer.requires_grad_(True)
    moved = layer()  # as accelerate's offloading does it
    moved.base_layer.forward = moved.base_layer.forward
    special = layer()
    special.base_layer.__class__ = type("Quantised", (nn.Linear,), {})
    want = layer()(x)
    for plain in (hooked, trained, moved, special, layer(terms=1, output_order="interleaved")):
        y = plain(x)
        assert not is_fused(y)
        if plain.output_order["default"] == "kron":
            torch.testing.assert_close(y, want)
    assert calls == [1]
    terms = layer(terms=2)
    assert not is_fused(terms(x))
    with pytest.raises(RuntimeError, match="dtype"):
        layer()(x.bfloat16())  # as a plain layer refuses it


def test_under_autocast() -> None:
    half = layer()
    half.base_layer.bfloat16()
    x = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y, mixed = half(x), layer()(x)
    assert is_fused(y) and y.dtype == mixed.dtype == torch.bfloat16
    torch.testing.assert_close(y, mixed, rtol=2e-2, atol=2e-2)


def adapted(config, dtype=torch.float32, size=128) -> nn.Module:
    """One frozen layer with an adapter whose factors are fp32."""
    model = inject_adapter_in_model(config, nn.Sequential(nn.Linear(size, size, dtype=dtype)))
    for factor in factors_of(model):
        factor.data = factor.data.float()
    return model


def factors_of(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("pair", PAIRS)
def test_keeps_no_more_for_backward_than_lora(pair) -> None:
    x = torch.randn(50, 128, requires_grad=True)
    krona = adapted(KronAConfig(target_modules=["0"], a1=pair[0], a2=pair[1]))
    lora = adapted(LoraConfig(r=4, target_modules=["0"]))
    kept = saved_bytes(lambda: krona(x), krona)
    assert kept == x.untyped_storage().nbytes() <= saved_bytes(lambda: lora(x), lora)


@pytest.mark.parametrize("pair", PAIRS)
def test_half_precision_keeps_its_factors_as_they_were_cast(pair) -> None:
    krona = adapted(KronAConfig(target_modules=["0"], a1=pair[0], a2=pair[1]), torch.bfloat16)
    x = torch.randn(50, 128, dtype=torch.bfloat16, requires_grad=True)
    cast = 2 * sum(factor.numel() for factor in factors_of(krona))
    assert saved_bytes(lambda: krona(x), krona) == x.untyped_storage().nbytes() + cast


# On a GPU time goes by launches and bytes. Only (64, 64) has rows too short for its own good, on a
# CPU, and only below 1280 features.
@pytest.mark.parametrize(
    "pair, size",
    [case for case in itertools.product(PAIRS, (640, 1280)) if case != ((64, 64), 640)],
)
def test_half_precision_launches_and_moves_less_than_lora(pair, size) -> None:
    x = torch.randn(1, 256, size, dtype=torch.bfloat16, requires_grad=True)

    def counted(config) -> Kernels:
        model = adapted(config, torch.bfloat16, size)
        with Kernels() as kernels, torch.autocast("cpu", torch.bfloat16):
            model(x).backward(x.detach())
        return kernels

    krona = counted(KronAConfig(target_modules=["0"], a1=pair[0], a2=pair[1]))
    lora = counted(LoraConfig(r=4, target_modules=["0"]))
    assert krona.count <= lora.count and krona.bytes < lora.bytes


class Copies(TorchDispatchMode):
    """Counts copies of tensors of one shape, turned on its side or not."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shapes, self.count = (shape, shape[::-1]), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        copies = ("aten.copy_.default", "aten._to_copy.default", "aten.clone.default")
        if str(function) in copies and tuple(args[0].shape) in self.shapes:
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pair", [(4, 64, 80, 5), (5, 4, 12, 20)])
def test_the_gradient_of_b_is_copied_once(pair) -> None:
    """Into the precision of the factor and its layout; autograd would make a second copy of one
    that is transposed."""
    a1, a2, b1, b2 = pair
    a, b = torch.randn(a1, a2, requires_grad=True), torch.randn(b1, b2, requires_grad=True)
    x = torch.randn(2, 7, a2 * b2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(a1 * b1, a2 * b2, dtype=torch.bfloat16)
    y = fused_kron_linear(x, weight, None, a, b)
    with Copies((b1, b2)) as copies:
        y.sum().backward()
    assert copies.count == 1 and b.grad.is_contiguous()
