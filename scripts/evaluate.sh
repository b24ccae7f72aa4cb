#!/usr/bin/env bash
''':'  # Both Bash and Python: `accelerate launch` reads it as Python, where all this is a string.
# Score a fine-tuned subject: CLIP-I, CLIP-T, DINO and diversity, and a page with the pictures.
#   SUBJECT=dog bash scripts/evaluate.sh             accelerate launch scripts/evaluate.sh
#   ADAPTERS="none KronA=outputs/dog/run1 LoRA=outputs/dog/run2" bash scripts/evaluate.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

SUBJECT="${SUBJECT:-dog}"          # folder in data/ and outputs/
CLASS="${CLASS:-$SUBJECT}"         # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"              # identifier that it was trained with
MODEL_NAME="${MODEL_NAME:-}"       # base: hub name, folder or pocket; empty: the adapters' own
VARIANT="${VARIANT:-}"             # of the base's files: fp16 halves the download where it exists
ADAPTERS="${ADAPTERS:-}"           # [NAME=]PATH ...; none: the base alone; empty: none and the newest
PROMPTS="${PROMPTS:-auto}"         # object, live, pocket, pocket-colours, or a file with one template per line
SEEDS="${SEEDS:-0 1 2 3}"          # one picture per prompt and seed
STEPS="${STEPS:-}"                 # denoising steps; empty: the base's own, 50 or, distilled, fewer
GUIDANCE="${GUIDANCE:-}"           # empty: the base's own, 7, or 4 of FLUX.2-klein and Z-Image
PRECISION="${PRECISION:-}"         # no, fp16 or bf16; empty: the base's on a GPU, no on a CPU
LOW_VRAM="${LOW_VRAM:-no}"         # yes: fit a small GPU
CLIP="${CLIP:-auto}"               # auto: ViT-B/32, on a bundled base the bundled one
CLIP_BACKEND="${CLIP_BACKEND:-transformers}"  # or openai, if its package is installed
DINO="${DINO:-auto}"               # auto: DINO ViT-S/16; facebook/dinov2-small; none
NUM_PROCESSES="${NUM_PROCESSES:-}" # GPUs; empty: what `accelerate config` saved, or else 1
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/$SUBJECT/evaluation}"

evaluate "$@"
'''
import os, sys
os.environ |= {"PYTHON": sys.executable, "LAUNCHED_BY_ACCELERATE": "yes"}
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
