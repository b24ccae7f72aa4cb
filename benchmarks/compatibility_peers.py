"""Other programs' own code, run from checkouts of their repositories, for `compatibility.py`.

Each function loads our file, or makes one for us to read, with a program's own loader or layer.
Modules that such a program imports and that play no part here (its logging, its web server) are
replaced by empty ones; what is run is named in the table.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import peers
import torch
from safetensors.torch import load_file
from torch import nn

ABSENT = (
    "torchvision", "torchaudio", "torchsde", "av", "kornia", "spandrel", "sentencepiece", "alembic",
    "sqlalchemy", "aiohttp", "yarl", "optimum", "torchao", "scipy", "bitsandbytes", "toml", "mgds",
    "invokeai.backend.util.logging", "invokeai.backend.model_manager", "modules.util.config",
    "modules.util.quantization_util", "modules.module.quantized", "modules.module.FusedModule",
    "modules.util.ModuleFilter", "modules.util.enum", "modules.module.oft_utils",
    "toolkit.network_mixins", "backend.memory_management", "backend.operations", "backend.utils",
    "modules.sd_models", "modules.cache", "modules.errors", "modules.hashes", "modules.shared",
)  # fmt: skip
_THEIRS = ("comfy", "invokeai", "modules", "toolkit", "backend", "packages_3rdparty", "lycoris",
           "krona", "networks", "library", "einops", "toml")  # fmt: skip


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, absent: tuple[str, ...]) -> None:
        self.absent = absent

    def find_spec(self, name, path, target=None):
        if any(name == a or name.startswith(a + ".") for a in self.absent):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module) -> None:
        pass


@contextmanager
def checkout(
    folder: Path, arguments: tuple[str, ...] = (), absent: tuple[str, ...] = ABSENT
) -> Iterator[None]:
    """Imports come from a program's folder; its modules are forgotten again afterwards."""
    if not folder.is_dir():
        raise FileNotFoundError(folder.name)
    before, argv, finder = set(sys.modules), sys.argv, _Empty(absent)
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, finder)
    sys.argv = ["program", *arguments]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        sys.argv = argv
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in _THEIRS or isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]


# --- our file, their loader ---------------------------------------------------------------------


def comfyui(folder: Path, single: Path, adapter: Path | None, unet: nn.Module, given: dict):
    """ComfyUI's own UNet, from a single-file model, patched by its own LoRA loader; its output."""
    with checkout(folder, ("--cpu",)):
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.lora
        import comfy.lora_convert
        import comfy.model_base
        import comfy.model_detection
        import comfy.ops
        import comfy.supported_models_base

        prefix = "model.diffusion_model."
        tensors = load_file(single)
        config = comfy.model_detection.detect_unet_config(tensors, prefix)
        config["dtype"] = torch.float32
        model_config = comfy.supported_models_base.BASE(config)
        # What the genuine models have in common and tiny ones do not: heads, groups of the norms.
        heads = {"num_heads": unet.config.attention_head_dim, "num_head_channels": -1}
        model_config.unet_config |= heads
        model_config.custom_operations = _groups(comfy.ops.disable_weight_init)
        model = comfy.model_base.BaseModel(model_config, device="cpu")
        missing = model.diffusion_model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        assert not missing.missing_keys and not missing.unexpected_keys
        if adapter is not None:
            keys = comfy.lora.model_lora_keys_unet(model, {})
            lora = comfy.lora_convert.convert_lora(load_file(adapter))
            patches = comfy.lora.load_lora(lora, keys)
            seen = {k for p in patches.values() for k in p.loaded_keys}
            unseen = [k for k in lora if k not in seen and not k.endswith("alpha")]
            if unseen:
                raise ValueError(f"{len(unseen)} of {len(lora)} keys not loaded, as {unseen[0]}")
            state = model.state_dict()
            for key, patch in patches.items():
                weight = patch.calculate_weight(
                    state[key].clone(), key, 1.0, 1.0, None, lambda a: a
                )
                state[key].copy_(weight)
        y = None
        if "added_cond_kwargs" in given:
            times = given["added_cond_kwargs"]["time_ids"]
            embedded = unet.add_time_proj(times.flatten()).reshape(len(times), -1)
            y = torch.cat([given["added_cond_kwargs"]["text_embeds"], embedded], dim=-1)
        with torch.no_grad():
            return model.diffusion_model(
                given["sample"], given["timestep"], context=given["encoder_hidden_states"], y=y
            )


