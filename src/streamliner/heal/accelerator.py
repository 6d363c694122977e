"""accelerate's `Accelerator` for a training run: devices, precision, processes, trackers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from streamliner.errors import HealingError, MissingExtraError
from streamliner.heal_settings import HealSettings
from streamliner.model.compat import hide_from_ddp, reset_accelerator
from streamliner.model.sharding import sharded_names


def make_accelerator(settings: HealSettings, dtype: torch.dtype, device: torch.device, folder: Path) -> Any:
    """The `Accelerator` for a model of this precision on this device; trackers write into `folder`.

    Raises HealingError if the precisions do not go together, or the launcher divides the model among processes.
    """
    from accelerate import Accelerator

    own = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
    precision = settings.mixed_precision or own
    if precision == "no" and own != "no":
        raise HealingError(
            f"The model is in {str(dtype).removeprefix('torch.')}, but networks are trained in float32.",
            "Leave out --mixed-precision no, or add --dtype float32.",
        )
    trackers = find_trackers(settings)
    logging = {"log_with": trackers, "project_dir": folder if trackers else None}
    reset_accelerator()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu", device_placement=False, **logging)
    kind = str(accelerator.distributed_type.value)
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise HealingError(
            f"The launcher divides the whole model among processes ({kind}), also what is trained.",
            "Launch it with data parallelism alone: torchrun --nproc-per-node 4 -m streamliner heal ... Then --shard "
            "divides the frozen blocks.",
        )
    return accelerator


def wrap(accelerator: Any, objective: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """What `accelerator.prepare` makes of both, also where blocks of the objective are divided among processes."""
    names = sharded_names(objective)
    if not names:
        return accelerator.prepare(objective, optimiser)  # type: ignore[no-any-return]
    # accelerate 1.15 wraps no model with divided parameters in DDP, although DDP can leave these out.
    mixed = accelerator.prepare_model(objective, evaluation_mode=True)
    hide_from_ddp(mixed, names)
    options = accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler else {}
    return DistributedDataParallel(mixed, **options), accelerator.prepare_optimizer(optimiser)


def find_trackers(settings: HealSettings) -> list[Any] | None:
    """accelerate's trackers by their names; None if none was asked for. Raises UserError if one is not available."""
    if not settings.trackers:
        return None
    from accelerate.tracking import filter_trackers

    try:
        trackers = filter_trackers(list(settings.trackers), ".")
    except ValueError as error:
        raise HealingError(f"accelerate has no such tracker: {error}") from error
    missing = set(settings.trackers) - {str(getattr(each, "value", each)) for each in trackers}
    if missing:
        raise MissingExtraError(f"The tracker {min(missing)}", "track")
    return list(trackers)
