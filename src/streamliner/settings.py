"""Every setting but those of healing, named once: a frozen dataclass for each verb, and one for loading a model.

The fields become the flags of `streamliner VERB`, the keys of a `--config` file and the keywords of `streamliner.VERB`
in Python (see `fields.py`). Defaults are the papers' where they have any.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamliner.errors import EvaluationError, MethodError, OutputError, RemovalError
from streamliner.fields import check_values, default_of, flag, long_name, names, number, pairs, seconds
from streamliner.text.calibration import CalibrationSet
from streamliner.types import ModelLike, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
EFFORTS = ("auto", "exact", "adaptive")
OBJECTIVES = ("loss", "kl")  # on text, and the divergence from the dense model
BENCHMARK_KINDS = ("prompt", "generation")
"""The kinds of work that a benchmark times: keys of its JSON file."""
ENGINES = ("transformers", "vllm", "llama.cpp")

AMOUNTS = ("remove", "target_parameters", "target_bytes", "target_speedup")
"""Settings that each say how much to remove."""
DAMAGES = ("max_perplexity_increase", "target_accuracy_drop")
"""Settings that say how much worse the model may get."""

SHARD = "Largest size of a weight file, such as 5GB (default: unchanged files)"
LINK = "Link unchanged weight files instead of copying (editing one may edit both)"
OVERWRITE = "Replace an output that streamliner wrote"
QUIET = "No messages; only the path of the result"
SEED = "Seed of all random choices"
BATCH_SIZE = "Sequences in one forward"
LENGTH = "Tokens of a window (default: 2048; CPU: 256)"
ANSWERS_ONLY = "In conversations, count only the answers (healing: lm, kd)"
VERIFY = "Reload the result and compare it with bypass"
RESULT = "JSON file to write"


@dataclass(frozen=True)
class ModelSettings:
    """How to load a model that is named by a hub id, a folder or a GGUF file."""

    revision: str | None = flag(None, "Branch, tag or commit on the hub")
    trust_remote_code: bool = flag(False, "Run Python code of the checkpoint")
    dtype: str = flag("auto", "Precision; auto is the checkpoint's own", choices=DTYPES)
    device: str | None = flag(None, "Torch device, or auto for all GPUs (default: the best)")
    offload: str | None = flag(None, "Where blocks are stored until they are needed", choices=("disk", "cpu"))

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class SearchSettings:
    """What to search for, and on which text."""

    calibration: CalibrationSet | str | Iterable[str] | Mapping[str, float] | None = flag(
        None,
        "Text source; repeatable (default: wikitext2 for hub models, otherwise python-docs)",
        metavar="SOURCE[=W]",
        repeatable=True,
        weighted=True,
    )
    tokenizer: PreTrainedTokenizerBase | None = flag(None, "", python_only=True)
    run: str | Path | None = flag(None, "Run folder (default of prune: OUT + .run)", metavar="RUN")
    method: str = flag("sleb", "Search method; see: streamliner methods", metavar="NAME")
    objective: str = flag("loss", "What to minimise: loss, or kl (divergence from the dense model)", choices=OBJECTIVES)
    remove: int | str | None = flag(None, "Blocks to remove: 7, or 20% (rounded up)", metavar="N|P%")
    max_perplexity_increase: str | None = flag(None, "Allowed increase of calibration perplexity", metavar="P%")
    target_parameters: int | str | None = flag(None, "Largest number of parameters, such as 100M", metavar="N")
    target_bytes: int | str | None = flag(None, "Largest size of the weight files, such as 200MB", metavar="BYTES")
    target_speedup: float | None = flag(None, "Speed-up to reach on this machine, such as 1.25")
    speedup_of: str = flag("prompt", "What must be faster", choices=BENCHMARK_KINDS)
    target_accuracy_drop: str | None = flag(None, "Allowed loss of accuracy on --tasks, in points", metavar="P%")
    tasks: str | Iterable[str] = flag((), "Tasks for --target-accuracy-drop, such as arc_easy", metavar="NAMES")
    tasks_path: str | None = flag(None, "Folder with your own lm-eval tasks (YAML)", metavar="DIR")
    limit: int | None = flag(None, "Questions of each task (default: all)", minimum=1)
    frontier: bool = flag(False, "Best set for every number of blocks, as plan files")
    search_effort: str | None = flag(None, "Effort of sleb; adaptive skips candidates unlikely to win", choices=EFFORTS)
    set: Mapping[str, object] | Iterable[str] = flag(
        (), "Setting of the method; repeatable", metavar="KEY=VALUE", repeatable=True
    )
    protect_first: int | None = flag(None, "Blocks to keep at the start (default: the method's)")
    protect_last: int | None = flag(None, "Blocks to keep at the end (default: the method's)")
    num_samples: int | None = flag(None, "Windows of text (default: 128; CPU: 16)")
    sequence_length: int | None = flag(None, LENGTH)
    time_limit: str | float | None = flag(None, "Longest time of the search, such as 10m", metavar="TIME")
    batch_size: int = flag(1, BATCH_SIZE, minimum=1)
    memory_budget: int | str = flag("auto", "Memory besides the model: 500MB, 2GB, auto", metavar="BYTES")
    seed: int = flag(0, SEED)
    answers_only: bool = flag(False, ANSWERS_ONLY)
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        check_values(self)
        if self.search_effort and "effort" in pairs(self.set, "--set"):
            raise MethodError("The effort is given twice, by --search-effort and --set effort.")
        _ = self.memory_bytes, self.time_limit_seconds  # raise if they are none
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            flags = " and ".join(long_name(SearchSettings, name) for name in given)
            raise RemovalError(f"{flags} each say how much to remove.", "Give one of them.")
        if (self.target_accuracy_drop is None) != (not self.task_names):
            raise RemovalError("--target-accuracy-drop and --tasks go together.", "Give both, or neither.")
        for idle in ("tasks_path", "limit") if not self.task_names else ():
            if getattr(self, idle) is not None:
                raise RemovalError(f"{long_name(SearchSettings, idle)} has no effect without --tasks.")
        if self.target_speedup is None and self.speedup_of != default_of(SearchSettings, "speedup_of"):
            raise RemovalError("--speedup-of has no effect without --target-speedup.")
        if self.target_speedup is not None and not 1 < self.target_speedup < 100:
            raise RemovalError(f"--target-speedup {self.target_speedup:g} is no speed-up.", "Write for instance 1.25.")

    @property
    def method_settings(self) -> dict[str, Any]:
        """The hyper-parameters of the method, from `set`, `search_effort` and `protect_*`."""
        own = {"effort": self.search_effort, "protect_first": self.protect_first, "protect_last": self.protect_last}
        return pairs(self.set, "--set") | {name: value for name, value in own.items() if value is not None}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of lm-eval's tasks for `target_accuracy_drop`."""
        return names(self.tasks)

    @property
    def memory_bytes(self) -> int | None:
        """`memory_budget` in bytes; None for a share of what is free."""
        return None if self.memory_budget == "auto" else number(self.memory_budget, "--memory-budget", "bytes")

    @property
    def time_limit_seconds(self) -> float | None:
        """`time_limit` in seconds."""
        return None if self.time_limit is None else seconds(self.time_limit, "--time-limit")


