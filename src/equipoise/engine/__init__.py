"""Layers that own only their active weights, and kernels that compute only those."""

from equipoise.engine.convert import to_engine as to_engine
from equipoise.engine.network import to_dense as to_dense
