"""A linear layer with Kronecker adapters beside its frozen weight.

x (..., in) ──┬── W (out, in) ─────────────────────────────── + ── y (..., out)
              └── X (a2, b2) ── A X B^T (a1, b1) ── * scale ──┘
"""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .config import PAPER_STD, KronAConfig
from .functional import add_kron_, kron_linear, kron_weight
from .fused_linear import fused_kron_linear

ONE_ADAPTER_SET = (
    "KronA applies its active adapters to the whole batch: instead of adapter_names in a forward "
    "call, use set_adapter and a call per adapter."
)


class KronALinear(nn.Module, BaseTunerLayer):
    """`nn.Linear`, with or without bias, and any number of named Kronecker adapters.

    Factors are fp32 whatever the base's dtype, unless PEFT is asked for
    `autocast_adapter_dtype=False`, and are cast to the input's dtype when used (under autocast, to
    autocast's). A is (a1, a2), or (terms, a1, a2) for more terms than one; B likewise.
    """

    adapter_layer_names = ("krona_a", "krona_b")
    other_param_names = ("scaling", "scale", "output_order")
    base_layer: nn.Linear
    in_features: int
    out_features: int
    krona_base_weight: torch.Tensor | None

    def __init__(
        self, base_layer: nn.Linear, adapter_name: str, config: KronAConfig, a1: int, a2: int
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.krona_a = nn.ParameterDict()
        self.krona_b = nn.ParameterDict()
        self.scale: dict[str, float] = {}  # the config's
        self.scaling: dict[str, float] = {}  # the config's times the weight it is mixed with
        self.output_order: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self.merged_scaling: dict[str, float] = {}  # the weights that they were merged with
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True  # PEFT's switch; here it is factors that are cast
        # The weight as it was before a merge. A buffer, so that it follows .to(); not saved.
        self.register_buffer("krona_base_weight", None, persistent=False)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, a1, a2)

    def update_layer(self, adapter_name: str, config: KronAConfig, a1: int, a2: int) -> None:
        """Add (or replace) an adapter with factors (a1, a2) and (out/a1, in/a2)."""
        b1, b2 = self.out_features // a1, self.in_features // a2
        lead = () if config.terms == 1 else (config.terms,)
        device = self.base_weight.device
        a = torch.zeros(*lead, a1, a2, dtype=torch.float32, device=device)
        b = torch.zeros(*lead, b1, b2, dtype=torch.float32, device=device)
        if config.init_weights == "kaiming_uniform":
            bound = 1.0 / math.sqrt(a2)  # as PEFT's LoRA starts its A: kaiming_uniform_(a=sqrt(5))
            a.uniform_(-bound, bound)
        else:
            # Adam's first step moves B by the learning rate in every entry, and so delta W by
            # scale * rate * std(A) * sqrt(terms * out * in).
            a.normal_(std=PAPER_STD if config.init_weights == "paper" else 1.0 / a2)
        if config.init_weights == "both":
            b.normal_(std=1.0 / b2)
        self.krona_a[adapter_name] = nn.Parameter(a)
        self.krona_b[adapter_name] = nn.Parameter(b)
        self.scale[adapter_name] = self.scaling[adapter_name] = config.scale
        self.output_order[adapter_name] = config.output_order
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def base_weight(self) -> torch.Tensor:
        """The weight (out, in) under all adapters."""
        return cast(nn.Linear, self.get_base_layer()).weight

    def cast_factors(self, adapter_name: str) -> None:
        """Put an adapter's factors into the dtype that the base computes in."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if adapter_name in self.krona_a and dtype is not None and dtype.is_floating_point:
            for factors in (self.krona_a, self.krona_b):
                factors[adapter_name].data = factors[adapter_name].data.to(dtype)

    # Scales, under the names that diffusers and PEFT call.
    def set_scale(self, adapter: str, scale: float) -> None:
        """Mix `adapter` in with weight `scale`."""
        if adapter in self.scaling:
            self.scaling[adapter] = self.scale[adapter] * scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the weight of every active adapter."""
        for name in self._active_here():
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer(scale)`, or, without a number, every weight set."""
        for name in self._active_here():
            self.scaling[name] = self.scale[name] if scale is None else self.scaling[name] / scale

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """scale * kron(A, B), (out, in), fp32."""
        a, b = self.krona_a[adapter].float(), self.krona_b[adapter].float()
        return self.scaling[adapter] * kron_weight(a, b, self.output_order[adapter])

    def merge(
        self,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        keep_base: bool = True,
    ) -> None:
        """Add delta W to the base weight.

        Args:
            safe_merge: refuse a result that is not finite; nothing is merged then.
            adapter_names: which adapters; by default the active ones.
            keep_base: keep the old weight, so that `unmerge` gives it back bit for bit. False
                merges in place and for good, with no copy of the weight.

        Raises:
            ValueError: with `safe_merge`, a result that is not finite; a quantised base, which
                would round the sum away.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.krona_a]
        weight = self.base_weight
        if names and not (is_plain(weight) and weight.itemsize > 1):
            raise ValueError(
                f"A quantised weight ({type(weight).__name__}) cannot take an adapter: merge "
                "into the model as it was before quantisation, or leave the adapter beside it."
            )
        if safe_merge:
            self.check_merge(names)
        for name in names:
            if keep_base and self.krona_base_weight is None:
                self.krona_base_weight = weight.data
                weight.data = weight.data.clone()
            self._add_to(weight.data, name, self.scaling[name])
            self.merged_adapters.append(name)
            self.merged_scaling[name] = self.scaling[name]

    def check_merge(self, adapter_names: list[str] | None = None) -> None:
        """Merge into a copy of the weight.

        Raises:
            ValueError: the result is not finite in the weight's dtype; the first adapter after
                which it is not is named.
        """
        total = self.base_weight.detach().clone()
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.krona_a:
                self._add_to(total, name, self.scaling[name])
                if not torch.isfinite(total).all():
                    raise ValueError(
                        f"Adapter {name!r} makes weights of {total.dtype} that are not finite: "
                        "nothing was merged."
                    )

    def _add_to(self, weight: torch.Tensor, name: str, scaling: float) -> None:
        a, b = self.krona_a[name].data, self.krona_b[name].data
        add_kron_(weight, a, b, scaling, self.output_order[name])

    def unmerge(self) -> None:
        """Give the base weight back exactly as it was before the first merge.

        If another method has merged into the weight, or out of it, in between, its part stays as it
        is, and delta W is subtracted, in the weight's dtype.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        if self.krona_base_weight is None:
            raise RuntimeError("This layer was merged permanently; its base weight was not kept.")
        ours = self.krona_base_weight.clone()
        for name in self.merged_adapters:
            self._add_to(ours, name, self.merged_scaling[name])
        if torch.equal(ours, self.base_weight):
            self.base_weight.data = self.krona_base_weight
        else:
            for name in self.merged_adapters:
                self._add_to(self.base_weight.data, name, -self.merged_scaling[name])
        self.krona_base_weight = None
        self.merged_adapters.clear()
        self.merged_scaling.clear()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(ONE_ADAPTER_SET)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        active = [] if self.merged else self._active_here()
        if len(active) == 1 and not (args or kwargs) and self._is_fusible(active[0]):
            if _autocasts(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            if x.dtype == self.base_layer.weight.dtype:
                a, b = self.krona_a[active[0]], self.krona_b[active[0]]
                weight, bias = self.base_layer.weight, _bias(self.base_layer)
                return fused_kron_linear(x, weight, bias, a, b, self.scaling[active[0]])
        y = self.base_layer(x, *args, **kwargs)
        for name in active:
            # The scale goes into the smaller tensor: a factor, not the activations.
            a, b = self.krona_a[name], self.krona_b[name]
            if self.scaling[name] != 1.0:
                a = a * self.scaling[name]
            if not _autocasts(x.device.type):
                a, b = a.to(x.dtype), b.to(x.dtype)
            y = y + kron_linear(x, a, b, output_order=self.output_order[name])
        return y

    def _is_fusible(self, name: str) -> bool:
        """Whether base and adapter can be computed as one: an untouched frozen nn.Linear (one that
        is quantised, or whose forward is hooked to move weights about, is called as it is), and
        one term in torch.kron's order."""
        base = self.base_layer
        if type(base) is not nn.Linear or "forward" in vars(base):
            return False
        if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
            return False
        if any(p is not None and p.requires_grad for p in (base.weight, _bias(base))):
            return False
        return self.krona_a[name].dim() == 2 and self.output_order[name] == "kron"

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def _active_here(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.krona_a]

    def __repr__(self) -> str:
        return "krona." + super().__repr__()


def _bias(layer: nn.Linear) -> torch.Tensor | None:
    return layer.bias  # which torch declares as never None


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight holds its numbers as they are: not bitsandbytes' or torchao's codes."""
    kinds = (torch.Tensor, nn.Parameter, nn.parameter.Buffer)
    return type(weight) in kinds and weight.is_floating_point()


def _autocasts(device_type: str) -> bool:
    """Whether autocast is on; it never is where torch has none, as on the meta device."""
    available = torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)
