"""What there is to choose from, and what of it is on this machine; torch is not imported."""

from __future__ import annotations

from typing import get_args

from rich.console import Console
from rich.table import Table

from equipoise.data import dataset_names
from equipoise.data import describe as describe_dataset
from equipoise.data.places import cache_folder, candidate_folders, data_roots
from equipoise.models import describe as describe_model
from equipoise.models import model_names
from equipoise.settings import CorrectorName, ObjectiveName, TopologyName

TOPOLOGIES = {
    "dense": "every weight, for comparison",
    "static": "a fixed random mask",
    "set": "drops the smallest weights, grows at random",
    "rigl": "drops the smallest weights, grows where the gradient is largest",
    "set_itop": "set, rewired rarely and to the end, as In-Time Over-Parameterization does",
    "rigl_itop": "rigl, rewired rarely and to the end, as In-Time Over-Parameterization does",
    "bsr": "follows the signs of the weights, refilled at random after every step (BSR-Net)",
}
CORRECTORS = {
    "none": "plain gradients; 1 pass an epoch",
    "agent": "as published: coefficient from losses, times gamma; 10/3 passes an epoch",
    "no_gamma": "agent without the factor gamma; 10/3 passes an epoch",
    "reduce_lr": "no_gamma at a tenth of the learning rate; 10/3 passes an epoch",
    "svrg": "coefficient 1; 3 passes an epoch",
    "fixed": "any other constant coefficient; 3 passes an epoch",
    "alpha_svrg": "coefficient falling linearly to 0; 3 passes an epoch, 1 in the last",
    "mvr": "STORM: the step before is the snapshot, adaptive step size; 2 passes an epoch",
    "mvr_fixed": "the same with a fixed share of the newest gradient; 2 passes an epoch",
    "agent_mvr": "the same with agent's coefficient; 2 passes an epoch, 4/3 in the first",
    "agent_mvr_oracle": "mvr_fixed on gradients that agent corrects; 13/3 passes an epoch",
    "ref_itop": "agent as its code for ITOP has it, slips included; 10/3 passes an epoch",
    "ref_rigl": "agent as its code for RigL has it, slips included; 10/3 passes an epoch",
    "ref_bsr": "agent as its code for BSR-Net has it, slips included; 10/3 passes an epoch",
    "age": "coefficient by age of the snapshot, estimated from gradients; 3 passes an epoch",
    "table": "stored gradients of the same batches, coefficient estimated; 1 pass an epoch",
}
OBJECTIVES = {
    "standard": "cross-entropy",
    "at": "adversarial training: cross-entropy at attacked images",
    "mixed": "the same for the first half of every batch only",
    "trades": "cross-entropy, and the divergence between images and attacked images",
    "mart": "boosted cross-entropy at attacked images, divergence weighted by doubt",
}
assert set(OBJECTIVES) == set(get_args(ObjectiveName))
assert set(TOPOLOGIES) == set(get_args(TopologyName))
assert set(CORRECTORS) == set(get_args(CorrectorName))


def print_lists(console: Console) -> None:
    """Prints one table a kind."""
    table = _table("--dataset", "what it is", "on this machine")
    for name in dataset_names():
        table.add_row(name, describe_dataset(name).summary, _where(name))
    console.print(table)
    for flag, rows in (
        ("--model", {name: describe_model(name) for name in model_names()}),
        ("--topology", TOPOLOGIES),
        ("--corrector", CORRECTORS),
        ("--objective", OBJECTIVES),
    ):
        table = _table(flag, "what it is")
        for name, what in rows.items():
            table.add_row(name, what)
        console.print(table)


def _table(*columns: str) -> Table:
    """A plain table."""
    table = Table(box=None, padding=(0, 2), title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column.startswith("--"), overflow="fold")
    return table


def _where(name: str) -> str:
    """The folder in which a data set would be found, judged by its file names alone."""
    if name == "digits":
        return "yes"
    info = describe_dataset(name)
    patterns = _PATTERNS[name]
    for folder in candidate_folders(info, data_roots(None, cache_folder(None))):
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return str(folder)
    return "no; --download fetches it" if info.downloadable else "no; pass --data-dir"


_PATTERNS = {
    "cifar10": ("train-*.parquet", "**/data_batch_1"),
    "cifar100": ("train-*.parquet", "cifar-100-python/train"),
    "fashion_mnist": ("train-images-idx3-ubyte*",),
    "image_folder": ("train/*/*",),
    "svhn": ("train_32x32.mat",),
}
