"""What is wrong with the settings of a run, where something is, in one sentence."""

from __future__ import annotations

from equipoise.published import check_correction, in_effect
from equipoise.settings import Run


def validate(run: Run) -> None:
    """Checks what the types cannot: ranges, and settings that contradict each other.

    Raises:
        ValueError: One sentence on the first thing that is wrong.
    """
    for name, got, low, high, closed in _ranges(run):
        if got is None:
            continue
        above = got >= low if "[" in closed else got > low
        below = got <= high if "]" in closed else got < high
        if not (above and below):
            raise ValueError(_range_sentence(name, got, low, high, closed))
    if run.sparse.topology == "dense" and run.sparse.growth_signal != "raw":
        raise ValueError(
            "--growth-signal corrected has no effect on a dense network; "
            "choose --topology rigl, or leave it out."
        )
    check_correction(in_effect(run.correction))
    if run.sparse.topology == "bsr":
        _validate_sampling(run)
    if run.robust.objective == "mart" and run.optimization.label_smoothing != 0.0:
        raise ValueError(
            "--label-smoothing has no place in the mart objective; "
            "choose --objective trades or at, or leave it out."
        )
    correction = in_effect(run.correction)
    attacked = run.robust.objective != "standard"
    if correction.correction_mode == "cached" and attacked and run.robust.snapshot != "adversarial":
        raise ValueError(
            f"--correction-mode cached stores the gradients of a refresh, and with --snapshot "
            f"{run.robust.snapshot} those are not of the attacked images that training sees; "
            "choose --snapshot adversarial, or leave the mode out."
        )
    if run.correction.corrector == "table" and run.data.partition_epochs == 1:
        raise ValueError(
            "--partition-epochs 1 draws new batches in every epoch, so a table would never meet "
            "one again; choose 2 or more, or 0 to keep them."
        )
    if run.loop.engine == "sparse":
        for reason in engine_refusals(run):
            raise ValueError(f"--engine sparse cannot be had with {reason}; leave one of them out.")
    milestones, factors = run.optimization.milestones, run.optimization.drop_factors
    if factors and (len(factors) != len(milestones) or not all(0.0 < f <= 1.0 for f in factors)):
        raise ValueError(
            f"--drop-factors takes one share in (0, 1] for each milestone; got {factors} for "
            f"{milestones}; for example 0.1 0.01 for 0.5 0.75."
        )
    if list(milestones) != sorted(milestones) or not all(0.0 < m < 1.0 for m in milestones):
        raise ValueError(
            f"--milestones takes rising fractions of training in (0, 1); got {milestones}; "
            "for example 0.5 0.75."
        )


def _validate_sampling(run: Run) -> None:
    """What connectivity sampling does not go with."""
    if run.sparse.sparsity == 0.0:
        raise ValueError("--topology bsr needs a --sparsity above 0; got 0; or use dense.")
    if run.sparse.correction_mask == "all":
        changed = run.optimization.clip_norm is not None
        if changed or run.loop.precision == "fp16":
            raise ValueError(
                "--correction-mask all tells a correction from the gradient as it arrived, which "
                f"{'--clip-norm' if changed else '--precision fp16'} rescales; leave one of "
                "them out."
            )


def engine_refusals(run: Run) -> list[str]:
    """Settings of a run that the engine's kernels do not go with, in words of the command line.

    Example:
        >>> from equipoise.settings import TopologySettings
        >>> engine_refusals(Run(sparse=TopologySettings(topology="dense")))
        ['a network without masks']
    """
    refusals = []
    if run.sparse.topology == "dense" or run.sparse.sparsity == 0.0:
        refusals.append("a network without masks")
    if run.sparse.topology == "bsr" and run.sparse.correction_mask == "all":
        refusals.append("--correction-mask all")
    if run.loop.compile:
        refusals.append("--compile")
    if run.loop.precision != "fp32":
        refusals.append(f"--precision {run.loop.precision}")
    if in_effect(run.correction).keep == "all":
        refusals.append("a corrector that keeps inactive weights")
    if run.loop.device.startswith("cuda"):
        refusals.append(f"--device {run.loop.device}")
    return refusals


