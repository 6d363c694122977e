"""Conversations, and a tokenizer with a chat template."""

from __future__ import annotations

import copy
import json

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is a list?"},
    {"role": "assistant", "content": "A sequence of values."},
    {"role": "user", "content": "And a tuple?"},
    {"role": "assistant", "content": "One that does not change."},
]


def chatting(tokenizer, template=CHATML):
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = template
    return talking


def rows_file(folder, count=200):
    rows = [json.dumps({"messages": TALK}) for _ in range(count)]
    (folder / "talk.jsonl").write_text("\n".join(rows))
    return str(folder / "talk.jsonl")
