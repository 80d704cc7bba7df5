"""How long who is asked to leave has for it: a part of what the one above gives, or those below would be killed while
they save.

    ray job stop            gives the command RAY_JOB_STOP_WAIT_TIME_S (of the cluster's nodes) and then kills it
      the command           gives its workers, or its sweep's trials, all of that but what it takes to end itself
    Ray Tune                gives a trial that is stopped early a minute and then kills its process
      the trial             gives workers of its own half of that
    the command, at last    gives back what such workers hold: after Tune's minute, and as long again as they had
"""

from __future__ import annotations

import os

ENDING_SECONDS = 10.0  # for a command to end, once its workers or trials have
COMMAND_STOP_SECONDS = max(30.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 0)) - ENDING_SECONDS)
TUNE_STOP_SECONDS = 60
TRIAL_STOP_SECONDS = TUNE_STOP_SECONDS / 2
STOPPED_WORKERS_SECONDS = TUNE_STOP_SECONDS + TRIAL_STOP_SECONDS
