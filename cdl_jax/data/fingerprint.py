"""What data are known by: digests that differ where the data do, between lives and processes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from cdl_jax.data.samples import Samples

_BYTES = 1 << 28  # hashed in a fraction of a second
_ROWS = 4096


def fingerprint(data: Samples, stop: int) -> dict[str, str | int]:
    """What the samples up to `stop` are known by between processes, in JSON's types.

    All labels are hashed, and all fields; of more than 256 MiB, those of samples spread at random.
    """
    stop = min(stop, len(data))
    one = data.batch(np.zeros(1, np.int64))
    most = max(1, _BYTES // max(1, sum(x.nbytes for x in one.values())))
    index = np.arange(stop)
    if stop > most:
        index = np.sort(np.random.default_rng(0).choice(stop, most, replace=False))
    forms = repr([(n, x.dtype.str, x.shape) for n, x in sorted(one.items())])
    digest = xxhash.xxh3_128(forms.encode())
    for first in range(0, len(index), _ROWS):
        _hash(digest, data.batch(index[first : first + _ROWS]))
    labels = xxhash.xxh3_128(np.ascontiguousarray(data.labels[:stop]).data)
    return {
        "samples": len(data),
        "labels of the data": labels.hexdigest(),
        "content of the data": digest.hexdigest(),
    }


def facts(data: Samples, count: int) -> dict[str, Any]:
    """What the bits of a run depend on: fields, classes, and a digest of the first samples.

    Args:
      data: the samples.
      count: of the initial training; at most 1,000 of them, spread evenly, are hashed.
    """
    some = data.batch(np.unique(np.linspace(0, count - 1, min(count, 1000)).astype(np.int64)))
    digest = xxhash.xxh3_128()
    _hash(digest, some)
    fields = {n: [x.dtype.name, list(x.shape[1:])] for n, x in sorted(some.items())}
    return {"fields": fields, "classes": data.classes, "digest": digest.hexdigest()}


def _hash(digest: xxhash.xxh3_128, rows: Mapping[str, np.ndarray]) -> None:
    """Logs and checkpoints hold digests of `facts`: what is hashed, and in which order, stays."""
    for name, x in sorted(rows.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
