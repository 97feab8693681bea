#!/bin/sh
# The benchmarks behind the README's table, figures as JSON in save/benchmarks. About an hour on 2 cores, which must have
# nothing else to do. The real pairs are benchmarked where ../shared/data has them.
set -e
cd "$(dirname "$0")/.."
python=.venv/bin/python
demo=models/SmolLM2-135M-Instruct
mkdir -p save/benchmarks

train() {  # name of the result, then arguments
    name=$1
    shift
    "$python" benchmarks/training_speed.py "$@" --json "save/benchmarks/$name.json"
}

"$python" benchmarks/tokenizing_speed.py --data dialogues --model "$demo"
train dialogues-8 --data dialogues --model random --batch_size 8 --pairs 48
for language in en zh; do
    source=../shared/data/dpo_${language}_demo.json
    test -f "$source" || continue
    "$python" benchmarks/convert_sharegpt.py "$source" "save/benchmarks/$language.jsonl"
    train "$language-8" --data "save/benchmarks/$language.jsonl" --model random --batch_size 8 --pairs 16
    train "$language-1" --data "save/benchmarks/$language.jsonl" --model random --batch_size 1 --pairs 8
done
train demo-8 --data data/demo/train.jsonl --model "$demo" --batch_size 8 --pairs 16
train demo-1 --data data/demo/train.jsonl --model "$demo" --batch_size 1 --pairs 8
