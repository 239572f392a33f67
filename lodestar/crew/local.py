"""The crew of one machine: every server, worker and stage is a process, forked from one that has torch loaded.

The conductor itself imports no torch.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Self

from lodestar import metrics
from lodestar.config.run import RunConfig
from lodestar.config.serve import Endpoints, FeedbackTask, Listening, Task
from lodestar.crew.fleet import GRACE_SECONDS, Fleet, Member, figures_of
from lodestar.crew.follow import StatusFollower
from lodestar.crew.port import Servers, rollout_task, server_task
from lodestar.crew.work import argument_of
from lodestar.errors import RunPaused
from lodestar.liveness import LOOK_SECONDS, SAID_SECONDS, Silence, look_at
from lodestar.local.board import Board
from lodestar.local.ports import free_ports
from lodestar.local.processes import Processes
from lodestar.local.progress import ProgressReader
from lodestar.local.redis_server import RedisServer
from lodestar.recipe.folder import PEOPLE
from lodestar.recipe.plan import Plan, Step, calls_of
from lodestar.recipe.stage import Call
from lodestar.recipe.store import Store
from lodestar.records import RunState

WORKERS = "rollout"
POLL_SECONDS = 0.1
SCRAPE_SECONDS = 1.0


class Local:
    """A context manager that leaves no process behind.

    with Local(run, plan, store, board) as crew:
        conduct(plan, store, crew, board)
    """

    def __init__(
        self, run: RunConfig, plan: Plan, store: Store, board: Board, *, hurry: threading.Event | None = None
    ) -> None:
        """``hurry`` ends the grace that processes have to end by themselves."""
        self._run = run
        self._plan = plan
        self._store = store
        self._board = board
        self._hurry = hurry or threading.Event()
        self._open = ExitStack()
        self._processes: Processes | None = None
        self._tasks: dict[str, list[Task]] = {}
        """What each running fleet was told, ports included."""
        self.redis: RedisServer | None = None
        self._redis_silence: Silence | None = None
        self._redis_look = 0.0
        self.fleet: Fleet
        self.look: Callable[[], None] = lambda: None
        """Called whenever the crew looks after its processes while a stage runs: for who watches them from outside."""
        self._endpoints = Endpoints()
        self._listening = Listening()

    def __enter__(self) -> Self:
        states = self._store.root / "services"
        shutil.rmtree(states, ignore_errors=True)
        self.fleet = Fleet(self._fork_server, self._board, states, self._run.services.hang_seconds)
        self._open.enter_context(self._scraping())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.release()
        finally:
            self._open.close()

    # --- the port ------------------------------------------------------------------------------------------------
    def serve(self, step: Step) -> Servers:
        """See Crew: a fleet whose task is the same goes on."""
        calls = calls_of(step)
        weights = None
        if step.stage.serves:
            port, metrics, weights_port = free_ports(3)
            self._listening = Listening(port=port, metrics_port=metrics, weights_port=weights_port)
            weights = f"127.0.0.1:{weights_port}"
        self._stop([name for name, tasks in self._tasks.items() if name not in calls and not _for_people(tasks)])
        scorers = [name for name, call in calls.items() if call.role == "reward"]
        self._begin(step, scorers, weights)  # first: a policy that is the best of n is told where they are
        self._begin(step, [name for name in calls if name not in scorers], weights)
        self.fleet.wait_ready(list(calls))
        self._invite(calls)
        servers = {name: tuple(_address(task) for task in self._tasks[name]) for name in calls}
        self._endpoints = Endpoints()
        if step.stage.rolls_out:
            self._endpoints = Endpoints(
                redis=self._redis_url(),
                policy=servers.get("policy", ()),
                reward=servers.get("reward", ()),
                reference=servers.get("reference", ()),
                weights=weights,
            )
        return servers

    def work(self, step: Step, servers: Servers) -> None:
        """See Crew: the stage's process, and rollout workers beside one that rolls out."""
        argument = argument_of(self._run, self._store, step.name, servers, self._endpoints, self._listening)
        ports = (self._listening.port, self._listening.metrics_port) if step.stage.serves else None
        name = f"{step.stage.serves}-0" if step.stage.serves else step.name
        reader = ProgressReader(self._store.root / "logs" / f"{step.name}.jsonl")
        reader.forget()
        own = self.fleet.start(
            name, "lodestar.crew.work:stage", argument, role=step.stage.serves, ports=ports, ends=True
        )
        try:
            if step.stage.rolls_out:
                self._start(WORKERS, self._worker_tasks())
            with self._following(step):
                self._wait(step, own, reader)
            self.fleet.scrape()
        finally:
            self._stop([WORKERS])
            grace = self._run.services.learner.drain_seconds if step.stage.serves else GRACE_SECONDS
            if step.stage.serves and own.child.alive:
                self._tell_of_leaving()
            self.fleet.stop([own.fleet], grace, hurry=self._hurry)

    def figures(self, step: Step) -> Mapping[str, Any]:
        """See Crew."""
        if not (calls_of(step) or step.stage.serves):
            return {}
        self.fleet.scrape()
        return {"services": figures_of(self._board, self.fleet), "restarts": dict(self.fleet.restarts)}

    def release(self) -> None:
        """Stops every server, callers first, and the run's own Redis."""
        self._stop([WORKERS])
        self.fleet.stop([member.fleet for member in self.fleet.members if member.ends], hurry=self._hurry)
        self._stop(list(self._tasks))
        if self.redis is not None:
            self.redis.stop()
            self.redis = None
        shutil.rmtree(self._store.root / "redis", ignore_errors=True)  # that of an earlier start, which was killed, too

    def pids(self) -> list[int]:
        """Of the servers, workers and stages that live."""
        return [member.child.pid for member in self.fleet.members if member.child.alive]

    def _fork_server(self) -> Processes:
        if self._processes is None:
            self._processes = self._open.enter_context(Processes(self._store.root / "logs"))
        return self._processes

    # --- parts ---------------------------------------------------------------------------------------------------
    def _tell_of_leaving(self) -> None:
        """A learner that is told to leave ends the step that it optimises: how long that may take, and the way out."""
        status = self._board.status
        if status is None or status.state not in (RunState.OPTIMISING, RunState.COLLECTING):
            return
        left = status.total_steps - status.step
        usual = f", about {status.eta_seconds / left:.0f} s as the one before" if status.metrics and left else ""
        self._board.say(
            f"ending: the learner finishes step {status.step + 1}{usual}, and keeps it; Ctrl-C again ends it at once, "
            "and the steps since its last checkpoint are done again",
            "warning",
        )

    def _begin(self, step: Step, fleets: list[str], weights: str | None) -> None:
        """Makes fleets serve what the step wants of them; one that does goes on."""
        wanted = {name: self._server_tasks(step, name, weights) for name in fleets}
        self._stop([name for name in fleets if name in self._tasks and _told(self._tasks[name]) != _told(wanted[name])])
        for name, tasks in wanted.items():
            if name not in self._tasks:
                self._start(name, tasks)

    def _server_tasks(self, step: Step, fleet: str, weights: str | None) -> list[Task]:
        """What each replica is told, but for its ports."""
        rewards = [*map(_address, self._tasks.get("reward", ()))]
        task = server_task(
            self._run,
            self._plan,
            self._store,
            step,
            fleet,
            folder=self._store.root,
            weights=weights,
            rewards=rewards,
        )
        replicas = getattr(getattr(self._run.services, step.stage.calls[fleet].role), "replicas", 1)
        if step.stage.calls[fleet].follows:
            cache = self._store.unfinished(step) / "served"
            return [task.model_copy(update={"cache": cache / str(i)}) for i in range(replicas)]
        return [task] * replicas

    def _invite(self, calls: Mapping[str, Call]) -> None:
        """Shows the way to the page to the person at this terminal, who leads the run."""
        link = self._store.root / PEOPLE / "lead.link"
        if any(call.role == "feedback" for call in calls.values()) and link.exists():
            self._board.invitation = link.read_text(encoding="utf-8").strip()
            self._board.say(
                f"who judges comes in by the link in {link}, or by lodestar feedback invite {self._store.root} NAME"
            )

    def _worker_tasks(self) -> list[Task]:
        task = rollout_task(self._run, self._endpoints, folder=self._store.root)
        return [task] * self._run.services.rollout.replicas

    def _start(self, fleet: str, tasks: list[Task]) -> None:
        ports = iter(free_ports(2 * len(tasks)))
        metrics.FLEET_WANTED.labels(fleet).set(len(tasks))
        self._tasks[fleet] = [
            task.model_copy(update={"listening": Listening(replica=i, port=next(ports), metrics_port=next(ports))})
            for i, task in enumerate(tasks)
        ]
        for task in self._tasks[fleet]:
            self.fleet.serve(task)

    def _stop(self, fleets: list[str]) -> None:
        self.fleet.stop(fleets, hurry=self._hurry)
        for fleet in fleets:
            metrics.FLEET_WANTED.labels(fleet).set(0)
            self._tasks.pop(fleet, None)

    def _wait(self, step: Step, own: Member, reader: ProgressReader) -> None:
        while not own.finished:
            self.check()
            self._board.progress(step.name, reader.new())
            status = self._board.status if step.stage.serves else None
            if status and status.state is RunState.PAUSED and status.reason != "paused on request":
                raise RunPaused(f"the run paused itself: {status.reason}; --resume goes on from its checkpoint")
            own.child.wait(POLL_SECONDS)
        self._board.progress(step.name, reader.new())

    def check(self) -> None:
        """What must go on while the conductor waits for anything."""
        self.fleet.check()
        if self.redis is not None and self.redis.pid is not None:
            self._look_after_redis(self.redis)
        if self.redis is not None and self.redis.pid is None:
            self._board.say("redis died; starting it again", "warning")
            self.fleet.restarts["redis"] = self.fleet.restarts.get("redis", 0) + 1
            self.redis.start()
        self.look()

    def _look_after_redis(self, redis: RedisServer) -> None:
        """Kills a Redis that has been stopped for too long; whoever asks it meanwhile waits, and says so."""
        if time.monotonic() < self._redis_look or (look := look_at(redis.pid or 0)) is None:
            return
        self._redis_look = look.at + LOOK_SECONDS
        self._redis_silence = self._redis_silence or Silence(look)
        before, limit = self._redis_silence.seconds, self._run.services.hang_seconds
        silent = self._redis_silence.see(look, alive=look.state != "stopped")
        said = min(SAID_SECONDS, limit / 2)
        if before < said <= silent:
            self._board.say(f"redis is stopped (SIGSTOP); after {limit:g} s it is started again", "warning")
        if silent >= limit:
            metrics.HANGS.labels("redis").inc()
            self._redis_silence = None
            redis.kill()

    def _redis_url(self) -> str:
        if self._run.services.queue.url is not None:
            return self._run.services.queue.url
        if self.redis is None:
            folder = self._store.root / "redis"
            shutil.rmtree(folder, ignore_errors=True)  # transport, never the truth: a new start needs none of it
            self.redis = RedisServer(folder)
            self.redis.start()
        return self.redis.url

    @contextlib.contextmanager
    def _following(self, step: Step) -> Iterator[None]:
        """Follows the status of a stage that serves it."""
        if not step.stage.serves:
            yield
            return
        figures = self._store.unfinished(step) / "figures"
        with StatusFollower(self._board, step.name, f"127.0.0.1:{self._listening.port}", figures / "watched.jsonl"):
            yield
        if (status := self._board.status) is not None:
            self._board.stage(step.name).detail = f"{status.step} steps"
            if status.reason.startswith("stopped at"):
                self._board.say(status.reason, "warning")

    @contextlib.contextmanager
    def _scraping(self) -> Iterator[None]:
        """Keeps the board's figures true while anything runs, and looks for what hangs."""
        ended = threading.Event()

        def scrape() -> None:
            while not ended.wait(SCRAPE_SECONDS):
                self.fleet.look()
                self.fleet.scrape()
            self.fleet.hangs.close()

        thread = threading.Thread(target=scrape, name="scraper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _for_people(tasks: list[Task]) -> bool:
    """Where people look between stages too."""
    return isinstance(tasks[0], FeedbackTask)


def _told(tasks: list[Task]) -> list[dict[str, Any]]:
    """What decides whether a fleet may go on: all but where its members listen."""
    return [task.model_dump(exclude={"listening"}) for task in tasks]


def _address(task: Task) -> str:
    return f"{task.listening.host}:{task.listening.port}"
