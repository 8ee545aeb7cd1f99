"""How many requests the emulator accepts in a second. Pure: the caller passes the time."""

import attrs

PRECISION = 1e-6
"""Seconds, and requests, below which a difference is rounding: a float holds the time since 1970 to 0.2 µs."""


@attrs.define
class TokenBucket:
    """A bucket of tokens, one per request, that holds as many as are added in a second, and at least one.

    See https://en.wikipedia.org/wiki/Token_bucket.

    Attributes:
        rate: tokens added per second: finite, and above 0.
        updated: when tokens were last added, in seconds of the caller's clock.
        tokens: the tokens in the bucket at that time. It starts full.
    """

    rate: float
    updated: float
    tokens: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tokens = self.capacity

    @property
    def capacity(self) -> float:
        """The tokens that fit into the bucket."""
        return max(1.0, self.rate)

    def take(self, now: float) -> float:
        """Take a token.

        Args:
            now: the time in seconds.

        Returns:
            0.0, or if there was no token, the seconds until there is one.
        """
        elapsed = max(0.0, now - self.updated)  # a clock that was set back adds nothing
        self.tokens = min(self.capacity, self.tokens + elapsed * self.rate)
        self.updated = now
        if self.tokens < 1 - PRECISION:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0
