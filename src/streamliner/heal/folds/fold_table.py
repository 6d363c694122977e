"""What folds did, as people read it."""

from collections.abc import Sequence
from typing import Any

from streamliner.format import Table, loss


def fold_table(folds: Sequence[dict[str, Any]]) -> Table:
    """A row for each repair that was tried, from the JSON values of a healing's result."""
    rows = [["block", "fold", "module", "penalty", "loss before", "loss after", "kept"]]
    for each in folds:
        losses = (loss(each[name]) for name in ("loss_before", "loss_after"))
        kept = "yes" if each["kept"] else "no"
        fold = each.get("fold", "")  # an earlier release did not record it
        rows.append([str(each["block"]), fold, each["module"], f"{each['penalty']:g}", *losses, kept])
    caption = "Losses on held-out windows, nats per token. A repair that does not lower them is not kept."
    return Table(rows, "Repairs in closed form", caption)
