"""Eight CPU devices and strict promotion for every test; a program is compiled once a session."""

import os
import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")

_FOLDER = tempfile.TemporaryDirectory(prefix="cdl_jax-programs-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _FOLDER.name)  # processes that tests start
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