def _groups(ops):
    class Operations(ops):
        class GroupNorm(ops.GroupNorm):
            def __init__(self, num_groups, num_channels, *args, **kwargs):
                super().__init__(8, num_channels, *args, **kwargs)

    return Operations


def forge(folder: Path, adapter: Path, stems: dict) -> None:
    """Forge's loader and its merging, onto the layers that the stems name."""
    with checkout(folder):
        import backend
        import packages_3rdparty

        # Its first collection is an empty page so far; the second is the one that it uses.
        empty = ModuleType("packages_3rdparty.webui_lora_collection")
        empty.lora = packages_3rdparty.webui_lora_collection = SimpleNamespace()
        sys.modules[empty.__name__], sys.modules[empty.__name__ + ".lora"] = empty, empty.lora
        packages_3rdparty.webui_lora_collection = empty
        backend.memory_management = MagicMock()
        backend.memory_management.cast_to_device = lambda t, device, dtype: t.to(device, dtype)
        sys.modules["backend.memory_management"] = backend.memory_management
        from backend.patcher.lora import load_lora, merge_lora_to_weight

        patches, remaining = load_lora(load_file(adapter), {s: s for s in stems})
        assert not remaining, list(remaining)[:3]
        for stem, patch in patches.items():
            weight = stems[stem].weight.data
            weight.copy_(
                merge_lora_to_weight([(1.0, patch, 1.0, None, None)], weight.clone(), stem)
            )


def invokeai(folder: Path, adapter: Path, stems: dict, sdxl: bool) -> None:
    """InvokeAI's conversion of SDXL names and its LoKr and LoRA layers."""
    with checkout(folder):
        from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import (
            lora_model_from_sd_state_dict,
        )
        from invokeai.backend.patches.lora_conversions.sdxl_lora_conversion_utils import (
            convert_sdxl_keys_to_diffusers_format,
        )

        tensors = load_file(adapter)
        if sdxl:
            tensors = convert_sdxl_keys_to_diffusers_format(tensors)
        model = lora_model_from_sd_state_dict(tensors)
        assert set(model.layers) <= set(stems), sorted(set(model.layers) - set(stems))[:3]
        for stem, layer in model.layers.items():
            weight = stems[stem].weight.data
            weight += layer.get_parameters({"weight": weight}, 1.0)["weight"]


def lycoris(folder: Path, adapter: Path, unet: nn.Module) -> None:
    """LyCORIS' own loader, applied to a UNet."""
    with checkout(folder, absent=()):
        from lycoris.wrapper import create_lycoris_from_weights

        with torch.no_grad():
            network, _ = create_lycoris_from_weights(1.0, str(adapter), unet)
            assert len(network.loras) == len([k for k in load_file(adapter) if k.endswith("_w1")])
            network.merge_to(1.0)


def kohya(folder: Path, adapter: Path, unet: nn.Module) -> None:
    """kohya's networks/lora.py, merged into a UNet."""
    absent = (*ABSENT, "library.utils", "library.sdxl_original_unet", "cv2")
    with checkout(folder, absent=absent):
        import library.sdxl_original_unet

        library.sdxl_original_unet.SdxlUNet2DConditionModel = type("Other", (), {})
        from networks.lora import create_network_from_weights

        network, tensors = create_network_from_weights(
            1.0, str(adapter), None, [], unet, for_inference=True
        )
        assert len(network.unet_loras) == len([k for k in tensors if k.endswith("lora_up.weight")])
        network.merge_to([], unet, tensors, torch.float32, "cpu")


# --- their file, for us to read ----------------------------------------------------------------


def lycoris_file(folder: Path, unet: nn.Module, **options) -> dict[str, torch.Tensor]:
    """A LoKr of LyCORIS' own making on a UNet, which is left with it merged."""
    with checkout(folder, absent=()):
        from lycoris.modules.lokr import LokrModule

        return _layers(
            unet, lambda stem, layer: LokrModule(stem, layer, lora_dim=2, alpha=3, **options)
        )


