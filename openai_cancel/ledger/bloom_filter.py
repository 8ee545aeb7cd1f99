"""`BloomFilter`: a set in constant memory, for the rows whose responses a list has shown."""

import secrets
from hashlib import blake2b

BITS = 2**23
"""The size of the filter: 1 MiB. With 100,000 rows, it is wrong about 1 of 200,000; with a million, about 1 of 50."""

HASHES = 4
"""The number of bits of a row."""


class BloomFilter:
    """A set of digests, which never takes up more memory, and rarely contains a digest that was not added.

    It is a Bloom filter, which is wrong about other digests each time.
    """

    def __init__(self) -> None:
        self._bits = bytearray(BITS // 8)
        self._key = secrets.token_bytes(16)

    def add(self, digest: str) -> None:
        """Add a digest."""
        for place in self._places(digest):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, digest: str) -> bool:
        """Return whether a digest was added, or seems so."""
        return all(self._bits[place >> 3] & 1 << (place & 7) for place in self._places(digest))

    def _places(self, digest: str) -> list[int]:
        found = blake2b(digest.encode(), digest_size=4 * HASHES, key=self._key).digest()
        return [int.from_bytes(found[begin : begin + 4], "big") % BITS for begin in range(0, 4 * HASHES, 4)]
