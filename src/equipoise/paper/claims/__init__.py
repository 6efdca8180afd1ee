"""The claims of the paper, in our own words, each with the rule that decides it.

Rules and margins stand here, in code. A claim that some panel of a figure shows is judged in every
panel that a scale has.
"""

from __future__ import annotations

from equipoise.paper.claims.claim import Claim
from equipoise.paper.claims.figures import FIGURES
from equipoise.paper.claims.headlines import HEADLINES
from equipoise.paper.claims.others import CONTROLS, THEORY
from equipoise.paper.claims.tables import TABLES

CLAIMS: tuple[Claim, ...] = (*HEADLINES, *TABLES, *FIGURES, *THEORY, *CONTROLS)
"""All claims, in the order of the ledger."""

__all__ = ["CLAIMS", "Claim"]
