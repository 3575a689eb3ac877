"""A task's folder in the queue: what its worker is told, and who may enter."""

import os

from altojax.cluster.engines.engine import Order
from altojax.cluster.tenancy.grants import Roots
from altojax.cluster.tenancy.roots import NAME as ROOTS_NAME
from altojax.config.tune_config import TuneConfig
from jaxrun.config.config import dump_config
from jaxrun.files.atomic import write_atomic
from jaxrun.untrusted.accounts import Account

READABLE = 0o644
"""Rights of what a worker reads: the folder above keeps others out."""


def prepare(order: Order, config: TuneConfig, roots: Roots | None) -> None:
    """Makes the folder of an attempt, with its worker's orders.

    It belongs to the user as whom the worker runs, and is closed to others. What the queue itself writes there stays
    its own, and by that is known from what the user may put in its place.

    Args:
        order: The attempt.
        config: The run.
        roots: Beneath which its paths lie; None where its tenant has none.

    Raises:
        UserError: The folder cannot be written, or there is no such user.
    """
    jobs = order.folder.parent
    jobs.mkdir(mode=0o700, exist_ok=True)
    order.folder.mkdir(mode=0o700, exist_ok=True)
    if order.uid is not None:
        account = Account.of(order.uid)
        jobs.chmod(0o711)
        os.chown(order.folder, account.uid, account.gid, follow_symlinks=False)
    write_atomic(order.folder / "task.yaml", dump_config(config), mode=READABLE)
    if roots is not None:
        own = roots.model_copy(update={"write": [*roots.write, str(order.folder)]})  # where a shared run lies
        write_atomic(order.folder / ROOTS_NAME, own.model_dump_json(), mode=READABLE)
