"""What a new version must show before a replica serves it."""

from collections.abc import Callable
from typing import Any

import numpy as np

Gate = Callable[[Any], str | None]
"""Takes a candidate's tree; returns None to let it pass, or why it must not be served."""


PredictFn = Callable[[Any, Any, Any], Any]
"""`(params, model_state, inputs) -> outputs`, one row a sample."""


def predict(predict_fn: PredictFn, tree: Any, inputs: Any) -> Any:
    """Outputs of a deployed tree, which has no `model_state` where a model keeps none."""
    return predict_fn(tree["params"], tree.get("model_state", {}), inputs)


class HeldOut:
    """A gate: accuracy on held-out samples must not fall far below the best that was served.

    Args:
      predict_fn: gives scores [N, classes].
      inputs, labels: the held-out samples; labels int [N].
      bound: by how much the share of right answers may fall, 0 to 1.
    """

    def __init__(self, predict_fn: PredictFn, inputs: Any, labels: Any, *, bound: float = 0.02):
        if not 0 <= bound <= 1:
            raise ValueError(f"bound is {bound}; give a share of right answers, 0 to 1")
        if not len(labels):
            raise ValueError("there are no held-out samples; give at least one")
        self._predict, self._inputs, self._labels = predict_fn, inputs, np.asarray(labels)
        self._bound, self.best = bound, 0.0

    def __call__(self, tree: Any) -> str | None:
        """See `Gate`."""
        scores = np.asarray(predict(self._predict, tree, self._inputs))
        right = float((scores.argmax(-1) == self._labels).mean())
        if right < self.best - self._bound - 1e-9 or not np.isfinite(scores).all():
            return (
                f"{right:.4f} of {len(self._labels)} held-out samples are right, the best version "
                f"served had {self.best:.4f} and {self._bound} less is allowed"
            )
        self.best = max(self.best, right)
        return None
