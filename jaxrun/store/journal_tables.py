"""Tables of a journal, and what earlier versions made of them."""

import sqlite3

# The columns trial and loss have no type, so that SQLite keeps 1 apart from '1' and can hold 'nan'.
TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE events (id INTEGER PRIMARY KEY, tick INTEGER NOT NULL, kind TEXT NOT NULL, task TEXT, trial,"
    " payload TEXT NOT NULL, wall_s REAL NOT NULL)",
    "CREATE TABLE points (id INTEGER PRIMARY KEY, tick INTEGER NOT NULL, task TEXT, trial, step INTEGER NOT NULL,"
    " samples INTEGER NOT NULL, tokens INTEGER NOT NULL, split TEXT NOT NULL, loss, lr REAL, time_s REAL,"
    " grad_norm REAL)",
    "CREATE INDEX points_by_trial ON points (task, trial, split)",
    "CREATE TABLE checkpoints (id INTEGER PRIMARY KEY, tick INTEGER NOT NULL, manifest TEXT NOT NULL,"
    " files TEXT NOT NULL, last_event INTEGER NOT NULL, last_point INTEGER NOT NULL)",
)
POINT_COLUMNS = ("task", "trial", "step", "samples", "tokens", "split", "loss", "lr", "time_s", "grad_norm")
"""Of a `jaxrun.store.records.Point`; the last one is missing where a version before it began the run."""

COUNT = (
    "SELECT task, count(*) FROM (SELECT task FROM events WHERE kind = :kind ORDER BY id DESC LIMIT :newest) GROUP BY 1"
)
"""Events of a kind by their task, among the newest of that kind."""


def point_columns(database: sqlite3.Connection) -> tuple[str, ...]:
    """Returns those of `POINT_COLUMNS` that a journal has."""
    there = {name for (name,) in database.execute("SELECT name FROM pragma_table_info('points')")}
    return POINT_COLUMNS if POINT_COLUMNS[-1] in there else POINT_COLUMNS[:-1]


def upgrade(database: sqlite3.Connection) -> None:
    """Adds the columns that an earlier version did not make."""
    if point_columns(database) != POINT_COLUMNS:
        database.execute("ALTER TABLE points ADD COLUMN grad_norm REAL")
