"""The redis-server of the tests, which skip where it is not installed."""

import shutil

import pytest

from experiments.deploy.broker import Broker

ABSENT = "redis-server is not installed (apt-get install redis-server)"
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason=ABSENT)

__all__ = ["Broker", "needs_redis"]
