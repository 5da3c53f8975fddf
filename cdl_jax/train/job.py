"""One run from settings to summary: data, initial model or checkpoint, log, stream."""

import contextlib
import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import tomli_w

from cdl_jax.core.step import deployed
from cdl_jax.data.cache import cache_folder
from cdl_jax.data.fingerprint import fingerprint
from cdl_jax.data.live import LiveData, Source
from cdl_jax.data.samples import Samples
from cdl_jax.deploy import Publisher, UpdateLog, open_log
from cdl_jax.deploy.log import Ownership
from cdl_jax.models import Classifier
from cdl_jax.native import available
from cdl_jax.train.beginning import beginning, deployable, initial_state, untrained
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.drift import Watch
from cdl_jax.train.inputs import described, metrics_for, model_for, open_data
from cdl_jax.train.lock import locked
from cdl_jax.train.loop import ContinuousTrainer
from cdl_jax.train.program import program
from cdl_jax.train.progress import Bar, Summary
from cdl_jax.train.records import Records
from cdl_jax.train.resume import (
    Start,
    Writer,
    check_limit,
    check_log,
    check_same,
    parsed,
    sampler_for,
    start_from,
)
from cdl_jax.train.saved import Saved
from cdl_jax.train.tracking import check_installed
from cdl_jax.wire import signing

# Each process's own, as the first one's are.
_OWN = dict.fromkeys(("data_dir", "log", "run", "process_id", "devices", "track", "sign_key"))


def run(config: TrainConfig, source: Source | None = None) -> Summary:
    """Trains an initial model, then learns from the stream and publishes every version.

    Args:
      config: checked settings.
      source: the live stream, where `dataset` is "iterator"; see `cdl_jax.data.live`.

    Raises:
      CdlError: in one sentence, what cannot be and how to mend it. Nothing is lost: every
        version that was acknowledged is in the log.
    """
    _keep_programs()
    cluster = Cluster.join(config.coordinator, config.processes, config.process_id, config.devices)
    with cluster.together():
        return _run(config, source, cluster)


def _run(config: TrainConfig, source: Source | None, cluster: Cluster) -> Summary:
    batches = "trigger" if config.strategy == "online" else "batch_size"
    cluster.check_shares(batches, getattr(config, batches))
    if not cluster.leads:
        config = dataclasses.replace(config, log=None, run=None, sign_key=None)
    key = None if config.sign_key is None else signing().read_signing_key(config.sign_key)
    if jax.default_backend() == "cpu" and not available():
        print("cdl-jax: no fused CPU kernels here (no C++ compiler at install): XLA's are slower",
              file=sys.stderr)  # fmt: skip
    with contextlib.ExitStack() as stack:
        if config.run is not None:
            stack.enter_context(locked(config.run))
        data = open_data(config, source)
        if isinstance(data, LiveData):
            stack.callback(data.close)
        if cluster.processes > 1:
            held = fingerprint(data, config.initial_samples + (config.limit or len(data)))
            cluster.check_same({**_alike(config), **program(cluster), **held})
        if config.log is None:
            return _trained(config, data, cluster)
        log = open_log(config.log, create=True)
        owner = stack.enter_context(log.claim())
        return _trained(config, data, cluster, log, owner, key)


def _alike(config: TrainConfig) -> dict[str, Any]:
    """The settings in which all processes are alike, the initial weights by their content."""
    return {**vars(config), **config.bits_depend_on(), **_OWN}


