import re
from importlib import import_module
from pathlib import Path

import pytest

import equipoise
from equipoise.experiments.catalogue import EXPERIMENTS
from equipoise.experiments.store import KEPT
from equipoise.experiments.values import Cell
from equipoise.paper.claims import CLAIMS, Claim
from equipoise.paper.evidence import Evidence, gather
from equipoise.paper.ledger import counted, ledger
from equipoise.paper.report import claims_text
from equipoise.paper.rules import Verdict

fake = import_module("tests.unit.paper.fake_store")

ROOT = Path(equipoise.__file__).parents[2]
CLAIMS_PAGE = ROOT / "docs" / "claims.md"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Nothing, at the full scale."""
    return gather("paper", range(3), [tmp_path_factory.mktemp("none")])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_finds_its_cells_at_full_scale(claim: Claim, full: Evidence) -> None:
    measured = claim.rule.judge(full)
    assert measured
    assert {one.n for one in measured} == {0}
    assert claim.rule.words
    assert not claim.words.endswith("..")
    assert set(claim.rule.experiments) <= EXPERIMENTS.keys()


def test_without_runs_only_the_theory_is_judged(full: Evidence) -> None:
    entries = ledger(full)
    judged = [one.claim.name for one in entries if one.verdict is not Verdict.NOT_TESTED]
    assert judged == ["theorem-1"]
    assert {one.why for one in entries if one.claim.name != "theorem-1"} == {"no runs"}


def test_there_are_enough_claims_with_names_of_their_own() -> None:
    names = [claim.name for claim in CLAIMS]
    assert len(names) == len(set(names)) >= 30
    words = " ".join(f"{claim.where} {claim.rule.experiments}" for claim in CLAIMS)
    assert {f"table-{n}" for n in range(1, 12)} <= set(re.findall(r"table-\d+", words))
    wanted = (3, 5, 6, 13, 14, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
    assert {f"figure-{n}" for n in wanted} <= set(re.findall(r"figure-\d+", words))


def test_a_claim_of_the_full_scale_is_not_tested_at_a_reduced_one(tmp_path: Path) -> None:
    fake.write_experiment(tmp_path, "cpu", EXPERIMENTS["table-3"])
    entries = {one.claim.name: one for one in ledger(gather("cpu", range(3), [tmp_path]))}
    assert entries["table-3"].verdict is Verdict.NOT_TESTED
    assert entries["table-3"].why == "judged at paper only"


def test_the_ledger_says_what_was_found_and_what_it_cost(tmp_path: Path) -> None:
    def make(cell: Cell) -> dict[str, float]:
        corrected = cell.run.correction.corrector == "agent"
        return {"gain": 0.08, "passes": 2.2} if corrected else {}

    fake.write_experiment(tmp_path, "cpu", EXPERIMENTS["figure-30"], make)
    fake.write_experiment(tmp_path, "cpu", EXPERIMENTS["figure-29"], make)
    text = claims_text(range(3), [tmp_path])
    assert text == claims_text(range(3), [tmp_path])
    assert "## Scale paper" not in text
    part = text.partition('<a id="cpu-figure-29"></a>')[2].partition("<a id=")[0]
    assert "**holds** at scale cpu. Paper: figure 29." in part
    assert re.search(r"50 epochs: A-SET-ITOP - SET-ITOP: \+\d.*n = 3; 2.20 times the passes", part)
    assert "Runs: `equipoise reproduce figure-29 --scale cpu`." in part
    assert "test accuracy, mean over all epochs" in part
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(rows) == len(CLAIMS)
    entries = ledger(gather("cpu", range(3), [tmp_path]))
    assert counted(entries) in text
    paper = [one for one in entries if not one.claim.ours]
    assert sum(int(number) for number in re.findall(r"\d+", counted(entries))) == len(paper)


def test_the_committed_ledger_is_what_the_kept_records_say() -> None:
    kept = ROOT / KEPT
    if not kept.is_dir() or not CLAIMS_PAGE.exists():
        pytest.skip("no records are kept yet")
    assert CLAIMS_PAGE.read_text(encoding="utf-8") == claims_text(range(3), [kept]), (
        "write it again: equipoise report --paper --store results/paper --claims docs/claims.md"
    )
