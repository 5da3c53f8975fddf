"""What the bits of a run depend on besides its settings and data."""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import jax

from cdl_jax.native import available
from cdl_jax.train.cluster import Cluster

# Their arithmetic, NumPy's draws among it; each release may order it otherwise.
_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax")
_SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
    "jax_threefry_partitionable", "jax_random_seed_offset", "jax_high_dynamic_range_gumbel",
    "jax_softmax_custom_jvp", "jax_use_direct_linearize", "jax_use_shardy_partitioner",
    "jax_disable_jit", "jax_disable_most_optimizations", "jax_optimization_level",
    "jax_exec_time_optimization_effort", "jax_cpu_collectives_implementation",
)  # fmt: skip
_ENVIRONMENT = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# Instructions by which compilers, Eigen, NumPy and the C library choose their arithmetic.
_VECTOR = re.compile(r"avx\w*|amx\w*|fma\w*|f16c|sse4\w*|asimd\w*|sve\w*|fphp|bf16|i8mm")
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_CACHE = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index0/size")


def program(cluster: Cluster | None = None, form: str = "jit") -> dict[str, Any]:
    """What the bits of a compiled step depend on besides the settings, in JSON's types.

    Args:
      cluster: the run's.
      form: of the steps, "jit" or "scan".
    """
    return {
        **(cluster or Cluster()).facts(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "driver": jax.devices()[0].client.platform_version,
        "cpu": _cpu(),
        "threads": _threads(),
        "flags": _flags(),
        **{name: os.environ.get(name, "") for name in _ENVIRONMENT},
        **{name: _setting(name) for name in _SETTINGS},
        "form": form,
        "native": available(),
    }


def _threads() -> int:
    """Of XLA's CPU client, which splits its sums by them; the variables come first for it, too."""
    for name in ("PJRT_NPROC", "NPROC"):
        if re.fullmatch(r"[+-]?\d+", words := os.environ.get(name, "").strip()):
            return max(0, int(words))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _cpu() -> str:
    """What two CPUs of other models must share to make the same bits.

    The first cache is in it since Eigen cuts its sums to fit.
    """
    info = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", info, re.MULTILINE)
    words = sorted(filter(_VECTOR.fullmatch, found[1].split())) if found else []
    cache = [_CACHE.read_text().strip()] if _CACHE.exists() else []
    return " ".join([platform.machine(), *cache, *words])


def _flags() -> str:
    """XLA's; a value that begins with no dash is a file of them."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    file = pathlib.Path(flags)
    return flags if flags[:1] in ("", "-") or not file.is_file() else file.read_text().strip()


def _setting(name: str) -> Any:
    """As it is in this context, where JAX has it so."""
    value = getattr(jax.config, name, jax.config.values.get(name))
    return value if isinstance(value, bool | int | float | str | None) else str(value)
