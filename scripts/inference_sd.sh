#!/usr/bin/env bash
''':'  # Both Bash and Python: `accelerate launch` reads it as Python, where all this is a string.
# Draw a fine-tuned subject with Stable Diffusion, at 512 px. From any directory:
#   SUBJECT=dog SEEDS="0 1" bash scripts/inference_sd.sh --negative_prompt "blurry"
#   accelerate launch scripts/inference_sd.sh        (--multi_gpu: the GPUs share the pictures)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common/launch.sh"

SUBJECT="${SUBJECT:-dog}"          # folder in data/ and outputs/
CLASS="${CLASS:-$SUBJECT}"         # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"              # identifier that it was trained with
MODEL_NAME="${MODEL_NAME:-}"       # base: hub name, folder or pocket; empty: the adapter's own
VARIANT="${VARIANT:-}"             # of the base's files: fp16 halves the download where it exists
ADAPTER="${ADAPTER:-}"             # file or run folder; empty: of the newest run in outputs/$SUBJECT,
                                   # best.safetensors where choose wrote it
WEIGHT="${WEIGHT:-}"               # 0: the base alone; 0.7: follows prompts more; 1: as trained;
                                   # empty: the one that choose chose, or else 1
P="a $TOKEN $CLASS"
PROMPTS="${PROMPTS:-$P in the forest|$P on the beach|$P in the snow}"  # separated by |
SEEDS="${SEEDS:-0 1 2 3}"          # one picture per prompt and seed
STEPS="${STEPS:-}"                 # denoising steps; empty: the base's own, 50; 25 is often enough
GUIDANCE="${GUIDANCE:-}"           # empty: 7; 5: more varied, softer; 10: closer to the prompt, harsher
BATCH_SIZE="${BATCH_SIZE:-4}"      # pictures at once; more need more memory and change nothing else
PRECISION="${PRECISION:-}"         # no, fp16 or bf16; empty: fp16 on a GPU, no on a CPU
LOW_VRAM="${LOW_VRAM:-no}"         # yes: fit a small GPU
NUM_PROCESSES="${NUM_PROCESSES:-}" # GPUs; empty: what `accelerate config` saved, or else 1
OUTPUT_DIR="${OUTPUT_DIR:-}"       # empty: the folder `images` beside the adapter

inference stable-diffusion-v1-5 scripts/finetune_sd.sh "$@"
'''
import os, sys
os.environ |= {"PYTHON": sys.executable, "LAUNCHED_BY_ACCELERATE": "yes"}
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
