"""Drift: found in the prequential scores, answered for a while.

What was found is a function of the metrics' lines alone, so a run that is resumed finds it again
by reading them. A drift found in version v changes the steps from version v + 2 on: when v's
scores are known the next step may be on its way already, or not, and the bits must not depend
on that. So neither may what was found later take an earlier answer back.
"""

from typing import Any, NamedTuple, Protocol

from cdl_jax.errors import ConfigError
from cdl_jax.train.config import TrainConfig

LAG = 2  # versions from the finding to the first step that is changed


class Detector(Protocol):
    """Takes a value per version and says when their level has changed."""

    def update(self, value: float) -> bool:
        """Whether a change is found with this value."""
        ...


class AccuracyFall:
    """A fall of the fast mean of accuracy below the slow one.

    Args:
      fall: share of samples.
      fast, slow: weights of the newest value in the two means.
    """

    def __init__(self, fall: float, *, fast: float = 0.1, slow: float = 0.005):
        self._fall, self._weights = fall, (fast, slow)
        self._means, self._count = [0.0, 0.0], 0

    def update(self, value: float) -> bool:
        """See `Detector`; after a finding it starts anew."""
        self._count += 1
        self._means = [
            m + max(w, 1 / self._count) * (value - m)
            for m, w in zip(self._means, self._weights, strict=True)
        ]
        found = self._count > 30 and self._means[0] < self._means[1] - self._fall
        if found:
            self._means, self._count = [0.0, 0.0], 0
        return found


class _Rivers:
    """A detector of River's."""

    def __init__(self, detector: Any):
        self._detector = detector

    def update(self, value: float) -> bool:
        """See `Detector`."""
        self._detector.update(value)
        return bool(self._detector.drift_detected)


class _Rise(_Rivers):
    """ADWIN finds any new level of the loss; a lower one, as after an answer, is no drift."""

    def update(self, value: float) -> bool:
        """See `Detector`."""
        before = self._detector.estimation
        return super().update(value) and self._detector.estimation > before


# The value of `threshold` by default: ADWIN's delta, Page-Hinkley's lambda, a fall of accuracy.
DETECTORS = {"adwin": 0.002, "page_hinkley": 5.0, "accuracy": 0.1}


def detector(name: str, threshold: float | None) -> Detector:
    """A detector by its name.

    Args:
      name: one of `DETECTORS`.
      threshold: ADWIN's delta, Page-Hinkley's threshold, or a fall of accuracy; None for the
        detector's own.

    Raises:
      ConfigError: when River is not installed.
    """
    threshold = DETECTORS[name] if threshold is None else threshold
    if name == "accuracy":
        return AccuracyFall(threshold)
    try:
        from river import drift
    except ImportError as error:
        raise ConfigError(f"detector {name} needs river: pip install 'cdl_jax[drift]'") from error
    if name == "adwin":
        return _Rise(drift.ADWIN(delta=threshold, clock=8))
    return _Rivers(drift.PageHinkley(threshold=threshold, mode="up"))


class Finding(NamedTuple):
    """A drift."""

    version: int  # in whose scores it was found
    until: int  # position of the first sample that is not answered


class Watch:
    """Says which steps answer to a drift.

    Attributes:
      found: the drifts so far, the oldest first.
    """

    def __init__(self, config: TrainConfig):
        self.found: list[Finding] = []
        self._config = config
        self._waiting: list[dict[str, Any]] = []
        self._detector = None
        if config.on_drift:
            self._detector = detector(config.detector, config.drift_threshold)

    def update(self, record: dict[str, Any]) -> bool:
        """Takes a line of the metrics; whether a drift is found in it."""
        if self._detector is None:
            return False
        value = self._value(record)
        if value is None or not self._detector.update(value):
            return False
        until = record["position"] + self._config.drift_samples
        self.found.append(Finding(record["version"], until))
        return True

    def answers(self, how: str, version: int, position: int) -> bool:
        """Whether the step that makes `version` from the samples at `position` answers so."""
        if how not in self._config.reactions():
            return False
        known = self._known(version)
        return known is not None and position < known.until

    def resets(self, version: int) -> bool:
        """Whether the optimizer is reset before the step that makes `version`."""
        known = self._known(version)
        first = known is not None and version == known.version + LAG
        return first and "reset" in self._config.reactions()

    def _value(self, record: dict[str, Any]) -> float | None:
        """What the detector is told of this line and those before it that it was not told of.

        Always of a whole trigger's samples: means over fewer, as an answer makes them, would vary
        more, and look like the next drift. None until there are so many, and where no loss was
        finite; a NaN would blind the detector from then on.
        """
        self._waiting.append(record)
        samples = sum(x["samples"] for x in self._waiting)
        if samples < self._config.trigger and "trigger" in self._config.reactions():
            return None
        lines, self._waiting = self._waiting, []
        if self._config.detector == "accuracy":
            return sum(x["correct"] for x in lines) / samples
        lines = [x for x in lines if x["prequential_loss"] is not None]
        counts = [x["samples"] - x["nonfinite_losses"] for x in lines]
        weights = [count / counts[0] for count in counts]  # all 1.0 where the counts are the same
        losses = [x["prequential_loss"] * w for x, w in zip(lines, weights, strict=True)]
        return sum(losses) / sum(weights) if losses else None

    def _known(self, version: int) -> Finding | None:
        """The newest drift that `version` may depend on; none before it is answered for longer."""
        return next((x for x in reversed(self.found) if x.version + LAG <= version), None)
