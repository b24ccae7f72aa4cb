#!/usr/bin/env bash
# Size of the Kronecker factors: (a1, a2).
# One page with scores, charts and pictures; run again, it continues where it stopped. From anywhere:
#   SUBJECTS=dog SEEDS="0 1" bash scripts/study_factors.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

MODEL_NAME="${MODEL_NAME:-pocket}"     # base: hub name, folder, pocket or pocket-sdxl
SUBJECTS="${SUBJECTS:-dog cat teapot backpack duck car}" # folders in data/; or FOLDER:CLASS
FACTORS="${FACTORS:-}"                 # pairs such as 2x64,4x64,8x64; empty: the study's own
STEPS="${STEPS:-}"                     # training steps; empty: by the base
LEARNING_RATE="${LEARNING_RATE:-}"     # empty: by the base
SEEDS="${SEEDS:-0 1 2}"                # training seeds, one run each
IMAGE_SEEDS="${IMAGE_SEEDS:-0 1}"      # pictures per prompt
ENGINE="${ENGINE:-local}"              # local: this machine, one run per GPU; ray: a Ray cluster
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/studies/factors}"

study factors ${FACTORS:+--axis "factors=$FACTORS"} "$@"
