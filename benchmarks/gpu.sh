#!/usr/bin/env bash
# GPU tests and benchmarks in one command, in under ten minutes, on a machine with CUDA and torch:
#   bash benchmarks/gpu.sh
# Leaves benchmarks/results/gpu_<GPU's name>.json (machine, versions, every part's result and time),
# written anew after every part, and all that the parts printed in gpu.log beside it.
# What torch's Python lacks (diffusers, PEFT …) is installed into .gpu-packages, and what it has and
# suits stays: from the registry, or without a network from a folder of wheels:
#   python benchmarks/missing_packages.py                                       # there: what is lacking
#   python -m pip download NAME==VERSION … -d wheels --no-deps --only-binary :all: \
#     --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64  # with a network
#   WHEELS=wheels bash benchmarks/gpu.sh                                                     # without
# (-r benchmarks/gpu-requirements.txt in place of names: all, for a machine that has torch alone.)
# Where neither works, the tests that need torch alone are run. DIFFUSERS_EXAMPLE=path of diffusers'
# train_dreambooth_lora.py adds the comparison with it; DEVICE=cpu QUICK=1 tries the script itself.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEVICE="${DEVICE:-cuda}"
QUICK="${QUICK:-}"                    # anything: smallest settings
PYTHON="${PYTHON:-$(command -v python3 || command -v python)}"
WHEELS="${WHEELS:-}"
BUDGET="${BUDGET:-570}"               # seconds for everything; every limit is a share of it
RESULTS="${RESULTS:-benchmarks/results}"
DIFFUSERS_EXAMPLE="${DIFFUSERS_EXAMPLE:-}"
quick=(${QUICK:+--quick})
parts="$(mktemp -d)"
trap 'rm -rf "$parts"' EXIT
# What is installed below is found before what Python has, and Python's torch stays.
packages="$PWD/.gpu-packages"
export PYTHONPATH="$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE

say() { printf '[%3ss] %s\n' "$SECONDS" "$*" >&2; }

# Of the budget, for what may take $1 s of ten minutes. With less than six, the first parts keep the
# time that they need, and the last ones go without.
share() { echo $(($1 * (BUDGET > 340 ? BUDGET : 340) / 570)); }

# One part, within its own limit, what the parts before it left of theirs, and what is left of the
# whole; its failure does not stop the rest.
part() {
  local name=$1 limit left=$((BUDGET - SECONDS)) begun=$SECONDS status
  planned=$((planned + $(share "$2"))) limit=$((planned - SECONDS))
  shift 2
  [ "$limit" -ge 25 ] || limit=25   # any needs some seconds for its imports
  if [ "$left" -lt 15 ]; then say "$name: no time left"; echo "$name skipped 0" >> "$parts/status"; return; fi
  [ "$left" -lt "$limit" ] && limit=$left
  say "$name (at most ${limit} s)"
  timeout --kill-after=5 "$limit" "$@" > "$parts/$name.log" 2>&1
  status=$?
  say "$name: exit $status"
  [ "$status" = 0 ] || tail -n 15 "$parts/$name.log" >&2
  echo "$name $status $((SECONDS - begun))" >> "$parts/status"
  { echo "=== $name: exit $status after $((SECONDS - begun)) s"; cat "$parts/$name.log"; } >> "$RESULTS/gpu.log"
  # After each part: a machine that is taken away keeps what was measured.
  "$PYTHON" benchmarks/gather.py "$parts" "$RESULTS" "$DEVICE" > "$parts/where" || true
}

# What is lacking, without dependencies, so that nothing brings another torch: all at once, and if
# one cannot be found one by one.
install_missing() {
  local pins before=none pip
  pip=("$PYTHON" -m pip install --quiet --no-deps --no-compile --upgrade --disable-pip-version-check
    --retries 1 --timeout 10 --target "$packages")
  pip+=(${WHEELS:+--no-index --find-links "$WHEELS"})
  # What is new may need more in turn.
  while pins=$("$PYTHON" benchmarks/missing_packages.py) && [ -n "$pins" ] && [ "$pins" != "$before" ]; do
    say "installing into .gpu-packages: ${pins//$'\n'/ }"
    before=$pins
    # shellcheck disable=SC2086
    timeout 120 "${pip[@]}" $pins < /dev/null 2> /dev/null || for pin in $pins; do
      timeout 60 "${pip[@]}" "$pin" < /dev/null 2>&1 | tail -n 1 >&2
    done
  done
}

