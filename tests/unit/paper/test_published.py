import pytest

from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.paper.published import PUBLISHED, Key, Number
from equipoise.paper.published.numbers import rows

OURS_ALONE = {
    ("table-1", "A-BSR-Net (as its BSR code)"),
    ("table-1", "BSR-Net, BatchNorm refreshed"),
    ("table-5", "AGENT+MVR (AGENT inside MVR)"),
    ("table-7", "A-RigL (as its RigL code)"),
}
"""Arms that the paper does not have."""


def test_every_table_has_its_numbers() -> None:
    assert sorted(PUBLISHED) == sorted(f"table-{number}" for number in range(1, 12))
    sizes = {name: len(table) for name, table in PUBLISHED.items()}
    assert sizes == {
        "table-1": 72,
        "table-2": 32,
        "table-3": 4,
        "table-4": 8,
        "table-5": 12,
        "table-6": 144,
        "table-7": 12,
        "table-8": 24,
        "table-9": 10,
        "table-10": 20,
        "table-11": 20,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_number_finds_its_cell_and_every_cell_its_numbers(name: str) -> None:
    experiment, table = EXPERIMENTS[name], PUBLISHED[name]
    cells = {(cell.panel, cell.arm) for cell in experiment.cells("paper")}
    assert {(key.panel, key.arm) for key in table} <= cells
    for panel, arm in cells:
        if (name, arm) in OURS_ALONE:
            continue
        quantities = {key.quantity for key in table if (key.panel, key.arm) == (panel, arm)}
        assert quantities, (panel, arm)
        for quantity in quantities:
            wanted = {Key(panel, arm, share, quantity) for share in experiment.budgets}
            assert wanted <= table.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_cell_of_the_reduced_scale_is_one_of_the_paper(name: str) -> None:
    cells = {(cell.panel, cell.arm) for cell in EXPERIMENTS[name].cells("paper")}
    assert {(cell.panel, cell.arm) for cell in EXPERIMENTS[name].cells("cpu")} <= cells


@pytest.mark.parametrize(
    ("table", "key", "number"),
    [
        ("table-1", Key("Standard, 90 %", "A-BSR-Net", 0.1), Number(81.8, 0.62)),
        ("table-1", Key("TRADES, 99 %", "BSR-Net", 1.0), Number(70.8, 0.19)),
        ("table-2", Key("AT, 90 %", "BSR-Net", 0.45, "robust"), Number(33.6)),
        ("table-3", Key("90 %", "A-RigL-ITOP", 1.0), Number(73.4, 0.11)),
        ("table-4", Key("WRN-28-4, 99 %", "A-BSR-Net", 1.0), Number(92.2, 0.19)),
        ("table-5", Key("VGG-C, SET-ITOP", "AGENT+MVR", 0.8), Number(82.3)),
        ("table-6", Key("AT, 90 %", "No gamma", 1.0, "robust"), Number(9.5)),
        ("table-6", Key("Standard, 99 %", "Fixed c", 0.45), Number(80.5)),
        ("table-7", Key("CIFAR-100, dense", "RigL", 1.0), Number(73.1, 0.17)),
        ("table-8", Key("WRN-28-4, 90 %", "HYDRA", 1.0, "robust"), Number(43.9)),
        ("table-9", Key("SET", "95 %", 1.0, "correlation"), Number(0.1195)),
        ("table-10", Key("ResNet-34", "Reduce LR", 0.52), Number(89.3)),
        ("table-11", Key("VGG-C", "A-SET-ITOP", 1.0, "norm"), Number(4.88)),
    ],
)
def test_numbers_are_the_printed_ones(table: str, key: Key, number: Number) -> None:
    assert PUBLISHED[table][key] == number


def test_the_headline_follows_from_table_1() -> None:
    table, panel = PUBLISHED["table-1"], "Standard, 99 %"
    gains = [
        table[Key(panel, "A-BSR-Net", share)].value - table[Key(panel, "BSR-Net", share)].value
        for share in EXPERIMENTS["table-1"].budgets
    ]
    assert sum(gains) / len(gains) == pytest.approx(5.03, abs=0.01)
    largest = max(
        number.value - table[key._replace(arm="BSR-Net")].value
        for key, number in table.items()
        if key.arm == "A-BSR-Net"
    )
    assert largest == pytest.approx(11.4)


def test_a_line_with_a_number_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rows([("a", "b", "accuracy"), ("a", "c", "accuracy")], [1.0], "3.0")
