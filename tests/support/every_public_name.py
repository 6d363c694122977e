"""Uses every public name as a Python user would; a type checker reads it, nobody runs it."""

from __future__ import annotations

from typing import reveal_type

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import streamliner as sl

name = "MODEL"
tokenizer = AutoTokenizer.from_pretrained(name)
model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name)
text: sl.CalibrationSet = sl.calibration_set(["one text", "another"], tokenizer, num_samples=4, sequence_length=64)
found: sl.Found = sl.search(model, text, method="sleb", remove="25%", run="runs/x")
again = sl.search("MODEL", "wikitext2", remove=4)
frontier: sl.Frontier = found.frontier
point: sl.Point = frontier.at(4)
plan: sl.Plan = found.plan(4)
same_plan = sl.read_plan("runs/x")
small = sl.cut(model, plan)
other = sl.cut("MODEL", [3, 7])
verification: sl.Verification = sl.verify(small, dense=model)
checkup: sl.Checkup = sl.find_faults("OTHER", dense="MODEL")
fault: sl.Fault = checkup.faults[0]
mended = sl.mend("OTHER", "MENDED")
healed = sl.heal(small, dense=model, tokenizer=tokenizer, data=["wiki.jsonl"], loss="lm", tokens=1_000_000)
settings = sl.recipe("good", "heal", tokens="20k")
evaluation: sl.Evaluation = sl.evaluate({"cut": small}, dense=model, tokenizer=tokenizer, perplexity=["wikitext2:test"])
benchmark: sl.Benchmark = sl.benchmark({"cut": small, "healed": healed}, dense=model, repeats=3)
loaded = sl.load_model("MODEL", dtype="bfloat16")
words = sl.load_tokenizer("MODEL")
blocks = sl.Blocks(model)
probe = sl.Probe(blocks, text)
loss: sl.Loss = probe.loss([3])
version = sl.__version__

reveal_type(sl.search)
reveal_type(sl.heal)
reveal_type(sl.evaluate)
reveal_type(sl.benchmark)
reveal_type(sl.cut)
reveal_type(sl.verify)
reveal_type(sl.calibration_set)
reveal_type(found)
reveal_type(again)
reveal_type(point)
reveal_type(same_plan)
reveal_type(small)
reveal_type(other)
reveal_type(verification)
reveal_type(healed)
reveal_type(evaluation)
reveal_type(benchmark)
reveal_type(loaded)
reveal_type(words)
reveal_type(blocks)
reveal_type(probe)
reveal_type(loss.perplexity)
reveal_type(found.to_json())
reveal_type(evaluation.to_json())
reveal_type(benchmark.to_json())
reveal_type(verification.to_json())
reveal_type(plan.to_json())
reveal_type(version)
