"""Shutdown deadlines. Each level gets less time than its parent, so that children can save before they are killed.

ray job stop     gives the command RAY_JOB_STOP_WAIT_TIME_S (set on the cluster's nodes), then kills it
the command      gives its workers, or the trials of its sweep, all of that except the time to end itself
                 outside such a job, gives them the time they need: a large checkpoint takes minutes
                 after an error of its own, gives them half a minute
Ray Tune         gives a trial that is stopped early one minute, then kills its process
the trial        gives its own workers half of that minute
the command      in the end frees what those workers still hold, after Tune's minute plus the trial's half

To wait without a limit is safe: Ray Train ends a group if a worker is lost, or has not answered for ten minutes, and
Ray Tune notices that a trial is lost. A second interrupt ends the wait.
"""

from __future__ import annotations

import math
import os

ENDING_SECONDS = 10.0  # for a command to end after its workers or trials have ended
FAILED_STOP_SECONDS = 30.0  # for workers or trials to end after an error of the command
JOB_STOP_SECONDS = float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", math.inf))
INTERRUPTED_STOP_SECONDS = max(30.0, JOB_STOP_SECONDS - ENDING_SECONDS)
PATIENCE_SECONDS = 30.0  # after which the user is told what an interrupted command waits for
TUNE_STOP_SECONDS = 60
TRIAL_STOP_SECONDS = TUNE_STOP_SECONDS / 2
STOPPED_WORKERS_SECONDS = TUNE_STOP_SECONDS + TRIAL_STOP_SECONDS
FIT_SECONDS = 5.0  # for `fit` of Ray Train or Ray Tune to end, once its workers or trials are not waited for
