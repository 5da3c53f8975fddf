"""Whether two processes hold the same data: digests that differ where the data do."""

import numpy as np
import xxhash

from cdl_jax.data.samples import Samples

_BYTES = 1 << 28  # hashed in a fraction of a second
_ROWS = 4096


def fingerprint(data: Samples, stop: int) -> dict[str, str | int]:
    """What the samples up to `stop` are known by, in JSON's types.

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
        for _, rows in sorted(data.batch(index[first : first + _ROWS]).items()):
            digest.update(np.ascontiguousarray(rows).data)
    labels = xxhash.xxh3_128(np.ascontiguousarray(data.labels[:stop]).data)
    return {
        "samples": len(data),
        "labels of the data": labels.hexdigest(),
        "content of the data": digest.hexdigest(),
    }
