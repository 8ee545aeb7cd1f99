"""`BloomFilter`: a set in constant memory, for the rows whose responses a list has shown."""

import secrets
from hashlib import blake2b

BITS = 2**23
"""The size of the filter: 1 MiB. 1 of 200,000 is a false positive with 100,000 digests, and 1 of 50 with a million."""

HASHES = 4
"""The number of bits of a digest."""


class BloomFilter:
    """A set of digests in constant memory. It rarely seems to contain a digest that was not added.

    Each filter has a random key, so that each is wrong about other digests.
    """

    def __init__(self) -> None:
        self._bits = bytearray(BITS // 8)
        self._key = secrets.token_bytes(16)

    def add(self, digest: str) -> None:
        """Add a digest."""
        for place in self._places(digest):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, digest: str) -> bool:
        """Return whether a digest was added, or seems to have been."""
        return all(self._bits[place >> 3] & 1 << (place & 7) for place in self._places(digest))

    def _places(self, digest: str) -> list[int]:
        found = blake2b(digest.encode(), digest_size=4 * HASHES, key=self._key).digest()
        return [int.from_bytes(found[begin : begin + 4], "big") % BITS for begin in range(0, 4 * HASHES, 4)]
