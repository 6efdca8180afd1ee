"""Where an analysis writes down its rows, beside the records of a run."""

CORRELATION = "gradient_correlation.jsonl"
NORMS = "gradient_norms.jsonl"
PERTURBED = "perturbed_gradients.jsonl"
