"""The paper beside what was measured: its tables and figures, and a ledger of its claims."""
