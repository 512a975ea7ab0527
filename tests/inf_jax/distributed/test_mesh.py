"""The mesh: which device stands where, and which part of a batch lies on whose devices."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from inf_jax import train
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.distributed import mesh as meshes
from inf_jax.distributed.mesh import AXES, batch_devices, local_parts, make_mesh
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from tests.inf_jax.processes import finish, start, write_config

# A process of several: for each mesh, it gives its parts of a batch and looks at the whole.
PARTS = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh
from inf_jax.distributed.cluster import initialise
from inf_jax.data.loader import to_mesh
from inf_jax.distributed.mesh import AXES, batch_devices, local_parts, replicated
initialise()
devices = sorted(jax.devices(), key=lambda d: d.id)
for order, shape in json.loads(sys.argv[2]):
    mesh = Mesh(np.array([devices[i] for i in order]).reshape(shape), AXES)
    batch = np.arange(batch_devices(mesh) * 6).reshape(-1, 2)
    parts = local_parts(mesh)
    mine = np.concatenate([np.split(batch, batch_devices(mesh))[n] for n in parts])
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(to_mesh(mesh)(mine))
    print(json.dumps([parts, np.array_equal(whole.addressable_data(0), batch)]))
"""


def test_a_batch_is_the_same_whatever_the_order_of_the_devices(tmp_path):
    cases = [  # the order of the devices, a mesh, and the parts of processes 0 and 1
        ([0, 1, 2, 3], (2, 2, 1), [[0, 1], [2, 3]]),
        ([2, 3, 0, 1], (4, 1, 1), [[2, 3], [0, 1]]),
        ([0, 2, 3, 1], (2, 2, 1), [[0, 3], [1, 2]]),
        ([0, 1, 2, 3], (2, 1, 2), [[0], [1]]),
        ([0, 2, 1, 3], (1, 2, 2), [[0, 1], [0, 1]]),
        ([0, 1, 2, 3], (1, 1, 4), [[0], [0]]),
    ]
    shapes = json.dumps([case[:2] for case in cases])
    outs, codes = finish(
        start(tmp_path / "c.py", shapes, count=2, devices=4, program=("-c", PARTS))
    )
    assert codes == [0, 0], "\n".join(outs)
    for process, out in enumerate(outs):
        # gloo writes into the same lines
        found = list(map(json.loads, re.findall(r"\[\[[\d, ]+\], \w+\]", out)))
        assert found == [[parts[process], True] for _, _, parts in cases]


# The main, on a mesh whose devices alternate between the processes.
SHUFFLED = """
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.distributed import mesh
lay_out = mesh._lay_out
mesh._lay_out = lambda devices, shape: lay_out(devices[::2] + devices[1::2], shape)
run(run_distributed(train.main), train.__doc__)
"""


def test_training_is_the_same_whatever_the_order_of_the_devices(tiny_config, tmp_path):
    tiny_config.train.update({"steps": 3, "chunks_per_device": 2, "health": False})
    tiny_config.loss.objective = "uni(P)"
    tiny_config.mesh.fsdp = 2
    file, out_dir = write_config(tiny_config, tmp_path / "c.py"), tmp_path / "shuffled"
    options = {
        "count": 2,
        "devices": 4,
        "program": ("-c", SHUFFLED),
        "cache": tmp_path / "compiled",
    }
    outs, codes = finish(start(file, f"--config.out_dir={out_dir}", **options))
    assert codes == [0, 0], "\n".join(outs)
    train.main(tiny_config)  # on 8 devices, in order
    found, expected = (
        [line["loss"] for line in read_metrics(Path(folder) / "metrics.jsonl")]
        for folder in (out_dir, tiny_config.out_dir)
    )
    assert len(found) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_batch_is_split_over_data_and_fsdp():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert batch_devices(mesh) == 4 and local_parts(mesh) == [0, 1, 2, 3]
    assert mesh.devices.ravel().tolist() == jax.devices()


def slices(*sizes):
    """Devices of TPU slices, one of each in turn, as a process may list them."""
    found = [
        SimpleNamespace(platform="tpu", slice_index=n, number=i)
        for n, size in enumerate(sizes)
        for i in range(size)
    ]
    return sorted(found, key=lambda d: (d.number, d.slice_index))


@pytest.fixture
def plain_layout(monkeypatch):
    """Devices without coordinates stay in order."""
    monkeypatch.setattr(
        meshes.mesh_utils,
        "create_device_mesh",
        lambda shape, devices, **_: np.array(devices).reshape(shape),
    )
    monkeypatch.setattr(meshes, "Mesh", lambda devices, axes: devices)


def test_only_data_crosses_slices(plain_layout):
    placed = make_mesh(fsdp=2, tensor=2, devices=slices(8, 8))
    assert placed.shape == (4, 2, 2)
    of_slice = np.vectorize(lambda d: d.slice_index)(placed)
    np.testing.assert_array_equal(of_slice[:, 0, 0], [0, 0, 1, 1])
    assert (of_slice == of_slice[:, :1, :1]).all()
    numbers = np.vectorize(lambda d: d.number)(placed).reshape(2, 8)
    np.testing.assert_array_equal(numbers, [range(8), range(8)])


def test_slices_of_other_platforms_are_ignored():
    # GPUs give each host a number there
    devices = [SimpleNamespace(platform="gpu", slice_index=n) for n in range(4)]
    assert meshes._slices(devices) == [devices]


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((8,), {"fsdp": 3}, r"mesh\.fsdp=3 does not divide the 8 devices$"),
        (
            (8,),
            {"fsdp": 2, "tensor": 3},
            r"mesh\.fsdp=2 \* mesh\.tensor=3 does not divide the 8 d",
        ),
        (
            (4, 4),
            {"fsdp": 8},
            "fsdp=8 does not divide the 4 devices of a slice, .* crosses slices",
        ),
        ((4, 4), {"fsdp": 4, "tensor": 2}, "does not divide the 4 devices of a slice"),
        ((4, 2), {}, "slices differ in their devices: 4, 2"),
    ],
)
def test_impossible_meshes(plain_layout, sizes, options, message):
    with pytest.raises(UserError, match=message):
        make_mesh(**options, devices=slices(*sizes))


def test_heads_that_do_not_divide_are_refused(tiny_config):
    tiny_config.mesh.tensor = 8
    message = r"mesh\.tensor=8 must divide the heads and the ffn, .* has 4 and 64"
    with pytest.raises(UserError, match=message):
        make_training(run_config(tiny_config))


def test_parts_of_a_mesh_in_any_order():
    devices = np.array(jax.devices())[[3, 1, 0, 2]].reshape(2, 2, 1)
    assert local_parts(Mesh(devices, AXES)) == [0, 1, 2, 3]
