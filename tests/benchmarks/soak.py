"""Stop many responses through a proxy that breaks 5 % of all exchanges at random.

    python tests/benchmarks/soak.py [COUNT [SEED]]      # 200,000 take a few minutes

No outcome may be lost or wrong, and memory must not grow. The emulator and the proxy run in one process, the client in
another, where warnings are errors. The exit status is 1 if an outcome does not match the emulator's response.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

CONCURRENCY = 200
FAILING = 0.05
MAX_GROWTH = 8.0
"""MB by which the client's memory may grow after the first fifth of the stops."""

SKIPPED = ("MB", "bomb", "endless", "20 ms", "kept open", "101", "30")
"""Words in the names of faults to skip: those that take long, and redirects, which are not transient."""

KINDS = ("completed", "failed", "foreground", "unknown", *["running"] * 6)
VERDICTS = {
    "completed": {"already_finished"},
    "failed": {"already_finished"},
    "foreground": {"not_background", "already_finished"},  # the latter if the message of the refusal was lost
    "unknown": {"not_found"},
    "running": {"cancelled"},
}
STATUSES = {"foreground": "completed", "running": "cancelled"}


async def serve(count: int, seed: int, folder: Path) -> None:
    """Run the server: print its URL, wait for a line on standard input, then write the state of each response."""
    from faults import FAULTS, FaultProxy, NetFault

    from openai_cancel.emulator import Emulator, Script

    chance = Random(seed)
    unknown = [word for word in SKIPPED if not any(word in name for name in FAULTS)]
    assert not unknown, f"no fault to skip has {unknown} in its name"
    names = [name for name in FAULTS if not any(word in name for word in SKIPPED)]
    struck: Counter[str] = Counter()

    def choose() -> NetFault | None:
        server.received.clear()
        struck[name := chance.choice(names) if chance.random() < FAILING else "nothing"] += 1
        return FAULTS.get(name)

    async with Emulator(script=Script(runs_for=1e9)) as server, FaultProxy(server.base_url, choose=choose) as proxy:
        with (folder / "ids").open("w") as file:
            for number in range(count):
                kind = KINDS[number % len(KINDS)]
                if kind == "unknown":
                    name = f"resp_{number:050x}"
                elif kind in {"completed", "failed"}:
                    name = server.add(Script(runs_for=0, becomes=kind))
                else:
                    name = server.add(background=kind != "foreground")
                file.write(f"{name} {kind}\n")
        print(proxy.base_url, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        with (folder / "states").open("w") as file:
            for work in server.responses.values():
                file.write(f"{work.id} {work.status(time.time())} {work.cancels}\n")
    print(f"{struck.pop('nothing'):,} exchanges without a fault, {struck.total():,} with one of {len(struck)} kinds")


async def stop(count: int, base_url: str, folder: Path) -> None:
    """Run the client: stop all responses and write each outcome to a file."""
    from openai_cancel import AsyncSession

    memory: list[float] = []
    done = attempts = 0
    longest = 0.0
    began = time.perf_counter()
    with (folder / "ids").open() as ids, (folder / "outcomes").open("w") as outcomes:
        session = AsyncSession(base_url=base_url, api_key="any", timeout=1, max_connections=CONCURRENCY)
        async with session:
            async for outcome in session.stop_many((line.split()[0] for line in ids), concurrency=CONCURRENCY):
                outcomes.write(f"{outcome.response_id} {outcome.verdict}\n")
                attempts += outcome.attempts
                longest = max(longest, outcome.elapsed)
                done += 1
                if done % (count // 10) == 0:
                    memory.append(resident())
    seconds = time.perf_counter() - began
    growth = max(memory[2:]) - memory[1]
    print(f"{done:,} stops in {seconds:.1f} s, {done / seconds:,.0f}/s, {attempts / done:.2f} attempts each")
    print(f"the longest took {longest:.1f} s; memory in MB: {' '.join(f'{each:.1f}' for each in memory)}")
    if growth > MAX_GROWTH:
        sys.exit(f"the client's memory grew by {growth:.1f} MB")


def resident() -> float:
    """Return the memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def differences(folder: Path) -> Iterator[str]:
    """Yield a line for each outcome that does not match the state of its response on the server."""
    kinds = dict(line.split() for line in (folder / "ids").open())
    states = {name: (status, int(cancels)) for name, status, cancels in map(str.split, (folder / "states").open())}
    told: Counter[str] = Counter()
    for line in (folder / "outcomes").open():
        name, verdict = line.split()
        told[name] += 1
        if verdict not in VERDICTS[kinds[name]]:
            yield f"{name}, {kinds[name]}: {verdict}"
    yield from (f"{name}: {told[name]} outcomes" for name in kinds if told[name] != 1)
    for name, (status, cancels) in states.items():
        kind = kinds[name]
        if status != STATUSES.get(kind, kind) or (cancels > 0) != (kind == "running"):
            yield f"{name}, {kind}: {status} after {cancels} cancels"


def main(count: int = 200_000, seed: int = 9) -> None:
    """Run both processes and compare their files."""
    python = [sys.executable, "-W", "error", __file__]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with subprocess.Popen(
            [*python, "serve", str(count), str(seed), name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as server:  # fmt: skip
            try:
                base_url = server.stdout.readline().strip()
                client = subprocess.run(
                    [*python, "stop", str(count), base_url, name], stderr=subprocess.PIPE, text=True, check=False
                )
            except BaseException:
                server.kill()
                raise
            print(server.communicate("\n")[0], end="")
        problems = list(differences(folder))
    print(f"{len(problems)} lost or wrong (seed {seed})", *problems[:20], sep="\n  ")
    print(client.stderr, end="", file=sys.stderr)
    sys.exit(bool(problems or client.stderr or client.returncode or server.returncode))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", count, seed, folder]:
            asyncio.run(serve(int(count), int(seed), Path(folder)))
        case ["stop", count, base_url, folder]:
            asyncio.run(stop(int(count), base_url, Path(folder)))
        case numbers:
            main(*map(int, numbers))
