"""What the next sample of a live stream has to be like.

One that cannot be trained on is refused before it is kept: what is kept is met again at every
start, so a run would be blocked for good.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data.samples import LABEL, NOT_FINITE, odd_rows
from cdl_jax.data.spool import Row, Spool
from cdl_jax.errors import DataError

_AGAIN = "it is not kept: take it out of the stream, or mend it, and start the same command again"


def row_of(sample: Any, spool: Spool) -> Row:
    """A sample that may be the spool's next row, as arrays.

    Raises:
      DataError: when it is no dict.
    """
    if not isinstance(sample, Mapping):
        raise DataError(
            f"{spool.next_one({})} is a {type(sample).__name__}; give a dict of fields, such as "
            "{'x': [0.1, 2.0], 'label': 1}"
        )
    return {str(name): np.asarray(x) for name, x in sample.items()}


def check_finite_row(row: Row, spool: Spool) -> None:
    """Whether it holds finite numbers, but for the source's own.

    Raises:
      DataError: for a NaN, an infinity, or what is one in 32 bits.
    """
    odd = [name for name, x in row.items() if name[:1] != "_" and len(odd_rows(x[None]))]
    if odd:
        raise DataError(
            f"{spool.next_one(row)} has {NOT_FINITE.format(odd[0])}; {_AGAIN}, or give "
            "--model MODULE:FACTORY, which takes any numbers"
        )


def check_label(row: Row, classes: int, spool: Spool) -> None:
    """Whether its label is of the run's classes; 0: there are none.

    Raises:
      DataError: when it is not.
    """
    label = row.get(LABEL)
    if not classes or label is None or label.dtype.kind not in "biu" or label.ndim:
        return
    if not 0 <= label < classes:
        raise DataError(
            f"{spool.next_one(row)} has label {label}, but the run's are 0 to {classes - 1}; "
            f"{_AGAIN}, or give more --classes and a new --run and --log"
        )
