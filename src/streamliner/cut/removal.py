"""Which blocks stay, and their new numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Removal:
    """Which blocks stay of how many; indices are those of the dense model."""

    kept: tuple[int, ...]
    num_blocks: int

    @classmethod
    def of(cls, removed: tuple[int, ...], num_blocks: int) -> Removal:
        """The removal of these blocks."""
        return cls(tuple(index for index in range(num_blocks) if index not in removed), num_blocks)

    @property
    def numbers(self) -> dict[int, int]:
        """Index in the dense model -> index in the cut model, of the kept blocks."""
        return {old: new for new, old in enumerate(self.kept)}

    def new(self, old: int) -> int:
        """Index in the cut model of a kept block."""
        return self.kept.index(old)
