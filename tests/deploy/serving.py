"""What the server's tests serve: the small model's log and NumPy."""

import numpy as np

from cdl_jax.deploy.serve import ServeConfig

X_SHAPE = (7,)


def predict(params, model_state, inputs):
    """Outputs that a test can compute again: NumPy alone."""
    with np.errstate(all="ignore"):  # hostile inputs overflow
        hidden = np.tanh(inputs @ np.asarray(params["a"]["w"]) + np.asarray(params["a"]["b"]))
        return hidden @ np.asarray(params["c"]).astype(np.float32)


def config(log, **changes):
    settings = {
        "log": str(log), "backend": "numpy", "predict": "tests.deploy.serving:predict",
        "input_shape": X_SHAPE, "max_batch": 8, "max_body": 4000, "wait": 0.0,
    }  # fmt: skip
    return ServeConfig(**(settings | changes)).checked()
