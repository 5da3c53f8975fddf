"""Prequential evaluation: every sample is scored before the model learns from it."""

import dataclasses


@dataclasses.dataclass
class Prequential:
    """Cumulative prequential accuracy.

    Examples:
      >>> score = Prequential()
      >>> score.add(3, 4); score.add(4, 4)
      >>> score.accuracy
      0.875

    References:
      Gama et al., On evaluating stream learning algorithms, 2013.
    """

    correct: int = 0
    seen: int = 0

    def add(self, correct: int, seen: int) -> None:
        """Counts `seen` samples of which `correct` were predicted right."""
        self.correct += correct
        self.seen += seen

    @property
    def accuracy(self) -> float:
        """Share predicted right so far; 0 before the first sample."""
        return self.correct / self.seen if self.seen else 0.0
