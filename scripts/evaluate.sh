#!/usr/bin/env bash
''':'  # Both Bash and Python: `accelerate launch` reads it as Python, where all this is a string.
# Scores of a fine-tuned subject: CLIP-I, CLIP-T, DINO and diversity, and a page with the pictures.
#   SUBJECT=dog bash scripts/evaluate.sh             accelerate launch scripts/evaluate.sh
#   ADAPTERS="none KronA=outputs/dog/run1 LoRA=outputs/dog/run2" bash scripts/evaluate.sh
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

SUBJECT="${SUBJECT:-dog}"          # folder in data/ and outputs/
CLASS="${CLASS:-$SUBJECT}"         # what the subject is, in a word that the base knows
MODEL_NAME="${MODEL_NAME:-}"       # base: hub name, folder or pocket; empty: the adapters' own
ADAPTERS="${ADAPTERS:-}"           # [NAME=]PATH each, none: the bare base; empty: none and the newest
PROMPTS="${PROMPTS:-auto}"         # object, live, pocket, or a file with a template a line
SEEDS="${SEEDS:-0 1 2 3}"          # of every prompt
STEPS="${STEPS:-50}"               # denoising steps
GUIDANCE="${GUIDANCE:-7.0}"
CLIP="${CLIP:-auto}"               # auto: ViT-B/32, on a bundled base the bundled one
CLIP_BACKEND="${CLIP_BACKEND:-transformers}"  # or openai, if its package is installed
DINO="${DINO:-auto}"               # auto: DINO ViT-S/16; facebook/dinov2-small; none
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/$SUBJECT/evaluation}"

ARGUMENTS=()
if [ -z "$ADAPTERS" ]; then
  NEWEST="$(ls -t "$ROOT/outputs/$SUBJECT"/*/adapter.safetensors 2>/dev/null | head -n 1 || true)"
  if [ -z "$NEWEST" ]; then
    echo "error: no adapter in $ROOT/outputs/$SUBJECT: run a finetune script, or set ADAPTERS" >&2
    exit 2
  fi
  ARGUMENTS=(--adapter none --adapter "$NEWEST")
fi
for adapter in $ADAPTERS; do ARGUMENTS+=(--adapter "$adapter"); done
# The Python of an active environment, or else of the quick start's .venv.
[ -n "${VIRTUAL_ENV:-}" ] || PATH="$ROOT/.venv/bin:$PATH"
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m diffusekrona.evaluate \
  ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} \
  "${ARGUMENTS[@]}" \
  --subject_dir "$ROOT/data/$SUBJECT/input" \
  --class_word "$CLASS" \
  --prompts "$PROMPTS" \
  --seeds $SEEDS \
  --num_inference_steps "$STEPS" \
  --guidance_scale "$GUIDANCE" \
  --clip "$CLIP" \
  --clip_backend "$CLIP_BACKEND" \
  --dino "$DINO" \
  --output_dir "$OUTPUT_DIR" \
  "$@"
'''
import os, sys
os.environ["PYTHON"] = sys.executable
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
