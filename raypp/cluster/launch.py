"""`raypp train` from its start: the experiment is checked while Ray starts.

Both take seconds. Checking imports torch and transformers, and Ray's start is mostly waiting for processes, so they are
done side by side; that is why this module imports none of them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from raypp.cluster.background import in_background
from raypp.cluster.session import Session
from raypp.config import Experiment
from raypp.display.progress import NullDisplay
from raypp.errors import Problems
from raypp.runs import check_writable, may_be_finished
from raypp.storage import Location

if TYPE_CHECKING:
    from raypp.plan import Draft


def train(
    experiment: Experiment,
    *,
    fresh: bool = False,
    display: NullDisplay | None = None,
    verbose: bool = False,
    started_at: float | None = None,
) -> dict[str, Any]:
    """Runs an experiment, or what is left of it, and returns its result (as in result.json).

    Args:
        fresh: start over.
        display: shows the progress.
        verbose: show Ray's log, too.
        started_at: when the command began, in seconds of Unix time, to measure how long a start takes; now, if None.

    Raises:
        ConfigError: the experiment, its input or the cluster do not fit; no worker was started.
        RunFailed: training failed; calling again resumes it.
    """
    on_event = (display or NullDisplay()).handle
    started_at = time.time() if started_at is None else started_at
    with Session(experiment.cluster, verbose) as session:
        draft = _checked(experiment, session, fresh)
        from raypp.cluster.pipeline import preparer, run_plan

        plan = draft.to_plan(preparer(session, on_event, trains=True))
        return run_plan(plan, session, on_event, phase="student", fresh=fresh, started_at=started_at)


def _checked(experiment: Experiment, session: Session, fresh: bool) -> Draft:
    """Checks the experiment and, where that is certain to be needed, starts Ray meanwhile: in this thread, since Ray's
    processes end with the thread that started them. A cluster is joined when it is needed: that takes no time."""
    checked = in_background(lambda: _check(experiment), "plan")
    problems = Problems()
    if fresh or not may_be_finished(experiment):
        with problems.collect():
            check_writable(Location.of(experiment.cluster.storage, "cluster.storage"), "cluster.storage")
            if experiment.cluster.max_workers and not os.environ.get("RAY_ADDRESS"):
                session.start()
    draft = problems.attempt(checked.result)
    problems.stop()
    assert draft is not None
    return draft


def _check(experiment: Experiment) -> Draft:
    from raypp.cluster.pipeline import check_device
    from raypp.plan import draft_plan

    check_device(experiment)
    return draft_plan(experiment)
