"""Eight CPU devices and strict promotion for every test; a program is compiled once a session."""

import atexit
import os
import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else inherited, by a worker
    _FOLDER = tempfile.TemporaryDirectory(prefix="cdl_jax-programs-")
    atexit.register(_FOLDER.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _FOLDER.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
