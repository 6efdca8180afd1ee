"""Cards: the network, the threat, the number and what could be wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.attacks.settings import Attacking, check_attacking
from equipoise.data import synthetic
from equipoise.training import build
from equipoise.training.attacking import as_text, attack_network, import_module_at, wilson
from equipoise.training.loop import train
from equipoise.training.stored import evaluate_stored

toy = import_module("tests.unit.training.toy")
QUICK: dict[str, Any] = {"steps": 3, "restarts": 2, "eps": 0.1, "device": "cpu"}


@pytest.fixture(scope="module")
def data() -> Any:
    return synthetic(num_train=96, num_test=48, image_size=8)


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
    monkeypatch.setattr(build, "load_images", lambda settings, on_progress=None: data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: Any) -> Path:
    path = tmp_path_factory.mktemp("run")
    train(toy.make_run(model="small_cnn", width=0.25, epochs=4), path, dataset=data)
    return path


def test_the_card_of_a_run(folder: Path) -> None:
    progress: list[tuple[int, float]] = []
    chosen = Attacking(run=folder, **QUICK)
    path, card = attack_network(
        chosen, command="equipoise attack x", on_progress=lambda *news: progress.append(news)
    )
    assert path == folder / "attack-linf-0.1-pgd3x2.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(card))
    assert path.with_suffix(".txt").read_text() == as_text(card)
    assert card["clean_accuracy"] == evaluate_stored(folder).score.accuracy
    assert card["robust_accuracy"] == card["by_restart"][-1] <= card["clean_accuracy"]
    low, high = card["robust_interval"]
    assert low <= card["robust_accuracy"] <= high
    assert card["model"]["run"]["network"]["model"] == "small_cnn"
    assert card["command"] == "equipoise attack x"
    assert card["threat"] == {"norm": "linf", "eps": 0.1, "label": "Linf 0.1"}
    assert card["attack"]["step_size"] == pytest.approx(2.5 * 0.1 / 3)
    assert progress[-1] == (48, card["robust_accuracy"])
    assert len(card["flags"]) == 7
    for part in ("Linf 0.1", "PGD, 3 steps", "2 random restarts", "48 test images", "Checks"):
        assert part in as_text(card)


def test_a_card_is_not_replaced_unasked(folder: Path) -> None:
    chosen = Attacking(run=folder, samples=8, **QUICK)
    attack_network(chosen)
    with pytest.raises(ValueError, match="is there already; pass --overwrite"):
        attack_network(chosen)
    again = Attacking(run=folder, samples=8, overwrite=True, **QUICK)
    assert attack_network(again)[1]["data"]["samples"] == 8


def test_refreshed_statistics_are_named_on_the_card(folder: Path, tmp_path: Path) -> None:
    one = attack_network(Attacking(run=folder, out=tmp_path / "a.json", **QUICK))[1]
    two = attack_network(
        Attacking(run=folder, out=tmp_path / "b.json", refresh_batchnorm=True, **QUICK)
    )[1]
    assert (one["batchnorm"], two["batchnorm"]) == ("running", "refreshed")
    score = evaluate_stored(folder, refresh_batchnorm=True).score
    assert two["clean_accuracy"] == score.accuracy
    assert evaluate_stored(folder).score.loss != score.loss


def test_a_raised_flag_is_a_warning_on_the_card(folder: Path, tmp_path: Path) -> None:
    card = attack_network(
        Attacking(run=folder, out=tmp_path / "a.json", **{**QUICK, "step_size": 1e-7})
    )[1]
    raised = [flag["name"] for flag in card["flags"] if flag["raised"]]
    assert "more steps" in raised
    assert "WARNING (more steps): right of" in as_text(card)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, with a file that makes networks."""
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
        "ready = make()\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_networks", None)


@pytest.mark.parametrize("name", ["make", "ready"])
def test_any_torch_module_by_its_import_path(name: str, package: Path, data: Any) -> None:
    assert data.test.channels * 64 == 64
    weights = package / "w.pt"
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    torch.save(made.state_dict(), weights)
    chosen = Attacking(module=f"my_networks:{name}", weights=weights, **QUICK)
    path, card = attack_network(chosen)
    assert path.parent == Path("runs") / f"my_networks_{name}"
    images = data.test.images.float() / 255
    right = (made(images).argmax(1) == data.test.labels).double().mean()
    assert card["clean_accuracy"] == float(right)
    assert card["model"]["label"] == str(weights)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_networks", "is package.module:name"),
        ("my_networks:other", "has no other"),
        ("my_networks:number", "gives int, expected a torch.nn.Module"),
    ],
)
def test_what_is_no_module_is_refused(path: str, said: str, package: Path) -> None:
    with pytest.raises(ValueError, match=said):
        import_module_at(path)


def test_weights_of_another_network_are_refused(package: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), package / "w.pt")
    with pytest.raises(ValueError, match="does not fit the module"):
        attack_network(Attacking(module="my_networks:make", weights=package / "w.pt", **QUICK))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        attack_network(Attacking(module="my_networks:make", weights=package / "x.pt", **QUICK))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "takes the folder of a run or --module"),
        ({"run": Path("a"), "module": "b:c"}, "takes the folder of a run or --module"),
        ({"run": Path("a"), "weights": Path("b")}, "--weights are those of a --module"),
        ({"module": "b:c", "refresh_batchnorm": True}, "--refresh-batchnorm needs"),
        ({"run": Path("a"), "eps": 8.0}, "for 8 grey values write 0.0313725"),
        ({"run": Path("a"), "norm": "l2", "eps": -1.0}, "--eps must be at least 0"),
        ({"run": Path("a"), "steps": 0}, "--steps must be at least 1"),
        ({"run": Path("a"), "restarts": 0}, "--restarts must be at least 1"),
        ({"run": Path("a"), "samples": 0}, "--samples must be at least 1"),
        ({"run": Path("a"), "step_size": -0.1}, "--step-size must be at least 0"),
    ],
)
def test_mistakes_get_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_attacking(Attacking(**settings))
    assert "\n" not in str(caught.value)


def test_an_interval_by_hand() -> None:
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(100, 100)[1] == 1.0
