"""Configs and journals that would be waited for, or computed, without end are refused in one line."""

import os
import sqlite3

import pytest

from jaxrun.config.config import CONFIG_BYTES, StrictModel, load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal


def test_a_config_that_is_a_pipe_a_device_or_too_large_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="is a pipe, expected a plain file"):
        load_config(StrictModel, tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="/dev/zero: is a device, expected a plain file"):
        load_config(StrictModel, "/dev/zero")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(CONFIG_BYTES + 1)
    with pytest.raises(UserError, match="has 16,777,217 bytes, expected at most 16,777,216"):
        load_config(StrictModel, tmp_path / "large.yaml")


@pytest.mark.parametrize(
    "program",
    [
        "ALTER TABLE events RENAME TO other; CREATE VIEW events AS WITH RECURSIVE n(tick) AS "
        "(SELECT 1 UNION ALL SELECT tick + 1 FROM n) SELECT tick id, 'a' kind, '' task, 0 trial, '{}' payload, tick, "
        "0.0 wall_s FROM n",
        "CREATE TRIGGER grow AFTER INSERT ON events BEGIN DELETE FROM meta; END",
    ],
    ids=["view", "trigger"],
)
def test_a_journal_that_computes_is_refused_by_readers_and_writers(tmp_path, program):
    Journal.open(tmp_path, config_text="a: 1", identity={}).close()
    database = sqlite3.connect(tmp_path / "journal.db")
    database.executescript(program)
    database.close()
    with pytest.raises(UserError, match=r"journal\.db: holds a view or trigger '\w+', expected a journal"):
        Journal.read(tmp_path)
    with pytest.raises(UserError, match=r"journal\.db: holds a view or trigger"):
        Journal.open(tmp_path, config_text="a: 1", identity={})
