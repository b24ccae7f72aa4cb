# Sourced by the scripts, never run: what they share. The scripts themselves hold the values.

unset CDPATH  # with it, cd prints where it went, or goes elsewhere
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# The Python of an active environment, or else of the quick start's .venv.
[ -n "${VIRTUAL_ENV:-}" ] || PATH="$ROOT/.venv/bin:$PATH"
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# On a CPU with other work, threads that sleep while they wait are many times faster than spinning.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

fail() { echo "error: $*" >&2; exit 2; }

# launch MODULE FLAG...: run a program of the package through `accelerate launch`, as one process or
# as $NUM_PROCESSES; what `accelerate config` saved holds where the script sets nothing else.
launch() {
  local module="diffusekrona.$1"; shift
  # `accelerate launch SCRIPT` has prepared the process already.
  [ -z "${LAUNCHED_BY_ACCELERATE:-}" ] || exec "$PYTHON" -m "$module" "$@"
  exec "$PYTHON" "$ROOT/scripts/common/launch.py" \
    ${NUM_PROCESSES:+--num_processes "$NUM_PROCESSES"} \
    ${PRECISION:+--mixed_precision "$PRECISION"} \
    -m "$module" "$@"
}

# defaults_for MODEL_NAME: set the values of a usual run on the small bundled models, where they are not
# the script's own. A value that is set already stays.
defaults_for() {
  local found name value
  found="$("$PYTHON" -c 'import sys
from diffusekrona.bases.bundled import BUNDLED_TRAINING, is_bundled
names = {
    "STEPS": "max_train_steps", "SCHEDULE": "lr_scheduler", "BATCH_SIZE": "train_batch_size",
    "ACCUMULATION": "gradient_accumulation_steps", "PRECISION": "mixed_precision",
    "CHECKPOINTING": "gradient_checkpointing", "TEXT_ENCODER": "train_text_encoder",
    "MAX_NORM": "max_relative_norm", "A1": "a1",
}
for name, setting in names.items() if is_bundled(sys.argv[1]) else ():
    value = BUNDLED_TRAINING[setting]
    print(name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else value)' "$1")"
  while read -r name value; do
    [ -z "$name" ] || [ -n "${!name:-}" ] || printf -v "$name" %s "$value"
  done <<< "$found"
}

# default_rate METHOD MODEL_NAME: the learning rate of the method's record for the base, such as 6e-4.
default_rate() {
  "$PYTHON" -c 'import sys
from diffusekrona.adapters.methods import METHODS
if method := METHODS.get(sys.argv[1]):  # the program refuses another
    digits, exponent = f"{method.usual_rate(sys.argv[2]):e}".split("e")
    print(f"{float(digits):g}e{int(exponent)}")' "$1" "$2"
}

# A text as part of a file name.
as_name() { tr -c 'A-Za-z0-9._\n-' '-' <<< "$1"; }

# value_of FLAG ARGUMENT...: the last value that the arguments give a flag, or nothing.
value_of() {
  local flag="$1" value=""; shift
  while [ $# -gt 0 ]; do
    case "$1" in "$flag") value="${2:-}" ;; "$flag="*) value="${1#*=}" ;; esac
    shift
  done
  printf '%s' "$value"
}

# finetune FLAG...: train with the values of the script.
finetune() {
  local method one head arguments=()
  for one in "$@"; do  # the program takes hyphens in flags, too
    case "$one" in --[a-z]*) head="${one%%=*}"; one="--$(tr - _ <<< "${head#--}")${one#"$head"}" ;; esac
    arguments+=("$one")
  done
  set -- ${arguments[@]+"${arguments[@]}"}
  method="$(value_of --adapter_type "$@")"
  ADAPTER_TYPE="${method:-$ADAPTER_TYPE}"
  [ -n "$LR" ] || LR="$(default_rate "$ADAPTER_TYPE" "$MODEL_NAME")"
  local shape="${A1}x$A2${FACTORS:+_$FACTORS}" name flags=()
  [ "$ADAPTER_TYPE" = krona ] || shape="r$RANK"
  name="$(as_name "${ADAPTER_TYPE}_${ATTN}_${shape}_$(basename "$MODEL_NAME")_lr$LR")"
  [ "${TEXT_ENCODER:-no}" != yes ] || flags+=(--train_text_encoder)
  [ "$CHECKPOINTING" != yes ] || flags+=(--gradient_checkpointing)
  [ "$LOW_VRAM" != yes ] || flags+=(--low_vram)
  case " $* " in *" --overwrite_output_dir "*) ;; *) flags+=(--resume_from_checkpoint latest) ;; esac
  local output="${OUTPUT_DIR:-$ROOT/outputs/$SUBJECT/$name}" given
  case " $* " in *" --dry_run "* | *" --lr_find "* | *" --help "* | *" -h "*) CHOOSE=no ;; esac
  case "${CHOOSE:=no}" in
    no) training "$output" ${flags[@]+"${flags[@]}"} "$@" ;;
    yes) CHOOSE="" ;;
    -*) ;;
    *) fail "CHOOSE=$CHOOSE: give yes, no or flags of choose, such as '--every 100 --budget 10min'" ;;
  esac
  ( training "$output" ${flags[@]+"${flags[@]}"} "$@" )  # each program replaces a shell of its own
  given="$(value_of --output_dir "$@")"
  flags=("${given:-$output}")
  # The subject's name is the script's, unless the flags give another prompt.
  [ -n "$(value_of --instance_prompt "$@")" ] || flags+=(--class_word "$CLASS" --identifier "$TOKEN")
  [ "$LOW_VRAM" != yes ] || flags+=(--low_vram)
  launch choose "${flags[@]}" ${VARIANT:+--variant "$VARIANT"} $CHOOSE
}

