#!/bin/sh
# Train with DeepSpeed ZeRO-3 on all GPUs of one or more nodes. Arguments are passed to train.py.
#
#   sh train.sh                                                       one node, all of its GPUs
#   sh train.sh --learning_rate 5e-6                                  any argument of train.py
#   MODEL=models/my-model DATASET=pairs.jsonl OUTPUT_DIR=save/my-run sh train.sh
#   CONFIG=recipes/tulu-3-8b.yaml sh train.sh                         a file of arguments, as for train.py
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 sh train.sh             on every node, with NODE_RANK 0, 1, …
#
# Arguments override MODEL, DATASET and OUTPUT_DIR, which override CONFIG, which overrides the defaults below. The
# defaults are for a 7B model on four to eight 80 GB GPUs: 8 pairs per GPU and step, in one pass (because ZeRO-3 gathers
# all weights in every pass) unless they have more than 16384 token positions. --ddp_timeout limits how long ranks wait
# for the rank that tokenizes: tens of millions of pairs take longer than the default of 30 minutes. The authors have not
# yet run this script on GPUs. Without a GPU, it runs one process (two with NPROC_PER_NODE=2) on the CPU in fp32, for
# debugging the distributed code.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=python3
[ -x "$here/.venv/bin/python" ] && python=$here/.venv/bin/python

: "${NNODES:=1}"
: "${NODE_RANK:=0}"
: "${MASTER_ADDR:=127.0.0.1}"
: "${MASTER_PORT:=29500}"
# By default, torchrun kills ranks that are still running 30 s after SIGTERM or Ctrl-C. Saving a checkpoint
# takes longer: ZeRO-3 writes about 100 GB for 7B.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
# Steps differ in length, so fixed segments would fragment the memory.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"

set -- ${MODEL:+--model_name_or_path "$MODEL"} ${DATASET:+--dataset_name "$DATASET"} \
  ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} "$@"
: "${MODEL:=Qwen/Qwen2.5-7B-Instruct}"
# The arguments set in CONFIG. If the file cannot be read, train.py reports it.
given=$([ -z "${CONFIG:-}" ] || "$python" -c 'import json, sys, yaml
print(*(json.load if sys.argv[1].endswith(".json") else yaml.safe_load)(open(sys.argv[1])))' "$CONFIG" 2>/dev/null || true)
while read -r name value; do
  case " $given " in *" $name "*) ;; *) set -- "--$name" "$value" "$@" ;; esac
done <<DEFAULTS
model_name_or_path $MODEL
dataset_name Skywork/Skywork-Reward-Preference-80K-v0.2
output_dir $here/save/$(basename "$MODEL")-reward
deepspeed $here/ds_config_zero3.json
max_length 2048
per_device_train_batch_size 8
gradient_accumulation_steps 1
max_tokens_per_micro_batch 16384
per_device_eval_batch_size 8
lr_scheduler_type cosine
warmup_steps 0.03
gradient_checkpointing True
save_strategy steps
save_steps 0.25
save_total_limit 2
logging_steps 5
ddp_timeout 10800
resume_from_checkpoint auto
DEFAULTS
set -- "$here/train.py" ${CONFIG:+"$CONFIG"} "$@"

echo "Starting; importing takes a few seconds."
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m reward_model.training.launch \
  --nnodes "$NNODES" --node_rank "$NODE_RANK" ${NPROC_PER_NODE:+--nproc_per_node "$NPROC_PER_NODE"} \
  --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
