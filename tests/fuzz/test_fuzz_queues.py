"""The database of a queue."""

from damage import damaged
from fuzzing import fuzz, run_verb

from altojax.cli import main
from altojax.cluster.service.queue.store import Store


def test_the_bytes_of_a_queue(tmp_path, capsys):
    folder = tmp_path / "queue"
    Store.take(folder).release()
    whole = (folder / "queue.db").read_bytes()

    def read(content: bytes) -> None:
        for path in folder.glob("queue.db-*"):
            path.unlink()
        (folder / "queue.db").write_bytes(content)
        run_verb(main, capsys, "queue", f"queue={folder}")
        run_verb(main, capsys, "cancel", "none", f"queue={folder}")

    words = [b"records", b"value", b"CREATE"]
    fuzz(read, damaged(whole, words), b"", whole[: len(whole) // 2], whole.replace(b"CREATE TABLE", b"\xff" * 12))
