"""One run from settings to summary: data, initial model, log, stream."""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import tomli_w

from cdl_jax.core.step import TrainState, deployed, init_state
from cdl_jax.data import ImageData, load
from cdl_jax.deploy import Publisher, UpdateLog, open_log
from cdl_jax.deploy.log import Ownership
from cdl_jax.errors import ConfigError
from cdl_jax.models import Classifier, classifier, create_model
from cdl_jax.native import available
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.initial import Trained, fit
from cdl_jax.train.loop import ContinuousTrainer
from cdl_jax.train.records import Bar, Records, Summary
from cdl_jax.train.strategies import plan
from cdl_jax.wire import signing


def run(config: TrainConfig) -> Summary:
    """Trains an initial model, then learns from the stream and publishes every version.

    Raises:
      CdlError: in one sentence, what cannot be and how to mend it. Nothing is lost: every
        version that was acknowledged is in the log.
    """
    key = None if config.sign_key is None else signing().read_signing_key(config.sign_key)
    data = load(config.dataset, data_dir=config.data_dir)
    _check_stream(config, data)
    if jax.default_backend() == "cpu" and not available():
        print("cdl-jax: no fused CPU kernels here (no C++ compiler at install): XLA's are slower",
              file=sys.stderr)  # fmt: skip
    if config.log is None:
        return _trained(config, data)
    log = open_log(config.log, create=True)
    with log.claim() as owner:
        return _trained(config, data, log, owner, key)


def program() -> dict[str, Any]:
    """What the bits of a compiled step depend on besides the settings."""
    return {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "form": "jit",
        "native": available(),
    }


def _trained(
    config: TrainConfig,
    data: ImageData,
    log: UpdateLog | None = None,
    owner: Ownership | None = None,
    key: Any = None,
) -> Summary:
    records = Records(config.run)
    try:
        records.text("config.toml", config_toml(config))
        model = classifier(create_model(config.model, data.classes), (data.mean, data.std))
        state = _initial_state(config, data, model)
        trainer = ContinuousTrainer(config, data, model, state, records)
        if log is not None and owner is not None:
            trainer.publisher = Publisher.begin(
                log,
                owner,
                deployed(state),
                program=program(),
                config=config.bits_depend_on(),
                example=trainer.example(),
                snapshot_every=config.snapshot_every,
                snapshot_bytes=config.snapshot_bytes,
                retention=config.retention(),
                on_failure=config.failure_policy(),
                key=key,
            )
        with Bar(config.strategy, trainer.stream_size) as bar:
            summary = trainer.run(bar)
        if trainer.publisher is not None:
            trainer.publisher.outbox.flush()
        records.text("summary.json", summary.to_json())
        return summary
    finally:
        records.close()


def config_toml(config: TrainConfig) -> str:
    """The settings as TOML; those that are None are left out."""
    return tomli_w.dumps({k: v for k, v in vars(config).items() if v is not None})


def _initial_state(config: TrainConfig, data: ImageData, model: Classifier) -> TrainState:
    chosen = plan(config)
    key = jax.random.key(config.seed)
    params, model_state = model.init_fn(key, jnp.asarray(data.images[:1]))
    start = Trained(params, model_state, chosen.optimizer.init(params))
    count, epochs = config.initial_samples, config.epochs
    with Bar("initial training", epochs * -(-count // config.batch_size)) as bar:
        trained = fit(
            start, data, count, model.loss_fn, chosen.optimizer,
            epochs=epochs, batch_size=config.batch_size, seed=config.seed, on_step=bar.advance,
        )  # fmt: skip
    state = init_state(trained.params, chosen.tx, model_state=trained.model_state, key=key)
    # The optimizer's state carries over (Prapas et al. 2021, section 5); the residual begins at 0.
    return state._replace(opt_state=(trained.opt_state, *state.opt_state[1:]))


def _check_stream(config: TrainConfig, data: ImageData) -> None:
    if config.initial_samples >= len(data):
        raise ConfigError(
            f"initial_samples is {config.initial_samples}, but {data.name} has {len(data)}: "
            "nothing is left for the stream; give fewer"
        )
