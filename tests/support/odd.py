"""A decoder with unusual names that no library knows, and with faults to choose from. Tests also save its code."""

from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OddConfig(PretrainedConfig):
    model_type = "odd"

    def __init__(self, depth=5, width=16, vocab_size=128, ranks=None, fault="", **kwargs):
        self.depth, self.width, self.vocab_size, self.ranks, self.fault = depth, width, vocab_size, ranks, fault
        super().__init__(**kwargs)


class OddBlock(nn.Module):
    def __init__(self, config, place):
        super().__init__()
        self.mix, self.fault = nn.Linear(config.width, config.width), config.fault
        self._place = place + 1

    def forward(self, signal):
        out = signal + self.mix(signal).tanh() * (self._place if self.fault == "hidden index" else 1)
        return {"signal": out} if self.fault == "dict" else out


class OddForText(PreTrainedModel, GenerationMixin):
    config_class = OddConfig
    base_model_prefix = "trunk"

    def __init__(self, config):
        super().__init__(config)
        self.symbols = nn.Embedding(config.vocab_size, config.width)
        self.tower = nn.ModuleList([OddBlock(config, place) for place in range(config.depth)])
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.symbols

    def forward(self, input_ids, attention_mask=None, use_cache=None, **kwargs):
        signal = self.symbols(input_ids)
        for place, block in enumerate(self.tower):
            signal = block(signal)
            signal = signal["signal"] if isinstance(signal, dict) else signal
            if self.config.fault == "between" and place == 2:
                signal = signal * 2
        return CausalLMOutput(logits=self.out(signal))

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}
