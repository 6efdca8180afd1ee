"""The ledger of claims: what each rule says of what was found, as Markdown and as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from equipoise.experiments.values import Scale
from equipoise.paper.claims import CLAIMS, Claim
from equipoise.paper.evidence import Evidence
from equipoise.paper.rules import MIN_PAIRS, Measured, Outcome, Verdict, verdict_of

MARKS = {
    Outcome.YES: "yes",
    Outcome.PARTLY: "partly",
    Outcome.NO: "no",
    Outcome.OPEN: "open",
}


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Args:
        claim: Which.
        scale: At which scale.
        verdict: What follows from `measured`.
        measured: Each setting.
        commands: That make what decides it.
    """

    claim: Claim
    scale: Scale
    verdict: Verdict
    measured: tuple[Measured, ...]
    commands: tuple[str, ...]

    @property
    def why(self) -> str:
        """Why it is not tested; empty where it is."""
        if self.verdict is not Verdict.NOT_TESTED:
            return ""
        if self.scale not in self.claim.scales:
            return f"judged at {' and '.join(self.claim.scales)} only"
        reasons = dict.fromkeys(one.why for one in self.measured if one.why)
        return "; ".join(reasons) or "this scale leaves it out"


def ledger(evidence: Evidence, claims: Iterable[Claim] = CLAIMS) -> list[Entry]:
    """Judges every claim at one scale.

    Args:
        evidence: What there is.
        claims: Which; all by default.

    Returns:
        One entry for each, in order.
    """
    entries = []
    for claim in claims:
        judged = evidence.scale in claim.scales
        measured = claim.rule.judge(evidence) if judged else ()
        commands = tuple(evidence.found[name].command for name in claim.rule.experiments)
        entries.append(Entry(claim, evidence.scale, verdict_of(measured), measured, commands))
    return entries


def counted(entries: Sequence[Entry]) -> str:
    """How many claims of the paper have each verdict; controls of ours are left out."""
    counts = Counter(entry.verdict for entry in entries if not entry.claim.ours)
    return ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict)


def setting_words(one: Measured) -> str:
    """A setting in one line: where, effect, pairs, cost, outcome."""
    cost = "" if one.passes is None else f"; {one.passes:.2f} times the passes"
    why = f" ({one.why})" if one.why else ""
    pairs = "" if one.interval is None else f", n = {one.n}"
    return f"{one.where}: {one.effect}{pairs}{cost}: {MARKS[one.outcome]}{why}"


def claims_markdown(ledgers: Sequence[tuple[Evidence, Sequence[Entry]]]) -> str:
    """The whole ledger as a document.

    Args:
        ledgers: What there is at each scale, with its entries.

    Returns:
        Markdown; the same for the same records.
    """
    parts = [HEADER]
    for evidence, entries in ledgers:
        parts.append(f"\n## Scale {evidence.scale}\n\n{counted(entries)}.\n")
        left_out = evidence.reductions or ("nothing is left out",)
        parts.append(
            "\nWhat this scale leaves out:\n\n" + "".join(f"- {one}\n" for one in left_out)
        )
        parts.append("\n| Claim | Where | Paper | Verdict |\n| --- | --- | --- | --- |\n")
        parts += [_row(entry) for entry in entries]
        parts += [_details(entry) for entry in entries]
    return "".join(parts)


HEADER = f"""# Claims of the paper, and what our runs say

This file is written by

    equipoise report --paper --store results/paper --claims docs/claims.md

from the records that are kept there, and is not edited. A test writes it again and compares.

## Reading the ledger

- Every claim is in our own words. What decides it is its rule, written in code before there were
  three seeds of anything; it stands below the claim, in words made by the same call as the code.
- A difference is paired by seed, with the 95 % interval of Student's t. No interval is corrected
  for the number of claims: of 20 true zeros one would look like an effect.
- A setting is a panel of a table or figure. It says *yes* where the interval shows the effect; *no*
  where it does not and is narrow enough to exclude the effect that is claimed (1 point of accuracy
  where the paper gives no number); *open* otherwise. Fewer than {MIN_PAIRS} pairs are open.
- *Holds*: yes in every setting. *Holds in part*: yes, or a smaller effect than claimed, in some.
  *Does not hold*: no in some and yes in none. *Not tested at this scale*: open in all of them, with
  the reason.
- "Without influence" is never concluded from an interval that holds 0: such claims have a margin,
  and the whole interval must be within it.
- Passes are gradient evaluations of the whole training set, of the arm over those of what it is
  compared with. An arm that wins at 2.2 times the passes wins at equal epochs, not at equal cost.
- A reduced scale can show an effect, and bound it there. What does not hold at a reduced scale may
  hold at the paper's.
"""


def _row(entry: Entry) -> str:
    """One line of the table."""
    claim = entry.claim
    words = f"[{claim.words}](#{entry.scale}-{claim.name})"
    return f"| {words} | {claim.where} | {claim.published or '-'} | {_verdict(entry)} |\n"


def _details(entry: Entry) -> str:
    """Rule, settings and commands of a claim."""
    claim = entry.claim
    lines = [
        "",
        f'<a id="{entry.scale}-{claim.name}"></a>',
        f"### {claim.words}",
        "",
        f"**{_verdict(entry)}** at scale {entry.scale}. Paper: {claim.where}"
        + (f", {claim.published}." if claim.published else "."),
        "",
        f"Rule: {claim.rule.words}.",
        "",
        *(f"- {setting_words(one)}" for one in entry.measured),
        *([""] if entry.measured else []),
        "Runs: " + (", ".join(f"`{one}`" for one in entry.commands) or "none are needed") + ".",
        "",
    ]
    return "\n".join(lines)


def _verdict(entry: Entry) -> str:
    """The verdict, with the reason where there is none."""
    return f"{entry.verdict.value} ({entry.why})" if entry.why else entry.verdict.value
