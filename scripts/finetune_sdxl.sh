#!/usr/bin/env bash
# Fine-tune SDXL on 3 to 6 pictures of a subject with a Kronecker adapter. From any directory:
#   SUBJECT=dog bash scripts/finetune_sdxl.sh
#   SUBJECT=cat LR=1e-3 STEPS=500 bash scripts/finetune_sdxl.sh --random_flip
# Edit the values below, or set them in the environment of this script; further flags are passed on
# (--help lists them, --dry_run shows the plan). The same command again continues where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

SUBJECT="${SUBJECT:-dog}"            # folder in data/; its pictures are in data/$SUBJECT/input
CLASS="${CLASS:-$SUBJECT}"           # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"                # identifier: a word that means nothing to the base
MODEL_NAME="${MODEL_NAME:-stabilityai/stable-diffusion-xl-base-1.0}"  # hub name, folder, pocket-sdxl
VARIANT="${VARIANT:-}"               # of the base's files: fp16 halves the download where it exists
ADAPTER_TYPE="${ADAPTER_TYPE:-krona}"  # krona; lora, the baseline; lokr; or oft
defaults_for "$MODEL_NAME"  # pocket's own values, where they differ

ATTN="${ATTN:-kqvo}"                 # attention projections to adapt; all four is best
A1="${A1:-4}"                        # rows of A. 2, 4, 8 are good; more: fewer parameters
A2="${A2:-64}"                       # columns of A; 64 is good. Both at most 8: prompts are ignored
FACTORS="${FACTORS:-}"               # other factors for single projections: k=8x64,o=2x64
RANK="${RANK:-4}"                    # of LoRA and LoKr
LR="${LR:-}"                         # empty: the method's own, as --help says. 5e-4 to 6e-4 is best
                                     # for KronA; above 1e-3 it overfits and ignores the prompt,
                                     # below 1e-4 it underfits
MAX_NORM="${MAX_NORM:-}"             # largest ||delta W|| / ||W|| of a layer; empty: no limit
SCHEDULE="${SCHEDULE:-constant}"     # of the learning rate: constant, cosine, linear, ...
STEPS="${STEPS:-1000}"               # 500 for an easy subject, 1000 for a complex one or prompt
BATCH_SIZE="${BATCH_SIZE:-1}"        # pictures per batch on each GPU
ACCUMULATION="${ACCUMULATION:-4}"    # batches per step
RESOLUTION="${RESOLUTION:-}"         # pixels; empty: the base's own, 1024
PRECISION="${PRECISION:-fp16}"       # no, fp16 or bf16; a CPU takes no or bf16
CHECKPOINTING="${CHECKPOINTING:-yes}"  # gradient checkpointing: half the memory, a third more time
LOW_VRAM="${LOW_VRAM:-no}"           # yes: fit a small GPU, see docs/recipes.md
SEED="${SEED:-0}"
VALIDATION="${VALIDATION:-a $TOKEN $CLASS in the snow}"  # a prompt to draw during training
CHOOSE="${CHOOSE:-no}"               # yes: choose a checkpoint and a weight afterwards; or
                                     # flags of it: "--every 100 --budget 10min"
NUM_PROCESSES="${NUM_PROCESSES:-}"   # GPUs; empty: what `accelerate config` saved, or else 1
OUTPUT_DIR="${OUTPUT_DIR:-}"         # empty: outputs/$SUBJECT/<name made of the values above>

finetune "$@"
