"""Takes in the requests that users leave in the spool of a shared queue, and answers them.

Nothing that a file is or holds stops this: it is refused with a reason. A request is stored before it is taken,
answered after that, and only then removed; so one that was cut off is found again, and none is taken twice.
"""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, zip_longest

from altojax.cluster.engines.faults import reason_of
from altojax.cluster.service.queue import spool
from altojax.cluster.service.queue.folder import SPOOL
from altojax.cluster.service.queue.queue_view import QueueView, Reader
from altojax.cluster.service.queue.requests import Request
from altojax.cluster.service.queue.spool import Letter, Reply, SpoolFile
from altojax.cluster.service.queue.store import Answer, Store
from altojax.cluster.service.queue.visibility import Seen
from altojax.cluster.tenancy.members import Members, user_name

AT_ONCE = 100
"""Requests that are taken in at a time, at most."""
_OF_ONE = 20
"""Those of them that one user may have."""
_WAITING = 10_000
"""Requests of one user that may lie in the spool; newer ones are refused."""
_LOOKS = 16
"""Views of the queue that are kept for one user to read."""
_FRESH_S = 1.0
"""Seconds for which a view of the queue is shown again."""
_CLEAN_S = 60.0


class Reception:
    """The spool of one queue, as who serves it has it."""

    def __init__(
        self,
        store: Store,
        members: Members,
        say: Callable[[str], None],
        *,
        owner: Callable[[SpoolFile], int] = lambda found: found.uid,
    ) -> None:
        """Starts with nothing taken in.

        Args:
            store: The queue's.
            members: Who belongs to which tenant.
            say: Told in a line of what goes wrong and passes.
            owner: Returns the OS user whose request a file is.
        """
        self._store, self._members, self._say, self._owner = store, members, say, owner
        self._known: dict[str, SpoolFile] = {}
        self._unanswered: dict[int, str] = {}
        self._stuck: set[str] = set()
        self._said = ""
        self._reader: Reader | None = None
        self._snapshot: QueueView | None = None
        self._views: dict[int, Reply] = {}
        self._read_s = self._cleaned_s = -float("inf")
        self._looks: dict[int, deque[str]] = defaultdict(deque)

    def collect(self) -> None:
        """Stores new requests, and answers those that are refused at once or only look.

        Raises:
            UserError: The store cannot be written.
        """
        with self._supervised():
            if self.is_open:
                self._collect()

    def answer(self, answers: Iterable[Answer]) -> None:
        """Answers requests; by then their effect is visible in the queue."""
        self._read_s = -float("inf")
        for one in answers:
            if (token := self._unanswered.pop(one.request, None)) is not None:
                self._reply(token, Reply(one.job, one.error))

    @property
    def is_open(self) -> bool:
        """Whether other users may leave requests."""
        return (self._store.folder / SPOOL).is_dir()

    @property
    def waits(self) -> bool:
        """Whether a request lies in the spool that was not taken in."""
        with self._supervised():
            return self.is_open and bool(self._waiting())
        return False

    def close(self) -> None:
        """Lets go of the queue."""
        if self._reader is not None:
            self._reader.close()

    @contextlib.contextmanager
    def _supervised(self) -> Iterator[None]:
        """Reports an error of the spool in the block, and ignores it."""
        try:
            yield
        except OSError as error:
            self._tell(f"requests of other users cannot be read: {reason_of(error)}")

    def _collect(self) -> None:
        if time.monotonic() - self._cleaned_s > _CLEAN_S:
            spool.forget_old(self._store.folder)
            self._cleaned_s = time.monotonic()
        new: list[tuple[SpoolFile, Letter]] = []
        for found in self._next():
            try:
                letter = self._read(found)
            except FileNotFoundError:  # taken back
                continue
            except Exception as error:
                self._reply(found.token, Reply(error=reason_of(error)))
                continue
            if letter is not None:
                new.append((found, letter))
        # The kernel's clock for files ticks some milliseconds at a time.
        new.sort(key=lambda one: (one[0].changed_s, one[1].asked_s))
        if new:
            numbers = self._store.append([self._request(found, letter) for found, letter in new])
            self._unanswered.update(zip(numbers, (found.token for found, _ in new), strict=True))

    def _waiting(self) -> list[SpoolFile]:
        there = {found.token: found for found in spool.listed(self._store.folder, self._known)}
        self._known, self._stuck = there, self._stuck & there.keys()
        held = self._stuck.union(self._unanswered.values())
        return [found for token, found in there.items() if token not in held]

    def _next(self) -> list[SpoolFile]:
        """Returns the requests whose turn it is: the oldest of each user, and no user before the others."""
        of_users: dict[int, list[SpoolFile]] = defaultdict(list)
        for found in self._waiting():
            of_users[self._owner(found)].append(found)
        for of_one in of_users.values():
            of_one.sort(key=lambda found: found.changed_s)
            for found in of_one[_WAITING:]:
                self._reply(found.token, Reply(error=f"{_WAITING:,} requests of yours wait, expected no more"))
        turns = zip_longest(*(of_one[:_OF_ONE] for of_one in of_users.values()))
        return list(islice((found for found in chain.from_iterable(turns) if found is not None), AT_ONCE))

    def _read(self, found: SpoolFile) -> Letter | None:
        """Returns a request that is to be stored, or None where it was answered or is stored already."""
        uid = self._owner(found)
        if not self._members.knows(uid):
            raise self._members.refusal(uid)
        number = self._store.number_of(found.token)
        if number is not None:
            self._unanswered[number] = found.token
            answer = self._store.answer(number)
            self.answer([] if answer is None else [answer])
            return None
        letter = spool.receive(self._store.folder, found)
        if letter.kind != "look":
            return letter
        self._reply(found.token, self._view(uid))
        looks = self._looks[uid]
        looks.append(found.token)
        if len(looks) > _LOOKS:
            spool.forget(self._store.folder, looks.popleft())
        return None

    def _request(self, found: SpoolFile, letter: Letter) -> Request:
        assert letter.kind != "look"
        uid = self._owner(found)
        made_s = min(found.changed_s, time.time())
        return Request(letter.kind, letter.job, letter.tenant, uid, user_name(uid), made_s, letter.content, found.token)

    def _view(self, uid: int) -> Reply:
        if self._reader is None:
            self._reader = Reader(self._store.folder)
        if self._snapshot is None or time.monotonic() - self._read_s > _FRESH_S:
            self._snapshot, self._read_s, self._views = self._reader.snapshot(), time.monotonic(), {}
        if uid not in self._views:
            self._views[uid] = Reply(seen=Seen.by(uid, self._members, self._snapshot))
        return self._views[uid]

    def _reply(self, token: str, content: Reply) -> None:
        """Answers a request; where that fails now the request stays, and is found again."""
        try:
            spool.reply(self._store.folder, token, content)
        except IsADirectoryError:  # which is not removed: its owner may have put more there
            self._stuck.add(token)
        except OSError as error:
            self._tell(f"users cannot be answered: {reason_of(error)}")

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._say(line)
