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
    model.generate(
        ids,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        use_cache=use,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for use in (True, False)
)
for step, (found, expected) in enumerate(zip(with_cache.logits, without.logits, strict=True), ids.shape[1]):
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), step
    if with_cache.sequences[0, step] != without.sequences[0, step]:
        break  # rounding decided a tie; the texts differ from here on
assert "streamliner" not in sys.modules
