"""The log of versions, its one writer, and the replicas that follow it. Needs no Flax, no optax."""

from cdl_jax.deploy.log import Manifest, UpdateLog, open_log
from cdl_jax.deploy.publisher import Publisher
from cdl_jax.deploy.replica import Replica

__all__ = ["Manifest", "Publisher", "Replica", "UpdateLog", "open_log"]
