"""Where the arrays of a training step lie: one mesh of all devices with two axes,

    data    each device works on its part of the batch;
    fsdp    as data, and parameters, optimiser state and averages are cut into as many pieces (Zhao et al. 2023).

The batch is cut over both axes. Of each array of the state, the largest dimension that the ``fsdp`` axis divides is cut
over it; arrays without one, and small ones, are whole on every device. The program is the same for any mesh: XLA puts
the sums over devices where they belong, and results differ by rounding alone.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SMALL = 1024
"""Arrays of fewer entries are not cut: a message costs more than their memory."""


def device_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes as a mesh (data, fsdp).

    Raises:
        ValueError: ``fsdp`` does not divide the number of devices.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        raise ValueError(f"fsdp must divide the {devices} device(s), got {fsdp}")
    return Mesh(np.array(jax.devices()).reshape(-1, fsdp), ("data", "fsdp"))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """The sharding of every array of ``state`` (arrays or ``jax.ShapeDtypeStruct``s), as a pytree like it."""
    pieces = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, n in enumerate(leaf.shape) if n % pieces == 0]
        if pieces == 1 or not fitting or leaf.size < SMALL:
            return NamedSharding(mesh, P())
        cut = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*(None,) * cut, "fsdp"))

    return jax.tree.map(place, state)


def batch_sharding(mesh: Mesh, *, stacked: bool = False) -> NamedSharding:
    """The sharding of a batch (B, ...), or, ``stacked``, of batches (k, B, ...)."""
    axes = ("data", "fsdp")
    return NamedSharding(mesh, P(None, axes) if stacked else P(axes))
