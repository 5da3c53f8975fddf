"""A small model that trains in no time, and a log of its versions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cdl_jax
from cdl_jax.deploy import Publisher, open_log
from cdl_jax.deploy.jax_model import JaxModel
from cdl_jax.deploy.numpy_model import NumpyModel
from tests.core.helpers import chained, lenient

MODELS = {"numpy": NumpyModel, "jax": JaxModel}


def loss_fn(params, model_state, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["a"]["w"] + params["a"]["b"])
    out = hidden @ params["c"].astype(jnp.float32)
    mean = 0.9 * model_state["mean"] + 0.1 * hidden.mean(0)
    return jnp.mean((out[:, 0] - batch["y"]) ** 2), ({"mean": mean}, {})


def new_state(tx, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "a": {"w": jnp.asarray(rng.standard_normal((7, 30)), jnp.float32), "b": jnp.zeros(30)},
        "c": jnp.asarray(rng.standard_normal((30, 1)), jnp.bfloat16),
        "n": jnp.arange(3),
    }
    return cdl_jax.init_state(params, tx, model_state={"mean": jnp.zeros(30)})


def batch(i):
    rng = np.random.default_rng(1000 + i)
    x = rng.standard_normal((16, 7)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}


class Run:
    """A trainer on a log of its own, one version a call."""

    def __init__(
        self,
        path,
        *,
        density=0.1,
        scope="tensor",
        values="float32",
        snapshot_every=5,
        update="sparse",
        **settings,
    ):
        sparsifier = cdl_jax.sparsify_top_k(density, scope=scope, values=values)
        self.tx = chained(optax.amsgrad(1e-2), sparsifier)
        if update != "sparse":
            self.tx = lenient(optax.amsgrad(1e-2))
        self.state = new_state(self.tx)
        self.step = cdl_jax.make_step(loss_fn, self.tx, update=update)
        self.log = open_log(str(path), create=True)
        self.owner = self.log.claim(patience=0.5)
        self.publisher = Publisher.begin(
            self.log,
            self.owner,
            cdl_jax.deployed(self.state),
            example=jax.eval_shape(self.step, self.state, None, batch(0))[1].update,
            snapshot_every=snapshot_every,
            **settings,
        )
        self.blobs = []

    def publish(self, count=1):
        for _ in range(count):
            self.state, info = self.step(self.state, None, batch(int(self.state.step)))
            version = int(info.update.version)
            due = self.publisher.snapshot_due(version)
            tree = cdl_jax.deployed(self.state) if due else None
            self.blobs.append(self.publisher.publish(jax.device_get(info.update), tree))

    def digest(self):
        return cdl_jax.tree_digest(cdl_jax.deployed(self.state))
