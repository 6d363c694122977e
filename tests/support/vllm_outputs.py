"""What vLLM makes of a checkpoint, in an environment of its own: python vllm_outputs.py FOLDER REQUEST.json ANSWER.json

The request has `prompts`, lists of token ids to continue greedily by `new` tokens, and `text`, whose log-probabilities
are wanted: of each token after those before it.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, request, answer = sys.argv[1:]
    asked = json.loads(Path(request).read_text())
    length = len(asked["text"]) + asked["new"]
    llm = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=length,
        max_num_seqs=1,
        enable_prefix_caching=False,
    )
    greedy = SamplingParams(
        temperature=0, max_tokens=asked["new"], min_tokens=asked["new"], ignore_eos=True, detokenize=False
    )
    written = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], greedy, use_tqdm=False)
    scored = llm.generate(
        [{"prompt_token_ids": asked["text"]}],
        SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False),
        use_tqdm=False,
    )[0]
    pairs = zip(scored.prompt_logprobs[1:], asked["text"][1:], strict=True)
    found = {
        "tokens": [list(each.outputs[0].token_ids) for each in written],
        "log_probabilities": [scores[token].logprob for scores, token in pairs],
    }
    Path(answer).write_text(json.dumps(found))
