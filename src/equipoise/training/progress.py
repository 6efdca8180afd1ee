"""How far a training is, refreshes included, for those who show it."""

from __future__ import annotations

from equipoise.correction import AgeAdaptive, GradientCorrector, MomentumCorrector
from equipoise.published import in_effect
from equipoise.training.session import Session


class Work:
    """The work of a whole training and how much of it is done, in passes of one sample.

    A refresh belongs to the step that it comes before, whatever schedule put it there; one that
    makes no pass after all is done with that step. So the work that is done never falls, never
    exceeds the total, and is the total after the last step. Of a training in phases, which make no
    refreshes, the work is that of all of them.

    Args:
        session: Where it stands; a run may go on in the middle.

    Example:
        >>> from equipoise.data import synthetic
        >>> from equipoise.settings import Run, with_setting
        >>> run = Run()
        >>> for name, value in (("model", "mlp"), ("batch_size", 16), ("epochs", 2)):
        ...     run = with_setting(run, name, value)
        >>> session = Session(run, synthetic(num_train=32, num_test=8, image_size=8))
        >>> work = Work(session)
        >>> work.total, work.done(session)
        (64.0, 0.0)
    """

    def __init__(self, session: Session) -> None:
        self._size = session.loader.num_samples
        self._refresh_passes, self._step_passes = _passes(session)
        self._refresh_samples = session.num_refresh_samples if self._refresh_passes else 0
        trained = self._step_passes * self._size * session.epochs_in_all
        refreshes = session.schedule.count if self._refresh_passes else 0
        self.total = trained + refreshes * self._refresh
        self._current = 0

    @property
    def _refresh(self) -> float:
        """Work of one refresh."""
        return self._refresh_passes * self._refresh_samples

    def refreshed(self, samples: int) -> None:
        """Some samples of the refresh before the coming step were seen."""
        self._current = min(self._current + samples, self._refresh_samples)

    def stepped(self) -> None:
        """A step was made."""
        self._current = 0

    def done(self, session: Session) -> float:
        """The work up to where the session stands.

        Args:
            session: The same.

        Returns:
            In [0, `total`].
        """
        seen = min(self._size, session.batch * session.loader.batch_size)
        epochs = session.epochs_before + session.epoch
        trained = self._step_passes * (epochs * self._size + seen)
        if not self._refresh_passes:
            return trained
        refreshes = session.schedule.before(session.step) * self._refresh
        return trained + refreshes + self._refresh_passes * self._current


def _passes(session: Session) -> tuple[float, float]:
    """Passes of a sample in a refresh, and of one in a step, as far as they can be foreseen.

    A forward pass counts 1/3, as in `Meter.data_passes`. Which old passes a coefficient leaves out
    is not known before.
    """
    robust = session.run.robust
    share = {"standard": 0.0, "mixed": 0.5}.get(robust.objective, 1.0)
    attack = share * robust.attack_steps * 2 / 3
    corrector: object = session.corrector
    step = 1.0 + attack
    if isinstance(corrector, MomentumCorrector):
        corrector = corrector.snapshots
        step += 1.0
    if not isinstance(corrector, GradientCorrector):
        return 0.0, step
    # One that watches gradients only rests.
    if corrector.coefficient.idle and not isinstance(corrector.coefficient, AgeAdaptive):
        return 0.0, step
    if in_effect(session.run.correction).correction_mode == "recompute":
        step += 1.0
    refresh = 1.0 + corrector.coefficient.needs_losses / 3
    return refresh + attack * (robust.snapshot == "adversarial"), step
