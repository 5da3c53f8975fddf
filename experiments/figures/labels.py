"""Names of cells for people."""

import re

_SPARSE = re.compile(r"(top_k|random_k)-([\d.e-]+)-(tensor|global)-(\w+?)(-before)?$")
PLAIN = {
    "full": "full retraining",
    "online-128": "online, trigger 128",
    "proactive-8-changed": "proactive, trigger 8, changed entries sent",
}


def label(cell: str) -> str:
    """What a cell is.

    Examples:
      >>> label("top_k-0.001-global-int8")
      'top-k 1e-3, global, int8'
      >>> label("proactive-8")
      'proactive, trigger 8'
    """
    if cell in PLAIN:
        return PLAIN[cell]
    if found := _SPARSE.match(cell):
        kind, share, scope, values, before = found.groups()
        order = ", before the optimizer" if before else ""
        form = "" if values == "float32" else f", {values}"
        where = "global" if scope == "global" else "per tensor"
        return f"{kind.replace('_', '-')} {density(share)}, {where}{form}{order}"
    kind, _, number = cell.rpartition("-")
    return f"QSGD, {number} bits" if kind == "qsgd" else f"{kind}, trigger {number}"


def density(share: float | str) -> str:
    """A density as a power of ten where it is one."""
    return f"{float(share):.0e}".replace("e-0", "e-")
