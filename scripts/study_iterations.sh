#!/usr/bin/env bash
# Training iterations: each run is scored at several checkpoints.
# One page with scores, charts and pictures; run again, it continues where it stopped. From anywhere:
#   SUBJECTS=dog SEEDS="0 1" bash scripts/study_iterations.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

MODEL_NAME="${MODEL_NAME:-pocket}"     # base: hub name, folder, pocket or pocket-sdxl
SUBJECTS="${SUBJECTS:-dog cat teapot backpack duck car}" # folders in data/; or FOLDER:CLASS
CHECKPOINTS="${CHECKPOINTS:-}"         # steps at which to score, such as "100 200 400"; empty: by the base
SEEDS="${SEEDS:-0 1 2}"                # training seeds, one run each
IMAGE_SEEDS="${IMAGE_SEEDS:-0 1}"      # pictures per prompt
ENGINE="${ENGINE:-local}"              # local: this machine, one run per GPU; ray: a Ray cluster
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/studies/iterations}"

study iterations ${CHECKPOINTS:+--checkpoints $CHECKPOINTS} "$@"
