"""A durable record of running responses, so that none is left behind by a process that dies.

Needs the extra `ledger`: `pip install 'openai-cancel[ledger]'`.

# Operating a ledger in PostgreSQL

**URL and TLS.** The URL is libpq's, with all of its options and variables
(https://www.postgresql.org/docs/current/libpq-connect.html):
`postgresql://service@db1,db2/app?sslmode=verify-full&sslrootcert=/etc/ssl/db.pem`. Of several hosts, the one that can
be written to is used. Put a password into `~/.pgpass`, into a service file, or into the variable `PGPASSWORD` or
`OPENAI_CANCEL_LEDGER`, and not into an argument of a command.

**Roles and grants.** The tables are created by whoever opens the ledger first. To give services no right to do that,
let a migration job run `openai-cancel ledger init --grant SERVICE` as the role that shall own them. It does this:

```sql
GRANT SELECT, INSERT, UPDATE, DELETE ON openai_cancel_responses TO "SERVICE";  -- DELETE is for `purge` alone
GRANT SELECT ON openai_cancel_schema TO "SERVICE";
```

Every role also needs USAGE of the schema, which is the first one of its `search_path`: of `public`, everybody has it. A
role that lacks a right gets a `LedgerError` that names the grant.

**Pooler.** pgbouncer works, also in transaction mode: there are no prepared statements, and every setting ends with its
transaction. A `Ledger` uses one connection, and a new one after a failure, for any number of sessions and guards.

**Backup and restore.** The tables are ordinary ones: `pg_dump` and a point-in-time recovery include them. After a
restore, responses that were recorded later are missing, and those that ended later are open again. Guards that live
record theirs again with their next heartbeat. A sweep finds that others have ended, and stops those that were released
later and still run: if that matters, release them again before the sweepers start. A replica that is promoted is
used from the next transaction on. Without synchronous replication it may lack the last rows, as after a restore.

**Upgrade.** A new version of this package may add columns. `openai-cancel ledger init` with the new version brings the
tables to it, in one transaction of up to ten minutes; meanwhile services wait, or go on without a record. Upgrade the
services afterwards. Those that still run the old version keep working until they connect again, which then is an error.

**Sizing.** Measured with PostgreSQL 18, ids of 53 characters and one label:

| | |
|---|---|
| an open row, with its part of five indexes | 620 bytes |
| a row that has ended | 470 bytes after a vacuum |
| writes per guard | an insert, an update at its end, and an update every third of a lease (20 s) meanwhile |
| the log (WAL) that they make | 0.9 kB, 0.8 kB, and 1.0 to 1.3 kB each |
| transactions | those of one process that wait at the same time share one; a heartbeat is one for all of its guards |

A service with 1,000 responses at a time that take five minutes each writes about 55 rows and 60 kB of log a second. A
longer `lease` means fewer heartbeats, and later sweeps. `ledger purge --older-than 7d` in a daily job bounds the size:
100,000 responses a day are then 330 MB. `ledger stats` reads the whole table, 0.3 s for 100,000 rows;
`ledger stats --open-only` reads an index.

**Monitoring.** Run `openai-cancel ledger sweep --every 30s` on two hosts or more, for each account.
`openai-cancel ledger check --overdue 5m` fails if responses of any account are overdue for longer. It looks at the work
and not at a process, and so sees a sweeper that hangs, that has a wrong key, or that was never deployed.
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
