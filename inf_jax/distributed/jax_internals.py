"""The parts of JAX's private API that the processes of a run use, in one place.

For jax 0.10.2 to 0.11.2, which launch/constraints*.txt pin. There is no public way to

- reach the coordination service's key-value store and named barriers with a time limit
  (`jax.experimental.multihost_utils` goes through the devices and waits forever);
- detect a cluster (Slurm, TPU pod, MPI, ...) without joining it at once.
"""

from typing import Any


def coordination_client() -> Any | None:
    """The client of JAX's coordination service; None where this process runs alone."""
    from jax._src import distributed

    return distributed.global_state.client


def detect_cluster(
    devices: list[int] | None, timeout_s: int
) -> tuple[str | None, int, int, list[int] | None]:
    """(address, number of processes, this process's number, local device ids) of the cluster that
    JAX detects; address None where there is none. `devices` overrides the device ids."""
    from jax._src import clusters

    return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, devices, None, timeout_s
    )
