"""Small files for keeping and shipping sparse networks."""

from equipoise.shipping.sparse_file import (
    SparseFileSummary,
    SparseState,
    load_sparse,
    save_sparse,
)
from equipoise.shipping.sparse_tensor import SparseTensor

__all__ = ["SparseFileSummary", "SparseState", "SparseTensor", "load_sparse", "save_sparse"]
