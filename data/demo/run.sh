#!/bin/sh
# Run the demo (`make demo`): train on data/demo, serve with vLLM, score two answers. Argument: the base model.
set -eu
cd "$(dirname "$0")/../.."
base=$1
out=save/demo
python=.venv/bin/python
started=$(date +%s)
rm -rf "$out" "$out-data"

echo "== Validating the pairs and excluding the held-out prompts"
"$python" prepare_data.py data/demo/train.jsonl --exclude_prompts data/demo/eval.jsonl --output "$out-data/train.jsonl"
"$python" prepare_data.py data/demo/eval.jsonl --output "$out-data/eval.jsonl"

echo "== Training $base on $(wc -l < "$out-data/train.jsonl") pairs; $(wc -l < "$out-data/eval.jsonl") are held out"
"$python" train.py \
  --model_name_or_path "$base" \
  --chat_template_path data/demo/chatml.jinja \
  --dataset_name "$out-data" \
  --output_dir "$out" \
  --max_length 512 \
  --per_device_train_batch_size 8 \
  --per_device_eval_batch_size 16 \
  --learning_rate 5e-5 \
  --warmup_steps 3 \
  --num_train_epochs 1 \
  --gradient_checkpointing False \
  --eval_on_start True \
  --eval_strategy no \
  --save_strategy no \
  --logging_steps 2

echo "== Starting a vLLM server (log: $out/vllm.log)"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
PORT=$port sh infer_vllm.sh "$out" > "$out/vllm.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

echo "== Computing the accuracy on the held-out pairs while the server starts"
"$python" evaluate.py --model "$out" "$out-data/eval.jsonl" --output "$out/evaluation" | tee "$out/accuracy.txt"
until "$python" -c "import requests; requests.get('http://127.0.0.1:$port/health', timeout=2)" 2>/dev/null; do
  kill -0 "$server" 2>/dev/null || { tail -n 20 "$out/vllm.log"; echo "error: the server did not start; see $out/vllm.log."; exit 1; }
  sleep 1
done

echo "== Scoring two answers with the server on port $port"
question="My neighbour's dog barks all night. What can I do?"
good="Talk to your neighbour first, since they may not know. If it goes on, keep a log of the times and ask your council about noise rules."
bad="Bananas are rich in potassium and taste best when the skin has a few brown spots."
"$python" client.py --base_url "http://127.0.0.1:$port" "$question" "$bad" "$good" | tee "$out/scores.txt"

before=$("$python" -c "import json; print(json.load(open('$out/trainer_state.json'))['log_history'][0]['eval_accuracy'])")
cat <<END

== Summary ($(($(date +%s) - started)) s)
Held-out accuracy before training   $before
Held-out accuracy after training    $(awk '$1 == "all" {print $3}' "$out/accuracy.txt")
"$question"
$(cat "$out/scores.txt")
The model is in $out. Serve it:      sh infer_vllm.sh $out
Your own pairs (format: README.md), 1 GPU:  $python train.py --model_name_or_path MODEL --dataset_name pairs.jsonl --output_dir save/mine
All GPUs:                                   MODEL=… DATASET=pairs.jsonl OUTPUT_DIR=save/mine sh train.sh
END
