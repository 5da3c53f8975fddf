"""One run from settings to summary: data, initial model or checkpoint, log, stream."""

import contextlib
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import tomli_w

from cdl_jax.core.step import TrainState, deployed, init_state
from cdl_jax.data import ImageData, load, scenario
from cdl_jax.data.cache import cache_folder
from cdl_jax.deploy import Publisher, UpdateLog, open_log
from cdl_jax.deploy.log import Ownership
from cdl_jax.errors import ConfigError
from cdl_jax.models import Classifier, classifier, create_model
from cdl_jax.models.torchvision import load_torchvision
from cdl_jax.native import available
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.initial import Trained, fit, fit_step, shared
from cdl_jax.train.loop import ContinuousTrainer
from cdl_jax.train.records import Bar, Records, Summary
from cdl_jax.train.resume import Start, Writer, check_log, check_same, start_from
from cdl_jax.train.strategies import plan
from cdl_jax.wire import signing


def run(config: TrainConfig) -> Summary:
    """Trains an initial model, then learns from the stream and publishes every version.

    Raises:
      CdlError: in one sentence, what cannot be and how to mend it. Nothing is lost: every
        version that was acknowledged is in the log.
    """
    key = None if config.sign_key is None else signing().read_signing_key(config.sign_key)
    _keep_programs()
    data = load(config.dataset, data_dir=config.data_dir)
    _check_stream(config, data)
    data = scenario(config.scenario, data, start=config.initial_samples, seed=config.seed)
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


def _keep_programs() -> None:
    """Compiled steps stay beside the user's other caches: a resume need not compile again."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))


def _trained(
    config: TrainConfig,
    data: ImageData,
    log: UpdateLog | None = None,
    owner: Ownership | None = None,
    key: Any = None,
) -> Summary:
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(contextlib.closing(Records(config.run)))
        writer = None
        if records.folder is not None:
            facts = {"program": program(), "config": config.bits_depend_on(), "lineage": None}
            writer = Writer(records.folder, keep=config.keep_checkpoints, facts=facts)
            stack.enter_context(contextlib.closing(writer))
        model = classifier(create_model(config.model, data.classes), (data.mean, data.std))
        start = _start(config, data, model, records, writer, log)
        records.about({"seed": config.seed, "program": program()})
        records.track(config.trackers(), vars(config))
        trainer = ContinuousTrainer(
            config, data, model, start, lambda: _beginning(config, data, model), records, writer
        )
        if log is not None and owner is not None:
            trainer.publisher = _publisher(config, log, owner, trainer, key)
            if start.progress is not None:
                trainer.publisher.bytes_since = start.progress["bytes_since"]
        if writer is not None and trainer.publisher is not None:
            writer.facts["lineage"] = trainer.publisher.manifest.lineage.hex()
        if start.progress is None:
            trainer.keep()
        with Bar(config.strategy, trainer.left) as bar:
            summary = trainer.run(bar)
        if trainer.publisher is not None:
            trainer.publisher.outbox.flush()
        trainer.keep()
        records.text("summary.json", summary.to_json())
        return summary


def _start(
    config: TrainConfig,
    data: ImageData,
    model: Classifier,
    records: Records,
    writer: Writer | None,
    log: UpdateLog | None,
) -> Start:
    """From the run's newest checkpoint, or from initial training where there is none."""
    saved = None if writer is None else writer.newest()
    if writer is None or saved is None:
        records.text("config.toml", config_toml(config))
        records.begin()
        state = _initial_state(config, data, model)
        initial = jax.tree.map(jnp.copy, deployed(state))
        if writer is not None:
            writer.save_initial(initial)
        return Start(state, initial, {}, None)
    check_same(saved, config, writer)
    like = jax.eval_shape(lambda: deployable(config, untrained(config, data, model)))
    start = start_from(saved, writer, like)
    if log is not None:
        check_log(saved, start.state, log, config)
    records.text("config.toml", config_toml(config))
    records.resume(saved.version, saved.record["progress"]["metrics_bytes"])
    return start


def _publisher(
    config: TrainConfig, log: UpdateLog, owner: Ownership, trainer: ContinuousTrainer, key: Any
) -> Publisher:
    return Publisher.begin(
        log,
        owner,
        deployed(trainer.state),
        version=int(trainer.state.version),
        program=program(),
        config=config.bits_depend_on(),
        example=trainer.example(),
        snapshot_every=config.snapshot_every,
        snapshot_bytes=config.snapshot_bytes,
        retention=config.retention(),
        on_failure=config.failure_policy(),
        key=key,
    )


def config_toml(config: TrainConfig) -> str:
    """The settings as TOML; those that are None are left out."""
    return tomli_w.dumps({k: v for k, v in vars(config).items() if v is not None})


_BEGINNING = (
    "dataset", "scenario", "model", "seed", "initial_samples", "epochs", "batch_size",
    "learning_rate", "init_weights",
)  # fmt: skip


def _initial_state(config: TrainConfig, data: ImageData, model: Classifier) -> TrainState:
    facts = {name: x for name, x in config.bits_depend_on().items() if name in _BEGINNING}
    facts["program"] = program()
    like = jax.eval_shape(lambda: untrained(config, data, model))
    trained = shared(config.initial, facts, like, lambda: _fitted(config, data, model))
    return deployable(config, trained)


def _fitted(config: TrainConfig, data: ImageData, model: Classifier) -> Trained:
    count, epochs, batch_size = config.initial_samples, config.epochs, config.batch_size
    with Bar("initial training", epochs * -(-count // batch_size)) as bar:
        return fit(
            _beginning(config, data, model), data.batch, count,
            fit_step(model.loss_fn, plan(config).optimizer),
            epochs=epochs, batch_size=batch_size, seed=config.seed, on_step=bar.advance,
        )  # fmt: skip


def _beginning(config: TrainConfig, data: ImageData, model: Classifier) -> Trained:
    """Where training from scratch starts: at random weights, or at those of a file."""
    start = untrained(config, data, model)
    if config.init_weights is None:
        return start
    trees = load_torchvision(config.init_weights, config.model, start.params, start.model_state)
    params, model_state = jax.tree.map(jnp.asarray, trees)
    return Trained(params, model_state, plan(config).optimizer.init(params))


def untrained(config: TrainConfig, data: ImageData, model: Classifier) -> Trained:
    """Random weights by the seed, and the optimizer's first state."""
    params, model_state = model.init_fn(jax.random.key(config.seed), jnp.asarray(data.images[:1]))
    return Trained(params, model_state, plan(config).optimizer.init(params))


def deployable(config: TrainConfig, trained: Trained) -> TrainState:
    """The state in which the stream finds a model that was trained from scratch."""
    key, chosen = jax.random.key(config.seed), plan(config)
    state = init_state(trained.params, chosen.tx, model_state=trained.model_state, key=key)
    # The optimizer's state carries over (Prapas et al. 2021, section 5); the residual begins at 0.
    opt_state = chosen.with_optimizer(state.opt_state, trained.opt_state)
    return state._replace(opt_state=opt_state)


def _check_stream(config: TrainConfig, data: ImageData) -> None:
    if config.initial_samples >= len(data):
        raise ConfigError(
            f"initial_samples is {config.initial_samples}, but {data.name} has {len(data)}: "
            "nothing is left for the stream; give fewer"
        )
