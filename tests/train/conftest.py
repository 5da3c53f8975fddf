import jax
import pytest

from cdl_jax.train.drift import DETECTORS


@pytest.fixture
def standard_promotion():
    """For what runs optax's Adam, which does not pass under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def a_drift_every_31_versions():
    """Makes the detector of a fall of accuracy see one as soon as it looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS, "accuracy", -1.0)
        yield