@dataclass(frozen=True)
class CutSettings:
    """Which blocks to cut away."""

    plan: str | None = flag(None, "Plan file or run folder", metavar="FILE")
    blocks: str | Iterable[int] | None = flag(None, "Blocks to remove, such as 3,7,9", metavar="LIST")
    max_shard_size: int | str | None = flag(None, SHARD, metavar="BYTES")
    link: bool = flag(False, LINK)
    verify: bool = flag(True, VERIFY)
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        check_values(self)
        _ = self.max_shard_bytes  # raises if it is none

    @property
    def max_shard_bytes(self) -> int | None:
        """`max_shard_size` in bytes."""
        return None if self.max_shard_size is None else number(self.max_shard_size, "--max-shard-size", "bytes")


@dataclass(frozen=True)
class HubSettings:
    """Whether a result is uploaded too."""

    push_to_hub: str | None = flag(None, "Also upload the result to this repository", metavar="USER/NAME")
    private: bool = flag(False, "Create the repository as a private one")


@dataclass(frozen=True)
class PruneSettings:
    """What `prune` has besides the settings of searching and healing."""

    heal: bool = flag(False, "Also train: networks, or what --lora and --train-blocks say")
    fold_every: int | None = flag(None, "Blocks removed between folds (default: all)", metavar="N", minimum=1)
    max_shard_size: int | str | None = flag(None, SHARD, metavar="BYTES")
    link: bool = flag(False, LINK)
    verify: bool = flag(True, VERIFY)

    def __post_init__(self) -> None:
        check_values(self)

    def cutting(self, search: SearchSettings) -> CutSettings:
        """How the blocks that a search found are cut away."""
        return CutSettings(
            max_shard_size=self.max_shard_size,
            link=self.link,
            verify=self.verify,
            overwrite=search.overwrite,
            quiet=search.quiet,
        )


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate on."""

    dense: ModelLike | None = flag(None, "Model to compare the others with", metavar="MODEL")
    tokenizer: PreTrainedTokenizerBase | None = flag(None, "", python_only=True)
    perplexity: str | Iterable[str] = flag(
        (), "Text source, such as wikitext2:test; repeatable", metavar="SOURCE", repeatable=True
    )
    sequence_length: int | None = flag(None, "Tokens of a window (default: 2048, or the model's limit)")
    stride: int | None = flag(None, "Tokens predicted per window, if windows overlap")
    num_samples: int | None = flag(None, "Windows of each text (default: all)", minimum=1)
    tasks: str | Iterable[str] = flag((), "Tasks of lm-eval, such as arc_easy,piqa", metavar="NAMES")
    tasks_path: str | None = flag(None, "Folder with your own lm-eval tasks (YAML)", metavar="DIR")
    limit: int | None = flag(None, "Questions of each task (default: all)", minimum=1)
    num_fewshot: int | None = flag(None, "Examples before each question (default: the task's)", minimum=0)
    apply_chat_template: bool = flag(False, "Put questions into the model's chat template")
    as_draft_for: ModelLike | None = flag(None, "Model for which the others are measured as drafts", metavar="MODEL")
    draft_prompts: int = flag(16, "Prompts to measure a draft on", minimum=1)
    draft_tokens: int = flag(64, "Tokens after each of these prompts", minimum=4)
    samples: int = flag(0, "Number of prompts to continue and print", minimum=0)
    batch_size: int | str = flag(1, "Options in one forward of tasks; auto: what fits", metavar="N|auto")
    cache: bool = flag(True, "Reuse cached results")
    output: str | Path | None = flag(None, RESULT, "--output", "-o", metavar="FILE")
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        """Raise EvaluationError for a setting that has no effect: the user wanted something measured."""
        check_values(self)
        _ = self.options_at_once  # raises if it is none
        for needed, given, dependent in (
            ("perplexity", self.texts, ("sequence_length", "stride", "num_samples")),
            ("tasks", self.task_names, ("tasks_path", "limit", "num_fewshot", "apply_chat_template", "batch_size")),
            ("as_draft_for", self.as_draft_for, ("draft_prompts", "draft_tokens")),
        ):
            cls = type(self)
            idle = [name for name in dependent if not given and getattr(self, name) != default_of(cls, name)]
            if idle:
                name, flag = (long_name(cls, each) for each in (idle[0], needed))
                raise EvaluationError(f"{name} has no effect without {flag}.", f"Add {flag}, or leave out {name}.")

    @property
    def texts(self) -> tuple[str, ...]:
        """Text sources for perplexity."""
        return (self.perplexity,) if isinstance(self.perplexity, str) else tuple(self.perplexity)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of lm-eval's tasks."""
        return names(self.tasks)

    @property
    def options_at_once(self) -> int | str:
        """`batch_size` as a number, or "auto"."""
        return "auto" if self.batch_size == "auto" else number(self.batch_size, "--batch-size", "sequences")


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to time. None stands for SLEB's settings on a GPU (arXiv 2402.09025, section 4), smaller ones on a CPU."""

    dense: ModelLike | None = flag(None, "Model to compare the others with", metavar="MODEL")
    prompt_tokens: int | None = flag(None, "Tokens of the prompt (default: 2048; CPU: 256)", minimum=2)
    batch_size: int | None = flag(None, BATCH_SIZE + ", in generation (default: 64; CPU: 1)", minimum=1)
    context_tokens: int | None = flag(None, "Prompt tokens in generation (default: 64; CPU: 32)", minimum=1)
    new_tokens: int | None = flag(None, "Generated tokens (default: 128; CPU: 32)", minimum=1)
    repeats: int | None = flag(None, "Measurements of each model (default: 7)", minimum=1)
    engine: str = flag("transformers", "Program that runs the models", choices=ENGINES, plugins="engine")
    output: str | Path | None = flag(None, RESULT, "--output", "-o", metavar="FILE")
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class VerifySettings:
    """What to compare a model with, and where a mended copy goes."""

    dense: ModelLike | None = flag(None, "Model it was cut from (default: as recorded)", metavar="MODEL")
    mend: bool = flag(False, "Write a corrected copy")
    output: str | Path | None = flag(None, "Folder or .gguf file of the copy", "--output", "-o", metavar="OUT")
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")

    def __post_init__(self) -> None:
        check_values(self)
        if self.output is not None and not self.mend:
            raise OutputError("--output has no effect without --mend.", "Add --mend, or leave out --output.")
        if self.mend and self.output is None:
            raise OutputError("--mend writes a mended copy, and needs a name for it.", "Add -o OUT.")


@dataclass(frozen=True)
class ReportSettings:
    """Where the report goes."""

    output: str = flag("report.html", "HTML file; Markdown and pictures next to it", "--output", "-o", metavar="FILE")
    overwrite: bool = flag(False, OVERWRITE)
    quiet: bool = flag(False, QUIET, "--quiet", "-q")


@dataclass(frozen=True)
class InspectSettings:
    """What `inspect` shows."""

    quiet: bool = flag(False, QUIET, "--quiet", "-q")
