"""Private names of other libraries, each with the release it was seen in and the reason. No other module uses one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# torch 2.13: no public module exports them; "Extending torch" in its own documentation imports the first from there.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves

from streamliner.model.gguf_reader import QuickReader


def offload_hook(module: nn.Module) -> Any:
    """The hook of accelerate that loads a module's weights for each call, or None."""
    # accelerate 1.15: `add_hook_to_module` and `remove_hook_from_module` have no public getter.
    hook = getattr(module, "_hf_hook", None)
    return hook if getattr(hook, "offload", False) else None


def from_config(model_class: Any, config: Any) -> Any:
    """A model of `model_class` with random weights. It changes `config`: pass a copy."""
    # transformers 5.24: only auto classes have `from_config`. Calling the class would ignore the config's dtype.
    return model_class._from_config(config)


def mend_llama4() -> None:
    """Let Llama 4 run where its images' class reads a field of the text's output that is not there."""
    # transformers 5.24: Llama4ForConditionalGeneration.forward always ends in an AttributeError.
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
        MoeCausalLMOutputWithPast.image_outputs = None  # type: ignore[attr-defined]


def attention_kernel(config: Any) -> str:
    """The attention kernel (eager, sdpa, ...) of a config."""
    # transformers 5.24 can set the kernel of a model in public, but not read it.
    return str(config._attn_implementation)


def copy_attention_kernel(source: Any, target: Any) -> None:
    """Give the config `target` the attention kernel (eager, sdpa, ...) of the config `source`."""
    target._attn_implementation = source._attn_implementation


def tensors_as_on_disk(dense: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model` under the names that a checkpoint of its type has, which may differ from those in memory.

    `dense`, of the same class, was read by `from_pretrained` and remembers how that renamed and merged tensors.
    """
    # transformers 5.24 does this only inside `save_pretrained`, which also writes files.
    from transformers.core_model_loading import revert_weight_conversion

    model._weight_conversions = getattr(dense, "_weight_conversions", None)  # type: ignore[assignment]
    return revert_weight_conversion(model, model.state_dict())  # type: ignore[no-any-return]


def names_in_memory(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of tensors on disk -> their names in memory, as far as transformers only renames them on loading."""
    # transformers 5.24: the mapping is public for reading by model type, not for a model with its parts.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    every: Any = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    kinds = ([each for each in every if isinstance(each, kind)] for kind in (WeightRenaming, WeightConverter))
    renamings, converters = kinds
    return {name: rename_source_key(name, renamings, converters)[0] for name in names}


def reset_accelerator() -> None:
    """Forget the settings of an earlier `Accelerator` of this process, such as another precision."""
    # accelerate 1.15 keeps them in a singleton with no public reset; `Accelerator.free_memory` leaves them as they are.
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def hide_from_ddp(module: nn.Module, names: list[str]) -> None:
    """Let DDP leave out the parameters with these names, which are not the same in all processes."""
    # torch 2.13: a static method that is documented as a prototype; there is no argument for it.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]


def forget_sharding(module: nn.Module) -> None:
    """Take the hooks of FSDP2 out of a module whose weights are whole again: they expect divided ones."""
    # torch 2.13: `fully_shard` has no undo.
    for hooks in (module._state_dict_pre_hooks, module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):
        for key in [key for key, hook in hooks.items() if hook.__module__.startswith("torch.distributed.fsdp.")]:
            del hooks[key]


def continuation_tokens(lm: Any, context: str, continuation: str) -> list[int]:
    """Token ids of `continuation` after `context`, as the model `lm` of lm-eval scores them."""
    # lm-eval 0.4.13: the samples that it logs have texts only.
    return list(lm._encode_pair(context, continuation)[1])


GGUF_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}


def gguf_tokenizer_is_separate() -> bool:
    """Whether transformers reads the tokenizer of a GGUF file by itself, so that `quick_gguf` can be used for it."""
    # transformers 5.24: new there.
    own: Any = find_spec("transformers.integrations.gguf") and import_module("transformers.integrations.gguf")
    return hasattr(own, "get_gguf_tokenizer")


def gguf_keys_read(architecture: str) -> set[str] | None:
    """Keys of a GGUF architecture, without its name, from which transformers derives the config.

    None where it derives the config with a function of its own, which needs all that the architecture has.
    """
    # transformers 5.24: no public table. Before 5.24 there are no such functions.
    own: Any = find_spec("transformers.integrations.gguf") and import_module("transformers.integrations.gguf")
    if architecture in getattr(own, "GGUF_CONFIG_ARCHS", ()):
        return None
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    table = GGUF_TO_TRANSFORMERS_MAPPING["config"].get(GGUF_NAMES.get(architecture, architecture), {})
    return {key for key, field in table.items() if field not in (None, -1)}


def gguf_names(architecture: str, model: Any) -> dict[str, str]:
    """Names of the tensors of a GGUF file that transformers loads into a model, with or without weights -> names there.

    Empty where it reports others.
    """
    # transformers 5.24: it silently leaves out all others.
    from transformers import modeling_gguf_pytorch_utils as loader

    if gguf_keys_read(architecture) is None:
        return {}
    processor = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)
    with quick_gguf():
        # Named by the file: to its reader a Mistral is a Llama.
        return dict(loader.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()), architecture))


def has_own_gguf_conversion(architecture: str) -> bool:
    """Whether transformers changes the values of an architecture's tensors when it loads them from a GGUF file."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    return gguf_keys_read(architecture) is None or architecture in TENSOR_PROCESSORS


def loaded_from_gguf(architecture: str, config: Any, name: str, values: Any) -> Any:
    """What transformers makes of the values of a tensor of a GGUF file, numpy arrays both."""
    # transformers 5.24 does this only inside a load of the whole file.
    from transformers import modeling_gguf_pytorch_utils as loader

    processor = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)
    return processor(config=config.to_dict()).process(weights=values, name=name).weights


@contextmanager
def quick_gguf() -> Iterator[None]:
    """While open, transformers loads a GGUF file with `QuickReader`, asks for the names of tensors once, shows no bar.

    Not for tokenizers before transformers 5.24, which come from the same reader.
    """
    # transformers 5.24 asks gguf for the names of all tensors once for each module of a model, and has no argument
    # for the reader or the bar. If a later release does not use these names, only time is lost.
    if find_spec("gguf") is None:
        yield
        return
    import gguf

    names = lru_cache(maxsize=4)(gguf.get_tensor_name_map)
    with ExitStack() as stack:
        stack.enter_context(patch("gguf.GGUFReader", QuickReader))
        stack.enter_context(patch("gguf.get_tensor_name_map", names))
        loader = "transformers.modeling_gguf_pytorch_utils"
        if find_spec(loader):
            stack.enter_context(patch(f"{loader}.tqdm", lambda items, **options: items, create=True))
        yield


@contextmanager
def lm_eval_progress(bar: Callable[..., Any]) -> Iterator[None]:
    """While open, lm-eval calls `bar` in place of `tqdm`, and does not ask git for a commit."""
    # lm-eval 0.4.13 has no argument for either; git complains on stderr where there is no repository. If a later
    # release renames these modules, its own bars appear again; no result depends on them.
    with ExitStack() as stack:
        for module in ("models.huggingface", "api.model", "api.task"):
            stack.enter_context(patch(f"lm_eval.{module}.tqdm", bar, create=True))
        stack.enter_context(patch("lm_eval.evaluator.get_git_commit_hash", lambda: None, create=True))
        yield
