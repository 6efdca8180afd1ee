"""Arms take turns, and only what is theirs is timed; the clock is a fake one."""

from __future__ import annotations

import pytest

from equipoise.speed.laps import Arm, Lap, fastest, interleaved, process_clock, ratio, seconds


class FakeClock:
    """Moves only when somebody works; two cores are busy all the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> Lap:
        return Lap(self.now, 2 * self.now)

    def arm(self, name: str, *times: float) -> Arm:
        """Takes these times in turn, the last one for ever."""
        left = list(times)

        def step() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        def prepare() -> None:
            self.log.append(f"{name}?")
            self.now += 1000.0

        return Arm(step, prepare)


def test_every_arm_has_a_lap_a_round_and_every_other_round_is_backwards() -> None:
    clock = FakeClock()
    arms = {"a": clock.arm("a", 9.0, 1.0, 2.0, 3.0), "b": clock.arm("b", 9.0, 4.0)}
    laps = interleaved(arms, rounds=3, warmup=1, clock=clock)
    assert "".join(clock.log) == "a?ab?b" + "a?ab?b" + "b?ba?a" + "a?ab?b"
    assert laps == {
        "a": [Lap(1.0, 2.0), Lap(2.0, 4.0), Lap(3.0, 6.0)],
        "b": [Lap(4.0, 8.0)] * 3,
    }


def test_short_steps_are_repeated_until_they_fill_a_lap() -> None:
    clock = FakeClock()
    # The first step of the short one is slow, as first steps are; it must not set the number.
    arms = {"short": clock.arm("s", 50.0, 0.3), "long": clock.arm("l", 2.0)}
    laps = interleaved(arms, rounds=1, warmup=2, least_seconds=1.0, clock=clock)
    assert clock.log.count("s") == 2 + 4
    assert clock.log.count("l") == 2 + 1
    assert seconds(laps["short"], "wall") == pytest.approx([0.3])
    assert seconds(laps["short"], "cpu") == pytest.approx([0.6])
    assert seconds(laps["long"], "wall") == [2.0]


def test_a_clock_that_stands_still_does_not_repeat_for_ever() -> None:
    calls: list[int] = []
    interleaved(
        {"a": Arm(lambda: calls.append(1))},
        rounds=1,
        least_seconds=1.0,
        clock=lambda: Lap(0.0, 0.0),
    )
    assert len(calls) == 10_001


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, 0)])
def test_there_is_at_least_one_round_and_one_lap_before_it(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1; got {rounds} and {warmup}"):
        interleaved({}, rounds=rounds, warmup=warmup)


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was twice as slow in the second round, which the ratios do not show.
    assert ratio([3.0, 6.0, 3.0], [1.0, 2.0, 1.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="argument 2"):
        ratio([1.0], [1.0, 2.0])


def test_the_fastest_arm_is_that_of_the_better_median() -> None:
    laps = {
        "a": [Lap(1.0, 9.0), Lap(9.0, 9.0), Lap(9.0, 9.0)],
        "b": [Lap(5.0, 9.5)] * 3,
        "c": [Lap(0.1, 0.1)] * 3,
    }
    assert fastest(laps, ["a", "b"], "wall") == "b"
    assert fastest(laps, ["a", "b"], "cpu") == "a"


def test_the_real_clock_moves() -> None:
    before = process_clock()
    sum(range(100_000))
    after = process_clock()
    assert after.wall > before.wall
    assert after.cpu >= before.cpu
