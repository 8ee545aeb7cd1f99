"""A durable record of running responses, so that none is left behind by a process that dies.

Needs the extra `ledger`: `pip install 'openai-cancel[ledger]'`.

# How it works

A ledger records running responses in SQLite or PostgreSQL. Each row has a lease. `guard` and `wait` write the row
before their block begins, renew the lease while the process lives, and release the row at the end. If the process dies,
the lease expires. A sweep on any host then claims the response, stops it, and records the outcome.

```python
import asyncio

from openai_cancel import AsyncSession
from openai_cancel.ledger import Ledger


async def main() -> None:
    async with Ledger("sqlite:///ledger.db") as ledger, AsyncSession(ledger=ledger) as session:
        async with session.guard("resp_123"):
            ...  # if the process is killed here, a sweep can stop the response a minute later

        # For a response that no guard protects: stop it in 15 minutes, unless it is released first, or guarded then.
        await ledger.track("resp_123", session=session, ttl=15 * 60, labels={"job": "7"})
        assert await ledger.release("resp_123", session=session)

        async for outcome in ledger.sweep(session):
            print(outcome.response_id, outcome.verdict)


asyncio.run(main())
```

A row contains the id, base URL, account, labels, time of creation, lease and its owner, number of attempts, state
(`tracked`, `stopping`, `released`, or the verdict), last error, and request id. It never contains a key.

# A whole service

A service that creates responses with the official client need not guard each of them. `AsyncSession.watch` records
every background response of a client, in any task or thread, before the code that creates it has its id. The lease is
renewed until the client or the session sees the response end. What still runs when the watch or the session is closed
is left to the next sweep.

If another process polls, or a webhook tells you of the end, call `watch.release(response_id)`. Otherwise the lease is
renewed as long as the process lives.

# In code that blocks

`session.ledger` of a blocking `Session` is a `BlockingLedger`, with the methods of `Ledger`:

```python
from openai_cancel import Session
from openai_cancel.ledger import Ledger

with Session(ledger=Ledger("sqlite:///ledger.db")) as session:
    session.ledger.track("resp_123", ttl=15 * 60, labels={"job": "7"})
    for outcome in session.ledger.stop(labels={"job": "7"}):
        print(outcome.response_id, outcome.verdict)
```

# On the command line

```sh
export OPENAI_CANCEL_LEDGER=postgresql://openai_cancel@db/openai_cancel
openai-cancel ledger sweep --every 30s      # on any number of hosts: only one of them claims an expired lease
openai-cancel ledger list --older-than 10m
openai-cancel ledger add resp_123 --ttl 15m --label job=7
openai-cancel ledger stop --label job=7     # now, whoever guards or tracks them; try --dry-run first
openai-cancel ledger add --file ids.txt --ttl 1s    # any number of ids: the sweeps of all hosts share them
openai-cancel ledger purge --older-than 7d
```

`ledger add --file` records a million ids in a few minutes, in transactions of 1,000 and with constant memory. `stop`,
`list` and `purge` select responses by `--label`, `--state` and `--older-than`. Reading a ledger does not wait for
processes that write.

# Which responses a sweep stops

A sweep stops only responses of its own account and server. By default, the account is a fingerprint of the key, the
organization and the project. If keys rotate, set a name: `AsyncSession(ledger=ledger, account="team-a")`, or
`--account team-a`.

Leases are measured by the clock of the database, so wrong clocks on hosts do not matter. If a response cannot be
stopped, sweeps try again after 30 s, 1 min, and so on up to 1 h. They give up after 12 attempts. `ledger list --all`
shows the reason. A sweep whose key is refused uses up no attempt: its responses stay overdue. The same holds for one
that ends because the server cannot be reached, as the command does after 30 s.

# Compare a ledger with its server

An id that was never received cannot be recorded. If the process dies, or the connection breaks, before the answer of a
creation arrives, the ledger has no trace of the response. Without a watch, the same holds until the guard of the
response is entered. ogx, Microsoft Foundry and Fireworks list their responses. There, `Ledger.reconcile` finds what
runs and is not recorded, and strikes off what is over:

```sh
openai-cancel ledger reconcile                          # only says what it found
openai-cancel ledger reconcile --adopt --ttl 1h --metadata team=search
openai-cancel ledger reconcile --stop --metadata team=search --yes
```

The list may include the work of other people. OpenAI and others have no list. There, limit the lifetime of each
response if the server supports that.

# Limit how long responses run

`Ledger(url, max_age=2 * 3600)`, or `max_age` of `guard` and `wait`, limits how long responses run, whoever holds them:
that many seconds after a response was first recorded, a sweep stops it, even if its process lives or was restarted.
The guard of such a response learns of it within a third of a lease. Its `outcome` says so, with a `LeaseTakenError`,
and the block goes on.

# If the database fails

A failure of the database does not interrupt a block. It is logged once, as an error, until the database works again,
and the missing rows are written then. With `ledger_required=True`, a `LedgerError` is raised instead. If that happens
before the block begins, the response is stopped.

Closing takes no longer than the ledger's `timeout`. It logs the ids of the responses whose new state could not be
written.

# Cost

Concurrent guards share transactions, and one statement renews all leases of a process. `tests/benchmarks/ledger.py`, in
the sources, measures it.

# Deployment

Run sweeps on one or more hosts. For systemd, this service goes together with a timer that has `OnActiveSec=0`,
`OnUnitActiveSec=30s` and `AccuracySec=1s`:

```ini
[Service]
Type=oneshot
EnvironmentFile=/etc/openai-cancel.env
ExecStart=/usr/bin/openai-cancel ledger sweep --once
```

For Kubernetes, use a CronJob with `schedule: "* * * * *"`, `concurrencyPolicy: Allow`, and a container that runs
`openai-cancel ledger sweep --once`. Or use a Deployment with any number of replicas and `--every 30s`, which stops
within its grace period.

# SQLite

Use SQLite on one host only, and not on a network file system.

# PostgreSQL

**URL and TLS.** The URL means what it means to psql: every option of
[libpq](https://www.postgresql.org/docs/current/libpq-connect.html) works, and so do several hosts, service files and
the `PG…` variables, as in `postgresql://service@db1,db2/app?sslmode=verify-full&sslrootcert=/etc/ssl/db.pem`. A ledger
connects to a server that accepts writes: `target_session_attrs` is `read-write` if nothing else is set. Put a password
into `~/.pgpass`, into a service file, or into the variable `PGPASSWORD` or `OPENAI_CANCEL_LEDGER`, and not into an
argument of a command.

**Failures.** A connection that no longer answers, or that leads to a read-only server after a failover, is replaced
within the ledger's `timeout`. Of several hosts, each has a part of it, and at least 2 s.

**Locks.** A row that another transaction has locked does not hold up the others. A heartbeat skips it, an operation
that needs it fails after 0.3 of the `timeout`, and the end of its guard is written later.

**Encoding.** Use a database with the encoding UTF8. In another one, an error message with letters that it cannot hold
is stored in ASCII, with escapes.

**Roles and grants.** The tables are created by whoever opens the ledger first. To give services no right to do that,
let a migration job run `openai-cancel ledger init --grant SERVICE` as the role that is to own them. It runs:

```sql
GRANT SELECT, INSERT, UPDATE, DELETE ON openai_cancel_responses TO "SERVICE";  -- DELETE is for `purge` alone
GRANT SELECT ON openai_cancel_schema TO "SERVICE";
```

Every role also needs USAGE on the schema, the first one of its `search_path`. On `public`, every role has it. If a
role lacks a right, a `LedgerError` names the grant.

**Pooler.** pgbouncer works, also in transaction mode: there are no prepared statements, and every setting ends with its
transaction. A `Ledger` uses one connection, and a new one after a failure, for any number of sessions and guards.

**Backup and restore.** The tables are ordinary ones: `pg_dump` and a point-in-time recovery include them. After a
restore, responses that were recorded after the backup are missing, and those that have ended since are open again.
Living guards record their responses again with their next heartbeat. A sweep finds out that others have ended. It also
stops those that were released after the backup and still run: if that matters, release them again before the sweepers
start. A replica that is promoted is used from the next transaction on. Without synchronous replication, it may lack the
last rows, as after a restore.

**Upgrade.** A new version of this package may add columns. Its `openai-cancel ledger init` migrates the tables, in one
transaction of up to ten minutes. Meanwhile, services wait or go on without a record. Upgrade the services afterwards.
Those with the old version keep working until they connect again, which then fails.

**Sizing.** Measured with PostgreSQL 18, ids of 53 characters and one label:

| | |
|---|---|
| an open row, with its entries in five indexes | 620 bytes |
| a row that has ended | 470 bytes after a vacuum |
| writes per guard | an insert, an update at its end, and an update every third of a lease (20 s) meanwhile |
| the log (WAL) that they make | 0.9 kB, 0.8 kB, and 1.0 to 1.3 kB each |
| transactions | those of one process that wait at the same time share one; a heartbeat is one for all of its guards |

A service with 1,000 responses at a time that take five minutes each writes about 55 rows and 60 kB of log a second. A
longer `lease` means fewer heartbeats, and later sweeps. `ledger purge --older-than 7d` in a daily job bounds the size:
100,000 responses a day are then 330 MB. `ledger stats` reads the whole table, 0.3 s for 100,000 rows;
`ledger stats --open-only` reads an index.

**Monitoring.** Run `openai-cancel ledger sweep --every 30s` on two hosts or more, for each account.
`openai-cancel ledger check --overdue 5m` fails if responses of any account are overdue for longer. It checks the
work and not a process, so it also notices a sweeper that hangs, that has a wrong key, or that was never deployed.
`openai-cancel ledger stats --prometheus`, and OpenTelemetry, have the numbers.
"""

try:
    from openai_cancel.finding import Finding
    from openai_cancel.ledger.blocking import BlockingLedger
    from openai_cancel.ledger.entry import Entry
    from openai_cancel.ledger.ledger import Ledger
    from openai_cancel.ledger.stats import Group, Stats
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"{_missing.name} is not installed: pip install 'openai-cancel[ledger]'", name=_missing.name
    ) from None

__all__ = ["BlockingLedger", "Entry", "Finding", "Group", "Ledger", "Stats"]
