#!/usr/bin/env bash
# KronA, LoRA and LoKr with about as many parameters, and LoRA of rank 4, each over rates around its own
# best.
# One page with scores, charts and pictures; run again, it continues where it stopped. From anywhere:
#   SUBJECTS=dog SEEDS="0 1" bash scripts/study_comparison.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

MODEL_NAME="${MODEL_NAME:-pocket}"     # base: hub name, folder, pocket or pocket-sdxl
SUBJECTS="${SUBJECTS:-dog cat teapot backpack duck car}" # folders in data/; or FOLDER:CLASS
RATES="${RATES:-}"                     # learning rates of all methods, such as 1e-4,1e-3; empty: each its own
STEPS="${STEPS:-}"                     # training steps; empty: by the base
SEEDS="${SEEDS:-0 1 2}"                # training seeds, one run each
IMAGE_SEEDS="${IMAGE_SEEDS:-0 1}"      # pictures per prompt
ENGINE="${ENGINE:-local}"              # local: this machine, one run per GPU; ray: a Ray cluster
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/studies/comparison}"

study comparison ${RATES:+--axis "learning rate=$RATES"} "$@"
