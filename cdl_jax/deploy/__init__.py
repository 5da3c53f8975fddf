"""The log of versions, its one writer, and the replicas that follow it. Needs no Flax, no optax."""

from cdl_jax.deploy.gate import HeldOut
from cdl_jax.deploy.log import Manifest, UpdateLog, open_log
from cdl_jax.deploy.outbox import FailurePolicy
from cdl_jax.deploy.publisher import Publisher
from cdl_jax.deploy.replica import Replica
from cdl_jax.deploy.retention import Retention

__all__ = [
    "FailurePolicy",
    "HeldOut",
    "Manifest",
    "Publisher",
    "Replica",
    "Retention",
    "UpdateLog",
    "open_log",
]
