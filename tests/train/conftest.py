import jax
import pytest


@pytest.fixture
def standard_promotion():
    """For what runs optax's Adam, which does not pass under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
