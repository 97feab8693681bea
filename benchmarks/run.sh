#!/bin/sh
# Run the benchmarks of docs/benchmarks.md and write their figures to save/benchmarks as JSON. Takes about two hours on
# 2 idle cores. The runs on real pairs are skipped unless ../shared/data has the pairs.
set -e
cd "$(dirname "$0")/.."
python=.venv/bin/python
demo=models/SmolLM2-135M-Instruct
mkdir -p save/benchmarks

train() {  # name of the result, then arguments of training_speed
    name=$1
    shift
    "$python" -m benchmarks.training_speed "$@" --json "save/benchmarks/$name.json"
}

"$python" -m benchmarks.preparing_speed --pairs 1000000
"$python" -m benchmarks.tokenizing_speed --data dialogues --model "$demo"
"$python" -m benchmarks.scoring_batch
train dialogues-8 --data dialogues --model random --batch_size 8 --pairs 48
train qwen3_5-8 --data dialogues --model qwen3_5 --batch_size 8 --pairs 16
train lists-4 --data lists --answers 4 --model random --batch_size 12 --pairs 24
train lists-7 --data lists --answers 7 --model tiny --batch_size 21 --pairs 42
for language in en zh; do
    source=../shared/data/dpo_${language}_demo.json
    test -f "$source" || continue
    "$python" -m benchmarks.rank_balance --data "$source" --batch_size 4 2 --rounds 3 \
        --json "save/benchmarks/rank-balance-$language.json"
    "$python" -m benchmarks.scoring_speed --data "$source" --groups 40 --json "save/benchmarks/scoring-$language.json"
    for batch_size in 8 2 1; do
        train "$language-$batch_size" --data "$source" --model random --batch_size "$batch_size" --pairs 16
    done
done
train demo-8 --data data/demo/train.jsonl --model "$demo" --batch_size 8 --pairs 16
train demo-1 --data data/demo/train.jsonl --model "$demo" --batch_size 1 --pairs 8
"$python" -m benchmarks.scoring_speed --data best-of-n --rounds 1 --json save/benchmarks/best-of-n.json
