"""Shutdown deadlines. Each level gets less time than its parent, so that children can save before they are killed.

ray job stop     gives the command RAY_JOB_STOP_WAIT_TIME_S (set on the cluster's nodes), then kills it
the command      gives its workers, or the trials of its sweep, all of that except the time to end itself
Ray Tune         gives a trial that is stopped early one minute, then kills its process
the trial        gives its own workers half of that minute
the command      in the end frees what those workers still hold, after Tune's minute plus the trial's half
"""

from __future__ import annotations

import os

ENDING_SECONDS = 10.0  # for a command to end after its workers or trials have ended
COMMAND_STOP_SECONDS = max(30.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 0)) - ENDING_SECONDS)
TUNE_STOP_SECONDS = 60
TRIAL_STOP_SECONDS = TUNE_STOP_SECONDS / 2
STOPPED_WORKERS_SECONDS = TUNE_STOP_SECONDS + TRIAL_STOP_SECONDS
FIT_SECONDS = 5.0  # for `fit` of Ray Train or Ray Tune to end, once its workers or trials are not waited for
