#!/usr/bin/env bash
''':'  # Both Bash and Python: `accelerate launch` reads it as Python, where all this is a string.
# Pictures of a fine-tuned subject with SDXL, at 1024 px. From any directory:
#   SUBJECT=dog SEEDS="0 1" bash scripts/inference_sdxl.sh --negative_prompt "blurry"
#   accelerate launch scripts/inference_sdxl.sh        (--multi_gpu: the GPUs share the pictures)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

SUBJECT="${SUBJECT:-dog}"          # folder in data/ and outputs/
CLASS="${CLASS:-$SUBJECT}"         # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"              # identifier that it was trained with
MODEL_NAME="${MODEL_NAME:-}"       # base: hub name, folder or pocket-sdxl; empty: the adapter's own
ADAPTER="${ADAPTER:-}"             # file or run folder; empty: the newest in outputs/$SUBJECT
WEIGHT="${WEIGHT:-1.0}"            # 0: the base alone; 0.7: freer prompts; 1: as trained
P="a $TOKEN $CLASS"
PROMPTS="${PROMPTS:-$P in the forest|$P on the beach|$P in the snow}"  # a prompt, or several with |
SEEDS="${SEEDS:-0 1 2 3}"          # a picture of every prompt for each
STEPS="${STEPS:-50}"               # denoising steps; 25 is often enough
GUIDANCE="${GUIDANCE:-7.0}"        # 5: freer and softer; 10: closer to the words, harsher
BATCH_SIZE="${BATCH_SIZE:-1}"      # pictures at once: as many as memory holds; they stay the same
REFINER="${REFINER:-}"             # stabilityai/stable-diffusion-xl-refiner-1.0: finer details
OUTPUT_DIR="${OUTPUT_DIR:-}"       # empty: the folder `images` beside the adapter

# Run folders bear their base's name: the newest of those, or else the newest of all.
base="$(basename "${MODEL_NAME:-stable-diffusion-xl-base-1.0}" | tr -c 'A-Za-z0-9._\n-' '-')"
for run in "*_${base}_*" "*"; do
  ADAPTER="${ADAPTER:-$(ls -t "$ROOT/outputs/$SUBJECT"/$run/adapter.safetensors 2>/dev/null | head -n 1 || true)}"
done
if [ -z "$ADAPTER" ]; then
  echo "error: no adapter in $ROOT/outputs/$SUBJECT: run scripts/finetune_sdxl.sh, or set ADAPTER" >&2
  exit 2
fi
if [ -z "$OUTPUT_DIR" ]; then
  [ -d "$ADAPTER" ] && OUTPUT_DIR="$ADAPTER/images" || OUTPUT_DIR="$(dirname "$ADAPTER")/images"
fi
# The Python of an active environment, or else of the quick start's .venv.
[ -n "${VIRTUAL_ENV:-}" ] || PATH="$ROOT/.venv/bin:$PATH"
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"  # on a busy CPU: threads wait asleep
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m diffusekrona.inference \
  ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} \
  --adapter "$ADAPTER:$WEIGHT" \
  --prompt_file <(tr '|' '\n' <<< "$PROMPTS") \
  --seeds $SEEDS \
  --num_inference_steps "$STEPS" \
  --guidance_scale "$GUIDANCE" \
  --batch_size "$BATCH_SIZE" \
  ${REFINER:+--refiner "$REFINER"} \
  --output_dir "$OUTPUT_DIR" \
  "$@"
'''
import os, sys
os.environ["PYTHON"] = sys.executable
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
