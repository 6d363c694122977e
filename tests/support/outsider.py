"""Load cut checkpoints without streamliner: python outsider.py FOLDER...

FOLDER.expected holds token ids and the logits for them of the dense model with the blocks bypassed.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from close import assert_close

for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    saved = load_file(folder + ".expected")
    with torch.inference_mode():
        assert_close(model.eval()(input_ids=saved["ids"]).logits, saved["logits"])
    ids = saved["ids"][:, :8].repeat(2, 1)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 1, 0
    for inputs in ({"input_ids": ids[:1]}, {"input_ids": ids, "attention_mask": mask}):
        cached, uncached = (
            model.generate(**inputs, use_cache=use_cache, do_sample=False, min_new_tokens=6, max_new_tokens=6)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, uncached), folder
assert "streamliner" not in sys.modules
