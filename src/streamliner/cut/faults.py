"""What `streamliner verify` finds wrong with the files of a model."""

from dataclasses import asdict, dataclass

from streamliner.cut.checkpoint import CheckpointCut
from streamliner.cut.gguf import GgufCut

NEEDS_DENSE = "The files do not show which blocks were removed: name the dense model with --dense."


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: a file, a key of the config or of a GGUF file, or a tensor.
        what: what is wrong with it.
        mend: what `--mend` does about it; "" if it can do nothing.
    """

    where: str
    what: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """As a JSON value."""
        return asdict(self)


@dataclass(frozen=True)
class Checkup:
    """What is known about the files of a model, from names, shapes and keys.

    Attributes:
        faults: what is wrong; empty if nothing is.
        removed: blocks of the dense model that are not there; None if that is not known.
        num_blocks: blocks of that dense model.
        mended: what `--mend` would write; None where there is no fault, or one that cannot be mended.
        trained: tensors that begin with other values than in the dense model, where they were compared.
        unchecked: why it is not known whether all tensors are there; "" if it is.
    """

    faults: tuple[Fault, ...]
    removed: tuple[int, ...] | None = None
    num_blocks: int = 0
    mended: CheckpointCut | GgufCut | None = None
    trained: tuple[str, ...] = ()
    unchecked: str = ""

    @property
    def beyond_mending(self) -> tuple[Fault, ...]:
        """The faults that cannot be mended."""
        return tuple(fault for fault in self.faults if not fault.mend)


def numbered_with_holes(where: str, indices: tuple[int, ...]) -> list[Fault]:
    """The fault if the numbers of blocks, in order, are not 0 to N - 1; nothing if they are."""
    if indices == tuple(range(len(indices))):
        return []
    missing = ", ".join(str(index) for index in range(indices[-1]) if index not in indices)
    what = f"Numbers of blocks are missing: {missing} of 0 to {indices[-1]}."
    return [Fault(where, what, "numbers the blocks again.")]
