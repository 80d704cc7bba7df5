"""The start of `raypp train`: the experiment is checked while Ray starts.

Both take seconds. The check imports torch and transformers, and the start of Ray mostly waits for processes, so they
run at the same time. For this reason the module itself imports none of these libraries.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from raypp.cluster.background import in_background
from raypp.cluster.session import Session
from raypp.config import Experiment
from raypp.errors import Problems
from raypp.events import EventHandler, ignore
from raypp.runs import may_be_finished
from raypp.writable import check_storage_writable

if TYPE_CHECKING:
    from raypp.plan import Draft


def train(
    experiment: Experiment,
    *,
    fresh: bool = False,
    on_event: EventHandler = ignore,
    verbose: bool = False,
    started_at: float | None = None,
) -> dict[str, Any]:
    """Runs an experiment, or resumes it, and returns its result (as in result.json).

    Args:
        fresh: start over.
        on_event: takes the events of the progress, such as a display's `handle`.
        verbose: also show Ray's log.
        started_at: when the command began (Unix time in seconds), to measure the duration of the start; None: now.

    Raises:
        ConfigError: the experiment, its input or the cluster do not fit; no worker was started.
        FailsAgain: training failed, and another call would fail again.
        RunFailed: training failed for another reason; another call resumes it.
    """
    started_at = time.time() if started_at is None else started_at
    with Session(experiment.cluster, verbose) as session:
        draft = _checked(experiment, session, fresh)
        from raypp.cluster.pipeline import preparer, run_plan

        plan = draft.to_plan(preparer(session, on_event, trains=True))
        return run_plan(plan, session, on_event, phase="student", fresh=fresh, started_at=started_at)


def _checked(experiment: Experiment, session: Session, fresh: bool) -> Draft:
    """Checks the experiment. Meanwhile starts an embedded Ray if the run is certain to need it.

    Ray starts in this thread, because its processes end with the thread that started them. A connection to an existing
    cluster is made later, because it takes little time.
    """
    checked = in_background(lambda: _check(experiment), "plan")
    problems = Problems()
    if fresh or not may_be_finished(experiment):
        with problems.collect():
            check_storage_writable(experiment)
            if experiment.cluster.max_workers and not os.environ.get("RAY_ADDRESS"):
                session.start()
    draft = problems.attempt(checked.result)
    problems.stop()
    assert draft is not None
    return draft


def _check(experiment: Experiment) -> Draft:
    from raypp.plan import draft_plan
    from raypp.plan_checks import check_device

    check_device(experiment)
    return draft_plan(experiment)
