"""What runs after the last block, trained whole: the final norm and the head."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from streamliner.errors import HealingError
from streamliner.model.blocks import Blocks
from streamliner.model.last_map import modules_after_stack
from streamliner.model.parts import find_part


class TrainedHead(nn.Module):
    """Trainable copies, in float32, of the modules of a model that run after its last block; they start equal.

    Raises HealingError if one of them shares weights with another part, as a head does that is the embeddings too.
    """

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._of = [blocks.model]  # in a list, so that torch does not take it for a part of this module
        self._paths = modules_after_stack(blocks)
        originals = [find_part(blocks.model, path) for path in self._paths]
        own = {id(parameter) for module in originals for parameter in module.parameters()}
        every = blocks.model.named_parameters(remove_duplicate=False)
        shared = [name for name, each in every if id(each) in own and name.rpartition(".")[0] not in self._paths]
        if shared:
            raise HealingError(
                f"The head of {type(blocks.model).__name__} shares weights with {shared[0]}: training it would change "
                "that too.",
                "Leave out --train-head; --train-blocks N trains the last N blocks.",
            )
        self.copies = nn.ModuleList(copy.deepcopy(each).float().requires_grad_(True) for each in originals)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the model runs with the copies."""
        with ExitStack() as stack:
            for path, module in zip(self._paths, self.copies, strict=True):
                parent, _, name = path.rpartition(".")
                holder = find_part(self._of[0], parent)
                stack.callback(setattr, holder, name, getattr(holder, name))
                setattr(holder, name, module)
            yield

    def merge(self) -> list[nn.Parameter]:
        """Put the copies' weights into the model, in new memory; returns the parameters there."""
        changed: list[nn.Parameter] = []
        for path, module in zip(self._paths, self.copies, strict=True):
            original = find_part(self._of[0], path)
            for tensor in (*original.parameters(), *original.buffers()):
                tensor.data = tensor.data.clone()
            original.load_state_dict(module.state_dict())
            changed += original.parameters()
        return changed
