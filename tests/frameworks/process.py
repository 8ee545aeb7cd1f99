"""Run a driver in a process that a signal ends: `process.py DRIVER PROTECTED BASE_URL LEDGER_URL`."""

import asyncio
import signal
import sys

from drivers import DRIVERS, Driver
from protection import KEY, protecting, protecting_blocking


def step() -> bool:
    """Tell that the code has seen the response."""
    print("seen", flush=True)  # noqa: T201
    return False


async def run(driver: Driver, base_url: str, ledger_url: str, *, protected: bool) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    client = driver.client(api_key=KEY, base_url=base_url)
    async with protecting(driver.guards(client), base_url, ledger_url, protected=protected):
        await driver.run(client, step)


def run_blocking(driver: Driver, base_url: str, ledger_url: str, *, protected: bool) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    client = driver.client(api_key=KEY, base_url=base_url)
    with protecting_blocking(driver.guards(client), base_url, ledger_url, protected=protected):
        driver.run(client, step)


def main(name: str, protected: str, base_url: str, ledger_url: str) -> None:
    driver = DRIVERS[name]
    if driver.blocks:
        run_blocking(driver, base_url, ledger_url, protected=protected == "True")
    else:
        asyncio.run(run(driver, base_url, ledger_url, protected=protected == "True"))


if __name__ == "__main__":
    main(*sys.argv[1:])