def _ranges(run: Run) -> list[tuple[str, float | None, float, float, str]]:
    """Every setting with a range: name, value, bounds, and which of them belong to it."""
    inf = float("inf")
    data, network, sparse = run.data, run.network, run.sparse
    correction, optimization, loop = run.correction, run.optimization, run.loop
    robust = run.robust
    return [
        ("image_size", data.image_size, 1, inf, "[)"),
        ("train_samples", data.train_samples, 1, inf, "[)"),
        ("test_samples", data.test_samples, 1, inf, "[)"),
        ("validation", data.validation, 0, 1, "[)"),
        ("partition_epochs", data.partition_epochs, 0, inf, "[)"),
        ("width", network.width, 0, inf, "()"),
        ("dropout", network.dropout, 0, 1, "[)"),
        ("sparsity", sparse.sparsity, 0, 1, "[)"),
        ("interval", sparse.interval, 0, inf, "()"),
        ("stop", sparse.stop, 0, inf, "()"),
        ("prune_fraction", sparse.prune_fraction, 0, 1, "(]"),
        ("scaling", correction.scaling, 0, inf, "[)"),
        ("smoothing", correction.smoothing, 0, 1, "(]"),
        ("coefficient", correction.coefficient, -inf, inf, "()"),
        ("refresh_every", correction.refresh_every, 1, inf, "[)"),
        ("refresh_steps", correction.refresh_steps, 1, inf, "[)"),
        ("refresh_chance", correction.refresh_chance, 0, 1, "(]"),
        ("refresh_samples", correction.refresh_samples, 1, inf, "[)"),
        ("initial_coefficient", correction.initial_coefficient, -inf, inf, "()"),
        ("mvr_share", correction.mvr_share, 0, 1, "(]"),
        ("mvr_strength", correction.mvr_strength, 0, inf, "()"),
        ("mvr_offset", correction.mvr_offset, 0, inf, "()"),
        ("eps", robust.eps, 0, *((1, "[]") if robust.norm == "linf" else (inf, "[)"))),
        ("step_size", robust.step_size, 0, inf, "()"),
        ("attack_steps", robust.attack_steps, 1, inf, "[)"),
        ("beta", robust.beta, 0, inf, "[)"),
        ("learning_rate", optimization.learning_rate, 0, inf, "()"),
        ("momentum", optimization.momentum, 0, 1, "[)"),
        ("weight_decay", optimization.weight_decay, 0, inf, "[)"),
        ("drop_factor", optimization.drop_factor, 0, 1, "(]"),
        ("warmup", optimization.warmup, 0, 1, "[)"),
        ("clip_norm", optimization.clip_norm, 0, inf, "()"),
        ("label_smoothing", optimization.label_smoothing, 0, 1, "[)"),
        ("epochs", loop.epochs, 1, inf, "[)"),
        ("batch_size", loop.batch_size, 1, inf, "[)"),
        ("accumulate", loop.accumulate, 1, inf, "[)"),
        ("seed", loop.seed, 0, 2**31, "[)"),
    ]


def _range_sentence(name: str, got: float, low: float, high: float, closed: str) -> str:
    """What was got, what is allowed, what to do."""
    flag = "--" + name.replace("_", "-")
    if name == "sparsity" and 1.0 <= got <= 100.0:
        hint = f"for {got:g} % write {got / 100:g}" if got < 100.0 else "0.99 keeps 1 %"
        return f"{flag} is the fraction of weights removed, in [0, 1); got {got:g}; {hint}."
    if low == -high:
        bound = "a finite number"
    elif high == float("inf"):
        bound = f"at least {low:g}" if "[" in closed else f"above {low:g}"
        bound += "" if abs(got) < high else " and finite"
    else:
        bound = f"in {closed[0]}{low:g}, {high:.10g}{closed[1]}"
    return f"{flag} must be {bound}; got {got:.10g}; see `equipoise train --help`."
