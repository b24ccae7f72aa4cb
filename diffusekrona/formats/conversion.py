"""One adapter or model in, another format out, read back and compared before it takes its place.

from diffusekrona.formats.conversion import convert
report = convert("pytorch_lora_weights.safetensors", "adapter.safetensors", "krona")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..adapters.deltas import difference
from ..common.errors import UserError
from ..common.files import clean_leftovers, replace_folder, replace_whole
from ..common.paths import as_path
from ..common.tensor_files import entries_of, write_entries
from . import full_finetune, krona_file, lokr, lora, merged, peft_folder
from .delta_set import DeltaSet, Hints, check_sizes, mix
from .destination import (
    MARK,
    check_destination,
    check_nothing_else,
    check_unedited,
    is_folder_target,
    place,
)
from .full_model import FullModel, open_model
from .recognise import READERS, recognise
from .report import Options, Report
from .target_limits import held_by, with_base
from .targets import SOURCES, TARGETS, targets_of
from .to_kronecker import with_factors

_LOKR_WRITERS = {
    "lokr-diffusers": lokr.diffusers_tensors,
    "lokr-lycoris": lokr.lycoris_tensors,
    "lokr-ai-toolkit": lokr.toolkit_tensors,
}
_LORA_WRITERS = {"lora": lora.diffusers_tensors, "lora-ai-toolkit": lora.toolkit_tensors}


def convert(
    source: Path | str,
    destination: Path | str,
    target: str,
    *,
    source_format: str | None = None,
    base: str | Path | None = None,
    family: str | None = None,
    weight: float = 1.0,
    adapters: Sequence[tuple[Path | str, float]] = (),
    options: Options | None = None,
    overwrite: bool = False,
) -> Report:
    """Read `source` (and `adapters`, mixed in at their weights), write `destination`.

    Args:
        destination: a file; a folder (or a name without suffix) gets one under its usual name.
        target: one of `targets.TARGETS`. "merged" writes one file if the destination ends in
            .safetensors, else a diffusers folder.
        source_format: one of `targets.SOURCES`, where it shall not be recognised.
        base: the base model; needed for "merged" and for a full fine-tune.
        family: of base models, a name in `bases.families.FAMILIES`, where the file does not say.
        overwrite: replace a file or folder at `destination` that `convert` did not write.

    Raises:
        UserError: one line for whatever is wrong; nothing is written then.
    """
    options = options or Options()
    _check_request(target, base, options)
    destination = place(as_path(destination), target)
    for path in (destination, source, *(path for path, _ in adapters), base or "."):
        clean_leftovers(as_path(path).absolute().parent)
    model = open_model(base, family) if base is not None else None
    skip = options.skip_unsupported
    family_of_base = model.family if model else None
    layers = model and model.layers_per_block
    hints = Hints(family, layers, family_of_base, skip, as_lora=source_format == "lora")
    sources = [(share, *recognise(p, source_format)) for p, share in [(source, weight), *adapters]]
    check_destination(
        destination,
        [*(file for _, _, file in sources), *(model.places() if model else [])],
        is_folder_target(destination, target),
        overwrite,
    )
    sets = [(w, _read(kind, file, hints, model, target)) for w, kind, file in sources]
    if target == "merged" and len(sets) > 1 and any(s.additions for _, s in sets):
        raise UserError(
            "A whole model and adapters cannot be merged together: merge one after the other."
        )
    whole = held_by(target, mix(sets), options, model)
    check_sizes(whole.layers, whole.title)
    if model is not None:
        merged.edits_of(whole, model)  # the checks alone
    if target == "merged" and model is not None:
        written, found = _write_merged(whole, model, destination, options, overwrite)
    else:
        written, found = _write_adapter(whole, destination, target, options)
    worst = max(found, key=lambda name: found[name][1])
    return Report(
        source=whole.title,
        family=whole.family,
        layers=len({*whole.layers, *(name.rpartition(".")[0] for name in whole.vectors)}),
        parameters=whole.parameters(),
        bytes_read=sum(_size(file) for _, _, file in sources),
        target=target,
        destination=destination,
        bytes_written=_size(destination),
        parameters_written=0 if target == "merged" else written.parameters(),
        largest=max(largest for largest, _ in found.values()),
        relative=found[worst][1],
        worst_layer=worst,
        errors={n: found[n][1] for n in found} if written.errors or options.rank else {},
        notes=written.notes,
    )


def _check_request(target: str, base: object, options: Options) -> None:
    if target not in TARGETS:
        raise UserError(f"--to {target} is not a format: choose one of {', '.join(TARGETS)}.")
    if target == "merged" and base is None:
        raise UserError("--to merged needs the base model to merge into: add --base.")
    kind = TARGETS[target].kind
    if options.rank is not None and kind != "lora":
        raise UserError(f"--rank is for --to {', '.join(targets_of('lora'))}, not {target}.")
    factors = [n for n in ("a1", "a2", "terms") if getattr(options, n) is not None]
    if factors and kind not in ("krona", "lokr"):
        raise UserError(f"--{factors[0]} is for --to {', '.join(targets_of('krona', 'lokr'))}.")
    if kind == "lokr" and (options.terms or 1) > 1:
        raise UserError(
            f"LoKr cannot store {options.terms} terms per layer: "
            "write --to krona, --to lora or --to merged."
        )


def _read(kind: str, path: Path, hints: Hints, base: FullModel | None, target: str) -> DeltaSet:
    if kind not in SOURCES:
        raise UserError(f"--from {kind} is not a format: choose one of {', '.join(SOURCES)}.")
    if kind != "full":
        found = with_base(READERS[kind](path, hints), base)
        check_sizes(found.layers, path)
        return found
    if base is None:
        raise UserError(f"{path} is a whole model: add --base, the model it was fine-tuned from.")
    tuned = open_model(path, hints.family)
    found = full_finetune.read(tuned, base)
    if target != "merged":
        if all(delta.weight().abs().max() == 0 for delta in found.layers.values()):
            raise UserError(f"{path} and {base.root} have equal attention weights.")
        found.notes += full_finetune.what_layers_leave_out(tuned, base)
        return found
    lost = full_finetune.misfits(tuned, base)
    if lost and not hints.skip_unsupported:
        raise UserError(
            f"{path} does not fit into the base {base.root}: {'; '.join(lost)}. "
            "Choose the base that it was fine-tuned from, or add --skip_unsupported."
        )
    found.notes += [f"left out: {line}" for line in lost]
    return found


def _write_adapter(
    whole: DeltaSet, destination: Path, target: str, options: Options
) -> tuple[DeltaSet, dict[str, tuple[float, float]]]:
    """Write, read back, compare, and only then put into place."""
    again = Hints(whole.family, whole.layers_per_block, as_lora=True)
    if TARGETS[target].is_folder:
        written = whole
        if target == "peft":
            written = with_factors(whole, options)
        with replace_folder(destination) as folder:
            if target == "peft":
                peft_folder.write_krona(written, folder, options.dtype)
            else:
                peft_folder.write_lora(whole, folder, options.rank, options.dtype)
            back = peft_folder.read(folder, again)
            compared = _compared(whole, back)
            check_nothing_else(destination, folder)
            return _measured(written, back), compared
    written, tensors, metadata = _tensors(whole, destination.stem, target, options)
    with replace_whole(destination) as temporary:
        write_entries(entries_of(tensors), temporary, metadata | MARK)
        back = READERS[TARGETS[target].kind](temporary, again)
        return _measured(written, back), _compared(whole, back)


def _tensors(
    whole: DeltaSet, title: str, target: str, options: Options
) -> tuple[DeltaSet, dict[str, torch.Tensor], dict[str, str]]:
    if target == "krona":
        written = with_factors(whole, options)
        adapter = krona_file.to_adapter(written, options.dtype)
        return written, adapter.tensors, adapter.metadata
    if target == "lokr":
        return lokr.kohya_tensors(whole, title, options)
    if target in _LOKR_WRITERS:
        return _LOKR_WRITERS[target](whole, options)
    if target == "lora-kohya":
        return whole, *lora.kohya_tensors(whole, title, options.rank, options.dtype)
    return whole, *_LORA_WRITERS[target](whole, options.rank, options.dtype)


def _write_merged(
    whole: DeltaSet, model: FullModel, destination: Path, options: Options, overwrite: bool
) -> tuple[DeltaSet, dict[str, tuple[float, float]]]:
    if not is_folder_target(destination, "merged"):
        with replace_whole(destination) as temporary:
            merged.write_single(whole, model, temporary, destination.stem, options.dtype)
            back = open_model(temporary, model.family)
            return whole, merged.compare(whole, model, back)
    with replace_folder(destination) as folder:
        merged.write_folder(whole, model, folder, options.dtype)
        compared = merged.compare(whole, model, open_model(folder, model.family))
        check_nothing_else(destination, folder)
        check_unedited(destination, folder, overwrite)
        return whole, compared


def _measured(written: DeltaSet, back: DeltaSet) -> DeltaSet:
    back.notes, back.errors = written.notes, written.errors
    return back


def _compared(whole: DeltaSet, back: DeltaSet) -> dict[str, tuple[float, float]]:
    return {n: difference(whole.layers[n], delta) for n, delta in back.layers.items()}


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
