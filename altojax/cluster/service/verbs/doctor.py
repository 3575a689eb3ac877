"""The checks of ``altojax doctor`` for the files of ``altojax submit`` and ``altojax serve``: those that these make."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

from altojax.cluster.service.queue import lease
from altojax.cluster.service.queue.client import Client, OperatorClient, connect, queue_folder
from altojax.cluster.service.queue.folder import refuse_foreign
from altojax.cluster.service.queue.store import View
from altojax.cluster.service.verbs.queue_table import QueueSettings
from altojax.cluster.service.verbs.serve import ServeConfig, check_server
from altojax.cluster.service.verbs.submit import checked
from altojax.cluster.tenancy.members import Members
from jaxrun.config.config import load_config
from jaxrun.config.settings import take_settings
from jaxrun.files.atomic import refuse_unwritable
from jaxrun.terminal.sizes import counted


def check_task(path: str, words: Sequence[str], *, overwrite: bool) -> Iterator[str]:
    """Yields lines about a task for the queue.

    Args:
        path: Its file.
        words: Its keys as typed, and ``queue=FOLDER``.
        overwrite: Whether what an earlier run left in its folder makes way.

    Raises:
        UserError: What ``altojax submit`` would refuse, or what its run would stop at on any host.
    """
    from altojax.cluster.service.submission_builder import SubmitConfig, for_any_device
    from altojax.run.tuner import Tuner

    settings, overrides = take_settings(QueueSettings, words)
    config, folder = load_config(SubmitConfig, path, overrides), queue_folder(settings.queue)
    with contextlib.closing(connect(folder)) as client:
        submission, served = checked(client, config), _served(client)
        if isinstance(client, OperatorClient):
            refuse_unwritable(folder)
    Tuner(for_any_device(config), overwrite=overwrite).opening.check()
    yield f"task          {path}: fine, for altojax submit"
    yield f"  queue       {folder}: {served}"
    yield f"  GPUs        {' or '.join(map(str, submission.gpus))}"
    yield f"  trials      {submission.trials} in {counted(len(submission.tasks), 'task')}"


def check_serve(path: str, overrides: Sequence[str]) -> Iterator[str]:
    """Yields lines about a file of ``altojax serve``; asks the engine for its nodes and writes nothing.

    Raises:
        UserError: What ``altojax serve`` would stop at.
    """
    config = load_config(ServeConfig, path, overrides)
    folder = queue_folder(config.queue)
    refuse_unwritable(folder)
    new = not OperatorClient(folder).exists
    if folder.exists():
        refuse_foreign(folder)
    if not new:
        with contextlib.closing(View.read(folder)) as view:
            lock = lease.open_lock(folder)
            try:
                lease.refuse_held(view.holder, folder, lock, time.time())
            finally:
                os.close(lock)
    Members.of(config.tenants, os.getuid())
    if config.page is not None:
        check_server()
        from altojax.cluster.service.page.server import check_port

        check_port(config.page.port)
    with contextlib.closing(config.engine.engine(folder)) as engine:
        nodes = engine.nodes()
    yield f"config        {path}: fine, for altojax serve"
    yield f"  queue       {folder}: {'new' if new else 'nobody serves it now'}"
    yield f"  engine      {engine.name}: {counted(len(nodes), 'node')} with {counted(sum(nodes.values()), 'GPU')}"
    yield f"  tenants     {', '.join(config.tenants) or 'none, so the queue is yours alone'}"


def _served(client: Client) -> str:
    if not client.exists:
        return "new"
    seen = client.look()
    return f"served by {seen.snapshot.holder}" if seen is not None and seen.snapshot.alive else "served by nobody now"
