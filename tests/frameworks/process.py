"""Run a driver in a process that a signal ends: `process.py DRIVER PROTECTION BASE_URL LEDGER_URL`."""

import asyncio
import signal
import sys

from drivers import DRIVERS, Driver
from protection import KEY, Protection, protecting, protecting_blocking


def step() -> bool:
    """Tell that the code has seen the response."""
    print("seen", flush=True)  # noqa: T201
    return False


async def run(driver: Driver, protection: Protection, base_url: str, ledger_url: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    client = driver.client(api_key=KEY, base_url=base_url)
    async with protecting(driver.guards(client), protection, base_url, ledger_url):
        await driver.run(client, step)


def run_blocking(driver: Driver, protection: Protection, base_url: str, ledger_url: str) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    client = driver.client(api_key=KEY, base_url=base_url)
    with protecting_blocking(driver.guards(client), protection, base_url, ledger_url):
        driver.run(client, step)


def main(name: str, protection: str, base_url: str, ledger_url: str) -> None:
    driver = DRIVERS[name]
    if driver.blocks:
        run_blocking(driver, Protection(int(protection)), base_url, ledger_url)
    else:
        asyncio.run(run(driver, Protection(int(protection)), base_url, ledger_url))


if __name__ == "__main__":
    main(*sys.argv[1:])