def lycoris_network(
    folder: Path, unet: nn.Module, convolutions: bool = True, **options
) -> dict[str, torch.Tensor]:
    """A network of LyCORIS' on attention and resnets of a UNet, which is left running it."""
    with checkout(folder, absent=()):
        from lycoris.config import PRESET
        from lycoris.wrapper import create_lycoris

        kinds = ["Transformer2DModel"] + ["ResnetBlock2D"] * convolutions
        PRESET["trial"] = {"target_module": kinds, "enable_conv": convolutions}
        network = create_lycoris(
            unet, 1.0, linear_dim=2, linear_alpha=3, conv_dim=2, conv_alpha=3, preset="trial",
            **options,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        network.apply_to()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("dora_scale"):
                    parameter *= 1.1
                else:
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.05
        tensors = {k: v.detach().clone() for k, v in network.state_dict().items()}
        # Live: its own merging applies alpha / rank twice to LoKr and LoHa (4.1.3).
        unet.network = network
        return tensors


def ai_toolkit_file(folder: Path, unet: nn.Module) -> dict[str, torch.Tensor]:
    """A LoKr of ai-toolkit's own layer."""
    with checkout(folder):
        mixin = type("ToolkitModuleMixin", (), {"__init__": lambda self, network=None: None})
        mixin._set_runtime_scale = lambda self, scale: setattr(self, "_runtime_scale", scale)
        mixin.scale = 1.0
        sys.modules["toolkit.network_mixins"] = SimpleNamespace(ToolkitModuleMixin=mixin)
        from toolkit.models.lokr import LokrModule

        def make(stem: str, layer: nn.Module):
            module = LokrModule(stem, layer, lora_dim=2, alpha=3, factor=8, decompose_both=True)
            object.__setattr__(module, "wants", layer.weight)  # it asks for the weight itself
            return module

        return _layers(unet, make)


def onetrainer_file(folder: Path, unet: nn.Module) -> dict[str, torch.Tensor]:
    """A LoKr of OneTrainer's own layer; its scale is applied in its forward."""
    with checkout(folder):
        sys.modules["modules.util.quantization_util"] = SimpleNamespace(
            get_weight_shape=lambda m: m.weight.shape, get_unquantized_weight=None
        )
        from modules.module.LoRAModule import LoKrModule

        def make(stem: str, layer: nn.Module):
            module = LoKrModule(
                stem, layer, 2, 3.0, True, 8, False, False, False, False, torch.device("cpu")
            )
            plain = module.get_weight
            module.get_weight = lambda shape=None: plain() * (module.alpha / module.dim)
            return module

        return _layers(unet, make)


def _layers(unet: nn.Module, make) -> dict[str, torch.Tensor]:
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for stem, layer in peers.ui_stems(unet, False).items():
        if "_attn" not in stem:
            continue
        module = make(stem, layer)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.numel() > 1 and parameter.shape != layer.weight.shape:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            layer.weight += module.get_weight(getattr(module, "wants", layer.weight.shape))
        for key, value in module.state_dict().items():
            if key.startswith(("lokr_", "alpha")):
                tensors[f"{stem}.{key}"] = value.detach().clone()
    return tensors


def published_file(folder: Path, unet: nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint of the published code's own layer; the UNet is left running it."""
    with checkout(folder / "diffusekrona"):
        from krona import KronALinearLayer

        class Beside(nn.Module):
            def __init__(self, base: nn.Module, layer: nn.Module) -> None:
                super().__init__()
                self.base, self.layer = base, layer

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.base(x) + self.layer(x)

        tensors, generator = {}, torch.Generator().manual_seed(0)
        for name, base in peers.projections(unet).items():
            layer = KronALinearLayer(base.in_features, base.out_features, rank=(8, 16))
            block, _, which = name.removesuffix(".0").rpartition(".")
            for part in ("down", "up"):
                weight = getattr(layer, part).weight
                weight.data = torch.randn(weight.shape, generator=generator) * 0.1
                key = f"unet.{block}.processor.{which}_lora.{part}.weight"
                tensors[key] = weight.detach().clone()
            unet.set_submodule(name, Beside(base, layer))
        return tensors
