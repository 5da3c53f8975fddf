"""The model with which a run begins: random or given weights, the initial training, the state."""

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core.step import TrainState, init_state
from cdl_jax.data.samples import Samples, inputs_of
from cdl_jax.models import Classifier
from cdl_jax.models.torchvision import load_torchvision
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.initial import Trained, fit, fit_step, shared
from cdl_jax.train.inputs import described
from cdl_jax.train.program import program
from cdl_jax.train.progress import Bar
from cdl_jax.train.strategies import plan

_BEGINNING = (
    "dataset", "scenario", "model", "seed", "initial_samples", "epochs", "batch_size",
    "learning_rate", "init_weights", "inputs", "limit",
)  # fmt: skip


def initial_state(
    config: TrainConfig, data: Samples, model: Classifier, cluster: Cluster
) -> TrainState:
    """The state behind the initial training, which runs that share `--initial` do once."""
    facts = {name: x for name, x in described(config, data).items() if name in _BEGINNING}
    facts["program"] = program(cluster)
    like = jax.eval_shape(lambda: untrained(config, data, model))
    trained = shared(config.initial, facts, like, lambda: _fitted(config, data, model, cluster))
    return deployable(config, trained)


def _fitted(config: TrainConfig, data: Samples, model: Classifier, cluster: Cluster) -> Trained:
    start, step = (
        beginning(config, data, model),
        fit_step(model.loss_fn, plan(config).optimizer, cluster.replicated),
    )
    count, epochs, batch_size = config.initial_samples, config.epochs, config.batch_size
    with Bar("initial training", epochs * -(-count // batch_size)) as bar, cluster.over():
        trained = fit(
            cluster.replicate(start), lambda index: cluster.put(data.batch(index)), count, step,
            epochs=epochs, batch_size=batch_size, seed=config.seed, on_step=bar.advance,
        )  # fmt: skip
    return cluster.local(trained)


def beginning(config: TrainConfig, data: Samples, model: Classifier) -> Trained:
    """Where training from scratch starts: at random weights, or at those of a file."""
    start = untrained(config, data, model)
    if config.init_weights is None:
        return start
    trees = load_torchvision(config.init_weights, config.model, start.params, start.model_state)
    params, model_state = jax.tree.map(jnp.asarray, trees)
    return Trained(params, model_state, plan(config).optimizer.init(params))


def untrained(config: TrainConfig, data: Samples, model: Classifier) -> Trained:
    """Random weights by the seed, and the optimizer's first state."""
    one = jax.tree.map(jnp.asarray, inputs_of(data.batch(np.zeros(1, np.int64))))
    params, model_state = model.init_fn(jax.random.key(config.seed), one)
    return Trained(params, model_state, plan(config).optimizer.init(params))


def deployable(config: TrainConfig, trained: Trained) -> TrainState:
    """The state in which the stream finds a model that was trained from scratch."""
    key, chosen = jax.random.key(config.seed), plan(config)
    state = init_state(trained.params, chosen.tx, model_state=trained.model_state, key=key)
    # The optimizer's state carries over (Prapas et al. 2021, section 5); the residual begins at 0.
    opt_state = chosen.with_optimizer(state.opt_state, trained.opt_state)
    return state._replace(opt_state=opt_state)
