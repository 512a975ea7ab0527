"""XLA flags of the tests' processes: programs that run once are compiled fast, not well.

Most of the tests' time was LLVM's and that of XLA's fusion emitters. To split a module into parts
that are compiled at the same time costs more than it gains where all cores are busy. XLA's passes,
collectives and buffers stay those that users get.
"""

from importlib.metadata import version


def quick_flags(devices: int | None = None) -> str:
    """XLA_FLAGS of a process, with `devices` virtual CPU devices or as many as JAX decides."""
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones have no other way
        flags.append("--xla_cpu_use_fusion_emitters=false")
    if devices is not None:
        flags.append(f"--xla_force_host_platform_device_count={devices}")
    return " ".join(flags)
