#!/usr/bin/env bash
# Fine-tune Z-Image on 3 to 6 pictures of a subject with a Kronecker adapter. From any directory:
#   SUBJECT=dog bash scripts/finetune_z_image.sh
#   SUBJECT=cat LR=1e-3 STEPS=500 bash scripts/finetune_z_image.sh --random_flip
# Edit the values below, or set them in the environment of this script; further flags are passed on
# (--help lists them, --dry_run shows the plan). The same command again continues where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

SUBJECT="${SUBJECT:-dog}"            # folder in data/; its pictures are in data/$SUBJECT/input
CLASS="${CLASS:-$SUBJECT}"           # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"                # identifier: a word that means nothing to the base
MODEL_NAME="${MODEL_NAME:-Tongyi-MAI/Z-Image}"  # hub name or folder
VARIANT="${VARIANT:-}"               # of the base's files
ADAPTER_TYPE="${ADAPTER_TYPE:-krona}"  # krona; lora, the baseline; lokr; or oft
defaults_for "$MODEL_NAME"

ATTN="${ATTN:-kqvo}"                 # attention projections to adapt; all four is best
A1="${A1:-64}"                       # rows of A. On layers this wide 64 x 64 has a quarter of the
A2="${A2:-64}"                       # parameters of LoRA r=4; 4 x 64 has about twice as many
FACTORS="${FACTORS:-}"               # other factors for single projections: k=8x64,o=2x64
RANK="${RANK:-4}"                    # of LoRA and LoKr
LR="${LR:-}"                         # empty: the method's own, as --help says; not tuned on this base
MAX_NORM="${MAX_NORM:-}"             # largest ||delta W|| / ||W|| of a layer; empty: no limit
SCHEDULE="${SCHEDULE:-constant}"     # of the learning rate: constant, cosine, linear, ...
STEPS="${STEPS:-1000}"               # 500 for an easy subject, 1000 for a complex one or prompt
BATCH_SIZE="${BATCH_SIZE:-1}"        # pictures per batch on each GPU
ACCUMULATION="${ACCUMULATION:-4}"    # batches per step
RESOLUTION="${RESOLUTION:-}"         # pixels; empty: the base's own, 1024
PRECISION="${PRECISION:-bf16}"       # bf16 or no
CHECKPOINTING="${CHECKPOINTING:-yes}"  # gradient checkpointing: less memory, a third more time
LOW_VRAM="${LOW_VRAM:-no}"           # yes: fit a small GPU, see docs/transformers.md
SEED="${SEED:-0}"
VALIDATION="${VALIDATION:-a $TOKEN $CLASS in the snow}"  # a prompt to draw during training
CHOOSE="${CHOOSE:-no}"               # yes: choose a checkpoint and a weight afterwards; or
                                     # flags of it: "--every 100 --budget 10min"
NUM_PROCESSES="${NUM_PROCESSES:-}"   # GPUs; empty: what `accelerate config` saved, or else 1
OUTPUT_DIR="${OUTPUT_DIR:-}"         # empty: outputs/$SUBJECT/<name made of the values above>

finetune "$@"
