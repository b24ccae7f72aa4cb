#!/usr/bin/env bash
# KronA and LoRA at their usual sizes over learning rates; shares its runs with study_stability.sh.
# One page with scores, charts and pictures; run again, it goes on where it stopped. From anywhere:
#   SUBJECTS=dog SEEDS="0 1" bash scripts/study_comparison.sh
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

MODEL_NAME="${MODEL_NAME:-pocket}"     # base: hub name, folder, pocket or pocket-sdxl
SUBJECTS="${SUBJECTS:-dog cat teapot}" # folders in data/; the class word after a colon: dog6:dog
RATES="${RATES:-}"                     # learning rates of both, such as 1e-4,5e-4,1e-3; empty: by the base
STEPS="${STEPS:-}"                     # training steps; empty: by the base
SEEDS="${SEEDS:-0 1 2}"                # training seeds, a run for each
IMAGE_SEEDS="${IMAGE_SEEDS:-0 1}"      # pictures of every prompt
ENGINE="${ENGINE:-local}"              # local: this machine, one run per GPU; ray: a Ray cluster
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/studies/comparison}"
CELLS_DIR="${CELLS_DIR:-$ROOT/outputs/studies/cells}" # runs, shared by all studies

FOLDERS=()
for subject in $SUBJECTS; do FOLDERS+=(--subject "$ROOT/data/$subject"); done
# The Python of an active environment, or else of the quick start's .venv.
[ -n "${VIRTUAL_ENV:-}" ] || PATH="$ROOT/.venv/bin:$PATH"
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m diffusekrona.study comparison \
  --base "$MODEL_NAME" \
  "${FOLDERS[@]}" \
  ${RATES:+--axis "learning rate=$RATES"} \
  ${STEPS:+--set max_train_steps="$STEPS"} \
  --seeds $SEEDS \
  --image_seeds $IMAGE_SEEDS \
  --engine "$ENGINE" \
  --output_dir "$OUTPUT_DIR" \
  --cells_dir "$CELLS_DIR" \
  "$@"
