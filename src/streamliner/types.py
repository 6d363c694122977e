"""Types for annotations. To import transformers' own takes seconds, so at run time they are only names."""

from pathlib import Path
from typing import TYPE_CHECKING, NewType, Union

if TYPE_CHECKING:
    from transformers import (
        PretrainedConfig as PretrainedConfig,
        PreTrainedModel as PreTrainedModel,
        PreTrainedTokenizerBase as PreTrainedTokenizerBase,
    )
else:
    PretrainedConfig = NewType("PretrainedConfig", object)
    PreTrainedModel = NewType("PreTrainedModel", object)
    PreTrainedTokenizerBase = NewType("PreTrainedTokenizerBase", object)

ModelLike = Union[str, Path, PreTrainedModel]  # noqa: UP007
"""A hub id, a folder, a GGUF file, or a model in memory."""