mkdir -p "$RESULTS" && : > "$RESULTS/gpu.log" || exit 2
"$PYTHON" -c 'import torch' || { say "$PYTHON has no torch"; exit 2; }
if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import torch; torch.zeros(1, device="cuda")'; then
  say "torch sees no GPU"; exit 2
fi
install_missing
needed='import accelerate, diffusers, peft, pydantic, rich, safetensors, transformers, tyro'

planned=$SECONDS
maths=("$PYTHON" tests/gpu/test_maths.py)
export KRONA_TEST_DEVICE=$DEVICE
if "$PYTHON" -c "$needed"; then
  if [ "$DEVICE" = cuda ]; then
    step=(--arch sdxl --dtype bf16 --no_peak) memory=(--only "sdxl, 1024 px") vae=(--pixels 1024)
    gib=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)')
    # SDXL's step at 1024 px is estimated at 11 GiB with KronA; peers keep more.
    [ "$gib" -ge 22 ] || step+=(--checkpointing)
    [ "$gib" -ge 11 ] || step+=(--latents 64)
  else
    step=(--arch sd15) memory=(--only "pocket, batch 4") vae=(--pixels 64)
  fi
  # With half the time, the few adapters that matter most.
  [ "$BUDGET" -ge 500 ] || step+=(--few)
  [ -z "$QUICK" ] || memory=(--only "pocket, batch 4, checkpointing")
  # What a user would ask, then whether it is right, then the rest. The limits are of 570 s and add
  # up to 560: a part that hangs takes nothing from those after it, and what one leaves they may use.
  program=(); [ "$DEVICE" = cuda ] && [ -z "$QUICK" ] || program=(--quick)
  [ "${gib:-80}" -ge 22 ] || program+=(--checkpointing)
  part sdxl_program 210 "$PYTHON" benchmarks/sdxl_program.py "${program[@]}" --output "$parts/sdxl_program.json"
  part vae_layout 45 "$PYTHON" benchmarks/vae_layout.py --device "$DEVICE" "${vae[@]}" --output "$parts/vae_layout.json"
  part maths 15 "${maths[@]}"
  part tests 55 "$PYTHON" -m pytest -q -rs --tb=short tests/gpu/test_cuda.py
  part adapter_step 75 "$PYTHON" benchmarks/adapter_step.py --device "$DEVICE" "${step[@]}" \
    "${quick[@]}" --limit "$(share 55)" --output "$parts/adapter_step.json"
  part adapter_layer 35 "$PYTHON" benchmarks/adapter_layer.py --device "$DEVICE" "${quick[@]}" \
    --output "$parts/adapter_layer.json"
  part merge 45 "$PYTHON" benchmarks/merge.py --device "$DEVICE" "${quick[@]}" --output "$parts/merge.json"
  part memory 40 "$PYTHON" benchmarks/memory.py "${memory[@]}" --output "$parts/memory.json"
  precision=bf16; [ "$DEVICE" = cpu ] && precision=no
  part train_run 40 "$PYTHON" benchmarks/train_run.py --device "$DEVICE" "${quick[@]}" \
    --base pocket --batch 4 --repeats 1 --precision "$precision" \
    ${DIFFUSERS_EXAMPLE:+--diffusers_example "$DIFFUSERS_EXAMPLE"} --output "$parts/train_run.json"
else
  say "no diffusers, PEFT … here, and none can be installed: only the maths is tested (see WHEELS above)"
  part maths 100 "${maths[@]}"
fi
cat "$parts/where"
