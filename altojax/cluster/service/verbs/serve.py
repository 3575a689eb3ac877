"""``altojax serve``: orchestrates a queue until it is stopped."""

import contextlib
import os
import time
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

import pydantic
from rich.console import Console

from altojax.cluster.engines.local import NEEDED
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.resources.tenants import Tenant
from altojax.cluster.service.console_log import ConsoleLog
from altojax.cluster.service.engine_config import LocalSection, Section, chooses_engine
from altojax.cluster.service.queue.client import queue_folder
from altojax.cluster.service.queue.folder import set_doors
from altojax.cluster.service.queue.store import Store
from altojax.cluster.tenancy.members import Members, TenantSection
from jaxrun.config.config import StrictModel, load_config
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import catch_interrupt
from jaxrun.terminal.sizes import counted

LOOK_S = 0.2
"""Seconds between two looks at the queue while nothing happens."""


class PageSection(StrictModel):
    """The page that shows the queue.

    Attributes:
        port: On 127.0.0.1; 0 takes any that is free.
    """

    port: Annotated[int, pydantic.Field(ge=0, le=65535)] = 0


@chooses_engine
class ServeConfig(StrictModel):
    """Settings of ``altojax serve``.

    Attributes:
        queue: Folder of the queue; null is $ALTOJAX_QUEUE, else runs/queue.
        engine: Where tasks run: ``local``, ``here``, ``slurm`` or ``ray``, or the same with keys, such as
            ``{kind: local, gpus: 2}``.
        tenants: Name of a tenant -> its ``weight``, ``quota`` of GPUs, ``users`` and ``groups``, ``roots`` beneath
            which its tasks read and write, ``trust_remote_code`` and ``metric_code``; without any the queue is for who
            serves it alone.
        policy: How tasks are scheduled.
        page: The page that shows the queue; null serves none.
        on_stop: What becomes of running tasks when this is stopped: ``leave`` them running, or ``halt`` them once they
            have saved, as happens to a task of this process anyway.
        until_idle: End by itself once nothing waits or runs.
    """

    queue: str | None = None
    engine: Section = LocalSection()
    tenants: dict[str, TenantSection] = pydantic.Field(default={})
    policy: Policy = Policy()
    page: PageSection | None = PageSection()
    on_stop: Literal["leave", "halt"] = "leave"
    until_idle: bool = False

    foreign_names: ClassVar[dict[str, str]] = {"gpus": "engine", "port": "page", "folder": "queue"}

    @pydantic.model_validator(mode="after")
    def _tenants_are_said_once(self) -> "ServeConfig":
        if self.policy.tenants:
            raise ValueError("policy.tenants is made from tenants, expected them there")
        defaults = [name for name, tenant in self.tenants.items() if tenant.default]
        if len(defaults) > 1:
            raise ValueError(f"tenants: {', '.join(defaults)} are the default, expected one of them to be")
        return self

    def policy_of_tenants(self) -> Policy:
        """Returns the policy with the shares of the tenants."""
        shares = {name: Tenant(weight=one.weight, quota=one.quota) for name, one in self.tenants.items()}
        return self.policy.model_copy(update={"tenants": shares})


def run(args: Args) -> int:
    """Runs ``altojax serve [CONFIG] key=value ...``."""
    if args["config"] is None:
        return serve(read_settings(ServeConfig, args.overrides))
    return serve(load_config(ServeConfig, args["config"], args.overrides))


def serve(config: ServeConfig) -> int:
    """Orchestrates a queue until a signal arrives, or until nothing is left where the config says so.

    Raises:
        UserError: Another orchestrator has the queue, or takes it over; the engine or the page cannot be had; the disk
            is full.
    """
    from altojax.cluster.service.access import Access
    from altojax.cluster.service.orchestrator import Orchestrator

    if config.page is not None:
        check_server()
    log = ConsoleLog(Console())
    folder = queue_folder(config.queue)
    with contextlib.ExitStack() as stack:
        members = Members.of(config.tenants, os.getuid())
        store = Store.take(folder)
        stack.callback(store.release)
        set_doors(folder, shared=bool(config.tenants))
        engine = config.engine.engine(folder)
        access = Access.on(engine, config.tenants)
        if access.umask is not None:
            stack.callback(os.umask, os.umask(access.umask))
        orchestrator = Orchestrator(
            store,
            engine,
            config.policy_of_tenants(),
            members,
            tell=log.tell,
            say=log.say,
            access=access,
        )
        stack.callback(orchestrator.close)
        running = orchestrator.recover()
        log.say(f"serving {folder} on {engine.name}" + (f"; running: {counted(running, 'task')}" if running else ""))
        for line in access.warnings(engine.name, () if getattr(config.engine, "worker", None) else NEEDED):
            log.say(line)
        if config.page is not None:
            from altojax.cluster.service.page.server import ADDRESS_NAME, serve_page

            shown = serve_page(folder, config.page.port, private=bool(config.tenants), files=access.files)
            page = stack.enter_context(shown)
            log.say(f"page: {page.url} (its token and a link with it are in {folder / ADDRESS_NAME})")
        interrupt = stack.enter_context(catch_interrupt())
        while not (interrupt.requested or (config.until_idle and orchestrator.idle)):
            if not orchestrator.turn():
                time.sleep(LOOK_S)
        halts = config.on_stop == "halt" or config.engine.kind == "here"
        if interrupt.requested and halts and orchestrator.running:
            log.say("waiting for running tasks to save and stop; they resume when somebody serves again")
            orchestrator.halt()
            while orchestrator.running:
                orchestrator.wind_down()
                time.sleep(LOOK_S)
    return 130 if interrupt.requested else 0


def check_server() -> None:
    """Refuses a page where its web server is missing.

    Raises:
        UserError: A package of the extra ``serve`` is not installed.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        what = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise UserError(f"page: {what}, expected pip install 'altojax[serve]', or page=null for none")


VERB = Verb(
    name="serve",
    help="Orchestrate a queue: give waiting tasks GPUs so that all of them finish soonest.",
    run=run,
    positionals=(Positional("config", "a YAML file with the keys below", required=False),),
    config=lambda: ServeConfig,
    examples=(
        "altojax serve",
        "altojax serve engine.gpus=4 page.port=8000 until_idle=true",
    ),
)
