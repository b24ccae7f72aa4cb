#!/usr/bin/env bash
# GPU tests and benchmarks in one command, in under ten minutes, on a machine with CUDA and torch:
#   bash benchmarks/gpu.sh
# Leaves benchmarks/results/gpu_<GPU's name>.json: machine, versions, every part's result and time.
# What torch's Python lacks (diffusers, PEFT …) is installed into .venv-gpu, beside the torch that is
# there, from the registry, or without a network from a folder of wheels:
#   python -m pip download -r benchmarks/gpu-requirements.txt -d wheels --no-deps --only-binary :all: \
#     --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64  # with a network
#   WHEELS=wheels bash benchmarks/gpu.sh                                                     # without
# Where neither works, the tests that need torch alone are run. DIFFUSERS_EXAMPLE=path of diffusers'
# train_dreambooth_lora.py adds the comparison with it; DEVICE=cpu QUICK=1 tries the script itself.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEVICE="${DEVICE:-cuda}"
QUICK="${QUICK:-}"                    # anything: smallest settings
PYTHON="${PYTHON:-$(command -v python3 || command -v python)}"
WHEELS="${WHEELS:-}"
BUDGET="${BUDGET:-570}"               # seconds for everything
RESULTS="${RESULTS:-benchmarks/results}"
DIFFUSERS_EXAMPLE="${DIFFUSERS_EXAMPLE:-}"
quick=(${QUICK:+--quick})
parts="$(mktemp -d)"
trap 'rm -rf "$parts"' EXIT
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE

say() { printf '[%3ss] %s\n' "$SECONDS" "$*" >&2; }

# One part, within its own limit, what the parts before it left of theirs, and what is left of the
# whole; its failure does not stop the rest.
part() {
  local name=$1 limit left=$((BUDGET - SECONDS)) begun=$SECONDS status
  planned=$((planned + $2)) limit=$((planned - SECONDS))
  shift 2
  if [ "$left" -lt 15 ]; then say "$name: no time left"; echo "$name skipped 0" >> "$parts/status"; return; fi
  [ "$left" -lt "$limit" ] && limit=$left
  say "$name (at most ${limit} s)"
  timeout --kill-after=5 "$limit" "$@" > "$parts/$name.log" 2>&1
  status=$?
  say "$name: exit $status"
  [ "$status" = 0 ] || tail -n 15 "$parts/$name.log" >&2
  echo "$name $status $((SECONDS - begun))" >> "$parts/status"
  # After each part: a machine that is taken away keeps what was measured.
  "$PYTHON" benchmarks/gather.py "$parts" "$RESULTS" "$DEVICE" > "$parts/where" || true
}

needed='import accelerate, diffusers, peft, pydantic, pytest, rich, safetensors, transformers'
"$PYTHON" -c 'import torch' || { say "$PYTHON has no torch"; exit 2; }
if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import torch; torch.zeros(1, device="cuda")'; then
  say "torch sees no GPU"; exit 2
fi
if ! "$PYTHON" -c "$needed" 2> /dev/null; then
  say "installing what is missing into .venv-gpu"
  [ -x .venv-gpu/bin/python ] || "$PYTHON" -m venv .venv-gpu || "$PYTHON" -m venv --without-pip .venv-gpu
  # Beside what this Python sees, itself in an environment or not: its torch must stay the one.
  "$PYTHON" -c 'import site, sys, sysconfig; print("\n".join({*site.getsitepackages(), sysconfig.get_path("purelib")}))' \
    > "$(.venv-gpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
  source=(${WHEELS:+--no-index --find-links "$WHEELS"})
  # Without dependencies, so that nothing brings another torch: the list is complete. One by one:
  # what is there, of whatever version, stays, and one that cannot be found stops no other.
  has='import sys; from importlib.metadata import version; version(sys.argv[1])'
  grep -v '^#' benchmarks/gpu-requirements.txt | while read -r pin; do
    .venv-gpu/bin/python -c "$has" "${pin%%==*}" 2> /dev/null && continue
    timeout 60 .venv-gpu/bin/python -m pip install --quiet --no-deps --disable-pip-version-check \
      "${source[@]}" "$pin" < /dev/null 2>&1 | tail -n 1 >&2
  done
  .venv-gpu/bin/python -c "$needed" 2> /dev/null && PYTHON="$PWD/.venv-gpu/bin/python"
fi

planned=$SECONDS
KRONA_TEST_DEVICE=$DEVICE part maths 30 "$PYTHON" tests/gpu/test_maths.py
if "$PYTHON" -c "$needed" 2> /dev/null; then
  if [ "$DEVICE" = cuda ]; then
    step=(--arch sdxl --dtype bf16 --no_peak) memory=(--only "sdxl, 1024 px") vae=(--pixels 1024)
    gib=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)')
    # SDXL's step at 1024 px is estimated at 11 GiB with KronA; peers keep more.
    [ "$gib" -ge 22 ] || step+=(--checkpointing)
    [ "$gib" -ge 11 ] || step+=(--latents 64)
  else
    step=(--arch sd15) memory=(--only "pocket, batch 4") vae=(--pixels 64)
  fi
  [ -z "$QUICK" ] || memory=(--only "pocket, batch 4, checkpointing")
  # What a user would ask, then whether it is right, then the rest. The limits add up to 560 s: a
  # part that hangs takes nothing from those after it, and what one leaves they may use.
  program=(); [ "$DEVICE" = cuda ] && [ -z "$QUICK" ] || program=(--quick)
  [ "${gib:-80}" -ge 22 ] || program+=(--checkpointing)
  part sdxl_program 200 "$PYTHON" benchmarks/sdxl_program.py "${program[@]}" --output "$parts/sdxl_program.json"
  part tests 90 "$PYTHON" -m pytest -q -rs tests/gpu/test_cuda.py
  part adapter_layer 30 "$PYTHON" benchmarks/adapter_layer.py --device "$DEVICE" "${quick[@]}" \
    --output "$parts/adapter_layer.json"
  part adapter_step 90 "$PYTHON" benchmarks/adapter_step.py --device "$DEVICE" "${step[@]}" \
    "${quick[@]}" --limit 70 --output "$parts/adapter_step.json"
  part merge 30 "$PYTHON" benchmarks/merge.py --device "$DEVICE" "${quick[@]}" --output "$parts/merge.json"
  part vae_layout 20 "$PYTHON" benchmarks/vae_layout.py --device "$DEVICE" "${vae[@]}" --output "$parts/vae_layout.json"
  part memory 35 "$PYTHON" benchmarks/memory.py "${memory[@]}" --output "$parts/memory.json"
  precision=bf16; [ "$DEVICE" = cpu ] && precision=no
  part train_run 35 "$PYTHON" benchmarks/train_run.py --device "$DEVICE" "${quick[@]}" \
    --base pocket --batch 4 --precision "$precision" \
    ${DIFFUSERS_EXAMPLE:+--diffusers_example "$DIFFUSERS_EXAMPLE"} --output "$parts/train_run.json"
else
  say "no diffusers, PEFT … here, and none can be installed: only the maths was tested (see WHEELS above)"
fi
cat "$parts/where"
