"""Mean, spread and bootstrap interval of scores that come in groups.

Pictures of one prompt are more alike than pictures of two, and so are those of one training run.
The bootstrap therefore draws level by level: runs with replacement, then prompts, then pictures. A
level with a single member adds nothing: one training run gives no interval over runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Of `count` pictures: mean, standard deviation over them, and the mean's 95 % interval."""

    mean: float
    std: float | None
    low: float | None
    high: float | None
    count: int

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)

    def signed(self) -> str:
        """Of a difference: every number with its sign."""
        if self.low is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def summarise(values: np.ndarray, seed: int = 0) -> Summary:
    """Summary of scores in an array of any number of levels, the outermost first; NaN is missing.

    The interval is None where no level has two members.
    """
    values = np.asarray(values, dtype=np.float64)
    there = values[~np.isnan(values)]
    if not there.size:
        return Summary(float("nan"), None, None, None, 0)
    std = float(there.std(ddof=1)) if there.size > 1 else None
    if max(values.shape, default=1) < 2:
        return Summary(float(there.mean()), std, None, None, there.size)
    means = bootstrap_means(values, seed=seed)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Summary(float(there.mean()), std, float(low), float(high), there.size)


def bootstrap_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means (resamples,) of values drawn level by level with replacement."""
    random = np.random.default_rng(seed)
    flat_index = np.zeros((resamples, 1), dtype=np.int64)
    for size in values.shape:
        drawn = random.integers(size, size=(resamples, flat_index.shape[1], size))
        flat_index = (flat_index[:, :, None] * size + drawn).reshape(resamples, -1)
    with np.errstate(invalid="ignore"):
        chosen = values.reshape(-1)[flat_index]
        count = (~np.isnan(chosen)).sum(axis=1)
        return np.nansum(chosen, axis=1) / np.where(count > 0, count, np.nan)
