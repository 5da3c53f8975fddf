"""Optional C++ kernels for the CPU: the bits of the XLA forms, sooner.

Importing this package imports neither JAX nor the kernels.
"""

import functools
import importlib

__all__ = ["available"]

_KERNELS = (
    "all_finite",
    "digest_change",
    "error_feedback_top_k",
    "full_digest",
    "most_changed",
    "read_entries",
    "rewrite_entries",
    "write_entries",
)


@functools.cache
def available() -> bool:
    """Whether the kernels were built and the running jaxlib accepts them.

    The first call starts JAX's backends and registers the kernels for the platform ``cpu``.

    Returns:
        False where the package was installed without a compiler, where JAX has no CPU
        platform, or where the kernels were built against a newer XLA than the one running, or
        from older sources than these; the XLA forms then do the work.
    """
    try:
        kernels = importlib.import_module("cdl_jax.native._kernels")
        jax = importlib.import_module("jax")
    except ImportError:
        return False
    try:
        # Order matters: a backend that starts after a registration it refuses does not start.
        jax.local_devices(backend="cpu")
        for name in _KERNELS:
            jax.ffi.register_ffi_target(f"cdl_jax_{name}", getattr(kernels, name), platform="cpu")
    except (RuntimeError, AttributeError):
        return False
    return True
