"""Eight virtual CPU devices, set before jax is imported; silent broadcasting is an error.

What is compiled once is not compiled again, in whichever process of the tests. Most of the tests'
time was LLVM's, on programs that run once: here it does not optimise. XLA does all the same: its
passes, collectives and buffers are those that users get.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),  # of two the last holds
        "--xla_force_host_platform_device_count=8",
    )
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest-xdist's workers have their parent's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="inf_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