def _keep_programs() -> None:
    """Compiled steps stay beside the user's other caches: a resume need not compile again."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))


def _trained(
    config: TrainConfig,
    data: Samples,
    cluster: Cluster,
    log: UpdateLog | None = None,
    owner: Ownership | None = None,
    key: Any = None,
) -> Summary:
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(contextlib.closing(Records(config.run)))
        writer, settings = None, described(config, data)
        compiled = program(cluster, "scan" if config.scan > 1 else "jit")
        if records.folder is not None:
            facts = {
                "program": compiled,
                "config": settings | config.scores_depend_on(),
                "lineage": None,
            }
            writer = Writer(records.folder, keep=config.keep_checkpoints, facts=facts)
            stack.enter_context(contextlib.closing(writer))
        model = model_for(config, data)
        _check_extras(config)
        start = _start(config, data, model, records, writer, log, cluster)
        check_limit(config, records.triggers_after(int(start.state.version)))
        trainer = ContinuousTrainer(
            config, data, model, start, lambda: beginning(config, data, model), records, writer,
            cluster,
        )  # fmt: skip
        if log is not None and owner is not None:
            tree = deployed(cluster.local(trainer.state))
            publisher = _publisher(config, compiled, settings, log, owner, trainer, tree, key)
            trainer.delivery.publisher = publisher
            if start.progress is not None:
                publisher.bytes_since = start.progress["bytes_since"]
            if writer is not None:
                writer.facts["lineage"] = publisher.manifest.lineage.hex()
        records.track(config.trackers(), config.recorded())
        # Whatever refuses to go on has done so by now, and left the folder as it was.
        if start.progress is not None:
            records.text("config.toml", config_toml(config))
            records.resume()
        records.about({"program": compiled, "config": config.recorded()})
        if start.progress is None:
            trainer.keep()
        with Bar(config.strategy, trainer.left) as bar:
            summary = trainer.run(bar)
        if trainer.delivery.publisher is not None:
            trainer.delivery.publisher.outbox.flush()
        trainer.keep()
        records.text("summary.json", summary.to_json())
        return summary


def _check_extras(config: TrainConfig) -> None:
    """What is wrong or missing is told before the initial training, not after it."""
    metrics_for(config)
    Watch(config)
    if config.run is not None:
        check_installed(config.trackers())


def _start(
    config: TrainConfig,
    data: Samples,
    model: Classifier,
    records: Records,
    writer: Writer | None,
    log: UpdateLog | None,
    cluster: Cluster,
) -> Start:
    """From the run's newest checkpoint, or from initial training where there is none."""
    saved = _led(cluster, None if writer is None else writer.newest())
    if saved is None:
        records.text("config.toml", config_toml(config))
        # Where a kill came before the first checkpoint was whole, versions may be in the log.
        records.begin(again=log is not None and bool(log.head()))
        state = initial_state(config, data, model, cluster)
        initial = jax.tree.map(jnp.copy, deployed(state))
        if writer is not None:
            writer.save_initial(initial)
        return Start(state, initial, {}, None)
    if writer is not None:
        check_same(saved, config, writer)
    like = jax.eval_shape(lambda: deployable(config, untrained(config, data, model)))
    initial = _led(cluster, None if writer is None else writer.initial())
    assert initial is not None
    metrics_bytes = saved.record["progress"]["metrics_bytes"]
    # What a kill left behind the checkpoint's version is no part of it.
    lines = records.lines(saved.version, metrics_bytes) if config.on_drift else ()
    if cluster.processes > 1:
        lines = cluster.share(b"".join(lines)).splitlines()
    start = start_from(saved, initial, like, parsed(lines, config.run))
    start = start._replace(sampler=sampler_for(saved, config, data))
    if log is not None:
        check_log(saved, start.state, log, config)
    records.look(saved.version, metrics_bytes, again=_makes_again(saved, log, config))
    return start


def _makes_again(saved: Saved, log: UpdateLog | None, config: TrainConfig) -> bool:
    """Whether the versions behind the checkpoint are to come from the same samples as before.

    Not those of a new lineage that has none of them yet: its settings may cut the stream elsewhere.
    """
    begun = log is not None and (log.head() or 0) > saved.version
    return begun or not config.new_lineage


def _publisher(
    config: TrainConfig,
    compiled: dict[str, Any],
    settings: dict[str, Any],
    log: UpdateLog,
    owner: Ownership,
    trainer: ContinuousTrainer,
    tree: Any,
    key: Any,
) -> Publisher:
    return Publisher.begin(
        log,
        owner,
        tree,
        version=int(trainer.state.version),
        program=compiled,
        config=settings,
        example=trainer.example(),
        snapshot_every=config.snapshot_every,
        snapshot_bytes=config.snapshot_bytes,
        retention=config.retention(),
        on_failure=config.failure_policy(),
        key=key,
    )


def config_toml(config: TrainConfig) -> str:
    """The settings as TOML, without passwords; those that are None are left out."""
    return tomli_w.dumps({k: v for k, v in config.recorded().items() if v is not None})


def _led(cluster: Cluster, saved: Saved | None) -> Saved | None:
    """The first process's checkpoint, on every process."""
    content = saved.to_bytes() if saved is not None and cluster.processes > 1 else b""
    content = cluster.share(content)
    return Saved.from_bytes(content) if content else saved