# training OUTPUT_DIR FLAG...: `finetune`'s command.
training() {
  local output="$1" steps=(); shift
  [ -n "$(value_of --num_train_epochs "$@")" ] || steps=(--max_train_steps "$STEPS")
  launch train_dreambooth \
    --pretrained_model_name_or_path "$MODEL_NAME" ${VARIANT:+--variant "$VARIANT"} \
    --instance_data_dir "$ROOT/data/$SUBJECT/input" \
    --instance_prompt "a $TOKEN $CLASS" \
    --output_dir "$output" \
    --adapter_type "$ADAPTER_TYPE" \
    --attn_update_unet "$ATTN" --a1 "$A1" --a2 "$A2" --factors "$FACTORS" --rank "$RANK" \
    ${LR:+--learning_rate "$LR"} --lr_scheduler "$SCHEDULE" ${steps[@]+"${steps[@]}"} \
    --train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$ACCUMULATION" \
    ${MAX_NORM:+--max_relative_norm "$MAX_NORM"} ${RESOLUTION:+--resolution "$RESOLUTION"} \
    --mixed_precision "$PRECISION" --seed "$SEED" \
    --validation_prompt "$VALIDATION" "$@"
}

# newest PATTERN: the adapter of the newest run of the subject that matches, or nothing. It is the one
# that `choose` chose, unless the run was trained further since.
newest() {
  local found best
  found="$(ls -t "$ROOT/outputs/$SUBJECT"/$1/adapter.safetensors 2>/dev/null | head -n 1 || true)"
  [ -n "$found" ] || return 0
  best="${found%adapter.safetensors}best.safetensors"
  if [ -f "$best" ] && [ ! "$found" -nt "$best" ]; then found="$best"; fi
  echo "$found"
}

# inference USUAL_BASE SCRIPT FLAG...: draw with the values of the script. Without ADAPTER, the newest
# run on the base (run folders contain its name), or else the newest of all.
inference() {
  local usual="$1" trainer="$2" flags=(); shift 2
  ADAPTER="${ADAPTER:-$(newest "*_$(as_name "$(basename "${MODEL_NAME:-$usual}")")_*")}"
  ADAPTER="${ADAPTER:-$(newest "*")}"
  [ -n "$ADAPTER" ] || fail "no adapter in $ROOT/outputs/$SUBJECT: run $trainer, or set ADAPTER"
  [ "$LOW_VRAM" != yes ] || flags+=(--low_vram)
  while IFS= read -r prompt; do
    [ -z "${prompt// /}" ] || flags+=("--prompt=$prompt")
  done <<< "${PROMPTS//|/$'\n'}"
  local beside="$ADAPTER"
  [ -d "$ADAPTER" ] || beside="$(dirname "$ADAPTER")"
  launch inference \
    ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} ${VARIANT:+--variant "$VARIANT"} \
    --adapter "$ADAPTER${WEIGHT:+:$WEIGHT}" \
    --seeds $SEEDS --batch_size "$BATCH_SIZE" \
    ${STEPS:+--num_inference_steps "$STEPS"} ${GUIDANCE:+--guidance_scale "$GUIDANCE"} \
    ${PRECISION:+--mixed_precision "$PRECISION"} ${REFINER:+--refiner "$REFINER"} \
    --output_dir "${OUTPUT_DIR:-$beside/images}" \
    ${flags[@]+"${flags[@]}"} "$@"
}

# evaluate FLAG...: score with the values of the script.
evaluate() {
  local flags=() adapter newest_run=""
  [ -n "$ADAPTERS" ] || newest_run="$(newest "*")"
  [ -n "$ADAPTERS$newest_run" ] || fail "no adapter in $ROOT/outputs/$SUBJECT: run a finetune" \
    "script, or set ADAPTERS"
  [ -z "$newest_run" ] || flags=(--adapter none --adapter "$newest_run")
  for adapter in $ADAPTERS; do flags+=(--adapter "$adapter"); done
  [ "$LOW_VRAM" != yes ] || flags+=(--low_vram)
  launch evaluate \
    ${MODEL_NAME:+--pretrained_model_name_or_path "$MODEL_NAME"} ${VARIANT:+--variant "$VARIANT"} \
    "${flags[@]}" \
    --subject_dir "$ROOT/data/$SUBJECT/input" --class_word "$CLASS" --identifier "$TOKEN" \
    --prompts "$PROMPTS" --seeds $SEEDS \
    ${STEPS:+--num_inference_steps "$STEPS"} ${GUIDANCE:+--guidance_scale "$GUIDANCE"} \
    ${PRECISION:+--mixed_precision "$PRECISION"} \
    --clip "$CLIP" --clip_backend "$CLIP_BACKEND" --dino "$DINO" \
    --output_dir "$OUTPUT_DIR" "$@"
}

# study NAME FLAG...: run a built-in study over the script's subjects and seeds. It starts its own
# processes, one per GPU.
study() {
  local name="$1" folders=(); shift
  for subject in $SUBJECTS; do folders+=(--subject "$ROOT/data/$subject"); done
  exec "$PYTHON" -m diffusekrona.study "$name" \
    --base "$MODEL_NAME" "${folders[@]}" \
    ${STEPS:+--set max_train_steps="$STEPS"} \
    ${LEARNING_RATE:+--set learning_rate="$LEARNING_RATE"} \
    ${A1:+--set a1="$A1"} ${A2:+--set a2="$A2"} \
    --seeds $SEEDS --image_seeds $IMAGE_SEEDS \
    --engine "${ENGINE:-local}" \
    --output_dir "${OUTPUT_DIR:-$ROOT/outputs/studies/$name}" \
    --cells_dir "${CELLS_DIR:-$ROOT/outputs/studies/cells}" \
    "$@"
}
