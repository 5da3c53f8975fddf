"""Which samples of the past go into a step's batch."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class UniformHistory:
    """Draws uniformly without replacement from a growing range of samples.

    A draw is a function of (seed, step), so the sampler's state is one number and a run that is
    resumed draws what the one never killed drew.

    Attributes:
      seed: of all draws.

    Examples:
      >>> sampler = UniformHistory(seed=1)
      >>> bool((sampler.draw(7, 100, 5) == sampler.draw(7, 100, 5)).all())
      True

    References:
      Prapas et al. 2021, section 3.
    """

    seed: int

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """Positions of `min(size, available)` distinct samples below `available`, int64."""
        size = min(size, available)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        return generator.choice(available, size, replace=False)
