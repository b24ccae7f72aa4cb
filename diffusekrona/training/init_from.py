"""Starting a run from an adapter that is there, in any format that `formats` reads.

The run's own adapter, with its factors or rank, takes the file's deltas over exactly, or the run is
refused: nothing is approximated here (`diffusekrona.convert` does that, and says by how much).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..adapters.file import adapter_file
from ..adapters.layout import default_weight
from ..adapters.methods import method_of
from ..bases.names import with_text_model
from ..common.errors import UserError
from ..common.tensor_files import read_metadata
from ..formats.delta_set import Hints, mix
from ..formats.recognise import READERS, recognise


def start_from(
    source: Path | str, models: Mapping[str, nn.Module], family: str, adapter_name: str
) -> int:
    """Give the adapters of `models` the deltas of an adapter file; returns how many layers.

    They count at the weight that the file names, which it is drawn with. Layers that the file does
    not have start without a delta.

    Args:
        models: component name to model, with the run's adapter on it.
        family: of the base.

    Raises:
        UserError: the file cannot be read, or this run's adapter cannot hold it exactly.
    """
    kind, path = recognise(source)
    if kind not in READERS:
        raise UserError(f"--init_from {source}: a whole model is not an adapter; convert it first.")
    weight = default_weight(read_metadata(adapter_file(path)))
    found = mix([(weight, READERS[kind](path, Hints(family)))])
    if found.family not in (None, family):
        raise UserError(f"--init_from {source}: it is for {found.family}, the base is {family}.")
    left = dict(found.layers)
    for component, model in models.items():
        own = get_peft_model_state_dict(model, adapter_name=adapter_name)
        config: Any = cast(Any, model).peft_config[adapter_name]
        method = method_of(config)
        if method.fill is None:
            raise UserError(f"--init_from: a {method.title} cannot start from another adapter.")
        for layer, tensors in method.by_layer(own).items():
            names = (f"{component}.{layer}", f"{component}.{with_text_model(layer)}")
            delta = next((left.pop(name) for name in names if name in left), None)
            try:
                filled = method.fill(tensors, delta, config)
            except UserError as error:
                raise UserError(f"--init_from {source}: {layer}: {error}") from error
            own |= {f"{layer}.{end}": tensor for end, tensor in filled.items()}
        set_peft_model_state_dict(model, own, adapter_name=adapter_name)
    if left:
        raise UserError(
            f"--init_from {source}: it adapts {len(left)} layers that this run does not, the first "
            f"{min(left)}: adapt them too (--attn_update_unet, --train_text_encoder …)."
        )
    return len(found.layers)
