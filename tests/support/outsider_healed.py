"""A user who has transformers and not streamliner: load a healed checkpoint, and generate with a cache and without."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, trusted = sys.argv[1], "--trust" in sys.argv
model, info = AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, trust_remote_code=trusted, dtype=torch.float32
)
assert not info["missing_keys"], info
assert not info["unexpected_keys"], info
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
ids = tokenizer("The import statement", return_tensors="pt").input_ids
with_cache, without = (
    model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False)
)
assert torch.equal(with_cache, without)
assert "streamliner" not in sys.modules
