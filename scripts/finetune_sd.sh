#!/usr/bin/env bash
# Fine-tune Stable Diffusion on 3 to 6 pictures of a subject with a Kronecker adapter. From any directory:
#   SUBJECT=dog bash scripts/finetune_sd.sh
#   SUBJECT=cat LR=1e-3 STEPS=500 bash scripts/finetune_sd.sh --random_flip
# Every value below can be given from the environment; more flags are passed on as they are
# (--help lists them, --dry_run shows the plan). The same command again goes on where it stopped.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

SUBJECT="${SUBJECT:-dog}"            # folder in data/; its pictures lie in data/$SUBJECT/input
CLASS="${CLASS:-$SUBJECT}"           # what it is, in a word that the base knows
TOKEN="${TOKEN:-sks}"                # identifier: a word that the base has no idea of
MODEL_NAME="${MODEL_NAME:-stable-diffusion-v1-5/stable-diffusion-v1-5}"  # hub name, folder, pocket
# The bundled model is small and learns its subjects at a higher rate.
case "$MODEL_NAME" in pocket*)
  LR="${LR:-5e-3}" STEPS="${STEPS:-500}" SCHEDULE="${SCHEDULE:-cosine}" BATCH_SIZE="${BATCH_SIZE:-4}"
  ACCUMULATION="${ACCUMULATION:-1}" PRECISION="${PRECISION:-no}" TEXT_ENCODER="${TEXT_ENCODER:-no}" ;;
esac

ADAPTER_TYPE="${ADAPTER_TYPE:-krona}"  # krona, or lora for the baseline (RANK)
ATTN="${ATTN:-kqvo}"                 # attention projections to adapt; all four is best
A1="${A1:-4}"                        # rows of A. 2, 4, 8 are good; more: fewer parameters
A2="${A2:-64}"                       # columns of A; 64 is good. Both below 8: prompts get ignored
FACTORS="${FACTORS:-}"               # own factors for some projections: k=8x64,o=2x64
RANK="${RANK:-4}"                    # of LoRA
TEXT_ENCODER="${TEXT_ENCODER:-yes}"  # adapt the text encoder too, as the paper does on SD
LR="${LR:-6e-4}"                     # 5e-4 to 6e-4 is best; above 1e-3 the subject swallows the
                                     # prompt, below 1e-4 it does not come through
SCHEDULE="${SCHEDULE:-constant}"     # of the learning rate: constant, cosine, linear …
STEPS="${STEPS:-1000}"               # 500 for an easy subject, 1000 for a complex one or prompt
BATCH_SIZE="${BATCH_SIZE:-1}"        # pictures at once on each GPU
ACCUMULATION="${ACCUMULATION:-4}"    # batches a step
RESOLUTION="${RESOLUTION:-}"         # pixels; empty: the base's own, 512
PRECISION="${PRECISION:-fp16}"       # no, fp16, bf16; a CPU takes no or bf16
CHECKPOINTING="${CHECKPOINTING:-no}"  # gradient checkpointing: half the memory, a third more time
SEED="${SEED:-0}"
VALIDATION="${VALIDATION:-a $TOKEN $CLASS in the snow}"  # drawn now and then, so that one sees it
NUM_PROCESSES="${NUM_PROCESSES:-1}"  # GPUs that share the work

factors="${FACTORS:+_$FACTORS}"
[ "$ADAPTER_TYPE" = lora ] && shape="r$RANK" || shape="${A1}x$A2$factors"
NAME="${NAME:-$(tr -c 'A-Za-z0-9._\n-' '-' <<< "${ADAPTER_TYPE}_${ATTN}_${shape}_$(basename "$MODEL_NAME")_lr$LR")}"
OUTPUT_DIR="${OUTPUT_DIR:-$ROOT/outputs/$SUBJECT/$NAME}"

# The Python of an active environment, or else of the quick start's .venv.
[ -n "${VIRTUAL_ENV:-}" ] || PATH="$ROOT/.venv/bin:$PATH"
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# On a CPU that has other work too, threads that wait asleep are many times faster than spinning ones.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
[ "$TEXT_ENCODER" = yes ] && set -- --train_text_encoder "$@"
[ "$CHECKPOINTING" = yes ] && set -- --gradient_checkpointing "$@"
# One process needs no launcher; more are accelerate's.
launch=("$PYTHON")
[ "$NUM_PROCESSES" = 1 ] || launch+=(-m accelerate.commands.launch --num_processes "$NUM_PROCESSES" \
  --num_machines 1 --mixed_precision "$PRECISION" --dynamo_backend no)
exec "${launch[@]}" \
  -m diffusekrona.train_dreambooth \
  --pretrained_model_name_or_path "$MODEL_NAME" \
  --instance_data_dir "$ROOT/data/$SUBJECT/input" \
  --instance_prompt "a $TOKEN $CLASS" \
  --output_dir "$OUTPUT_DIR" \
  --resume_from_checkpoint latest \
  --adapter_type "$ADAPTER_TYPE" \
  --attn_update_unet "$ATTN" --a1 "$A1" --a2 "$A2" --factors "$FACTORS" --rank "$RANK" \
  --learning_rate "$LR" --lr_scheduler "$SCHEDULE" --max_train_steps "$STEPS" \
  --train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$ACCUMULATION" \
  ${RESOLUTION:+--resolution "$RESOLUTION"} \
  --mixed_precision "$PRECISION" --seed "$SEED" \
  --validation_prompt "$VALIDATION" \
  "$@"
