"""Tracking of a run with Weights & Biases on rank 0. A null object replaces it on other ranks, and if W&B is off.

W&B must never stop or slow down training. Everything that may wait for a network or a disk runs on a separate thread:
the training thread only puts work into a queue. If the server cannot be reached, the key is refused or wandb raises an
exception, the user is warned once, and the run continues, recorded offline in `<run folder>/wandb/`.

A session that resumes a run first logs again what metrics.jsonl holds up to the resumed step. So an offline session,
which writes its own folder, holds the whole run and replaces the earlier folder (for a remote run, `upload_recorded`
replaces it); otherwise `wandb sync` of two folders of one run would shift the steps of the second one past those of the
first one. An online session continues the run under its id, and W&B ignores the steps that it already has. A run that
starts from the beginning replaces the run with its id.
"""

from __future__ import annotations

import logging
import queue
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raypp.config import TrackingSettings
from raypp.training.metrics_file import MetricsFile

if TYPE_CHECKING:
    import wandb

    from raypp.storage import Location
    from raypp.training.parameter_statistics import BinCounts

logger = logging.getLogger(__name__)

INIT_SECONDS = 20.0  # limit for the server to register an online run
UPLOAD_SECONDS = 30.0  # limit for the remaining upload when the run ends
FINISH_SECONDS = 90.0  # limit for the whole of finish(): a slow start, the upload, and closing the files

NO_KEY = "no API key is configured (`wandb login` stores one)"
QUIET = {"silent": True, "console": "off", "disable_git": True, "save_code": False, "x_disable_stats": True}
FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg")


class Tracker:
    """Records a run. No failure of the recording raises, and only `finish` waits."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one report. Steps must not decrease; reports of the same step are merged."""

    def log_histograms(self, step: int, histograms: Mapping[str, BinCounts]) -> None:
        """Records histograms by name, at this step. A resumed session does not repeat those of earlier steps."""

    def log_figures(self, figures: Mapping[str, Path]) -> None:
        """Records figures (PNG or JPEG files) by name, at the last logged step."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Records a table, at the last logged step."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Records final values of the run."""

    def finish(self, exit_code: int = 0) -> None:
        """Ends the recording. Returns when it is on disk and uploaded, or after `FINISH_SECONDS`."""

    def sync_command(self) -> str | None:
        """The command that uploads offline recordings; None if there is nothing to upload."""
        return None


class NullTracker(Tracker):
    """Records nothing. Used on ranks other than 0, and with `tracking.wandb: off`."""


class WandbTracker(Tracker):
    """Records a run with Weights & Biases, from a separate thread. A process may have only one at a time.

    `resume_step` is the step of the checkpoint that the run resumes from, None for a run that starts from the
    beginning. `warn` is called from the other thread with each line that the user should see.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        run_folder: Path,
        run_name: str,
        run_id: str,
        group: str | None,
        config: dict[str, Any],
        resume_step: int | None,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        assert settings.wandb != "off", "make_tracker gives a NullTracker"
        # Imported here, before training, because on the other thread the import could conflict with one on this thread.
        import wandb

        # wandb's own telemetry, which has nothing to do with the run, would print that a server refused it.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._wandb = wandb
        self._settings = settings
        self._run_folder = run_folder
        self._resume_step = resume_step
        self._warn = warn
        self._init_arguments: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "dir": str(run_folder),
            "id": run_id,
            "name": run_name,
            "group": group,
            "config": config,
        }
        self._last_step = resume_step or 0
        self._work: queue.SimpleQueue[Callable[[wandb.Run], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._record, name="wandb", daemon=True)
        self._exit_code: int | None = None
        self._unfinished: list[Path] = []  # the folder of the open run, which is not fully uploaded
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = dict(metrics)
        self._last_step = step
        self._put(lambda run: run.log(values, step=step))

    def log_histograms(self, step: int, histograms: Mapping[str, BinCounts]) -> None:
        self._last_step = step
        self._put(
            lambda run: run.log(
                {name: self._wandb.Histogram(np_histogram=counted) for name, counted in histograms.items()}, step=step
            )
        )

    def log_figures(self, figures: Mapping[str, Path]) -> None:
        for name, path in figures.items():
            if path.suffix.lower() not in FIGURE_SUFFIXES:
                raise ValueError(f"{name}: {path} is none of {', '.join(FIGURE_SUFFIXES)}")
        files, step = {name: str(path) for name, path in figures.items()}, self._last_step
        self._put(lambda run: run.log({name: self._wandb.Image(f) for name, f in files.items()}, step=step))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        heads, data, step = list(columns), [list(row) for row in rows], self._last_step
        self._put(lambda run: run.log({name: self._wandb.Table(columns=heads, data=data)}, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        values = dict(values)
        self._put(lambda run: run.summary.update(values))

    def _put(self, work: Callable[[wandb.Run], None]) -> None:
        if self._thread.is_alive():  # if recording has stopped or W&B is disabled, nothing would empty the queue
            self._work.put(work)

    def finish(self, exit_code: int = 0) -> None:
        if self._exit_code is None:
            self._exit_code = exit_code
            self._work.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._warn(f"W&B: not finished after {FINISH_SECONDS:.0f} s; continuing without it")

    def sync_command(self) -> str | None:
        folders = dict.fromkeys([*self._folders("offline-run-*"), *self._unfinished])
        online = ["--include-online"] if any(folder.name.startswith("run-") for folder in folders) else []
        return shlex.join(["wandb", "sync", *online, *map(str, folders)]) if folders else None

    # --- on the other thread -----------------------------------------------------------------------------------------

    def _record(self) -> None:
        # The only place that catches every exception: an error in W&B must not end the run, but the user is warned.
        # wandb raises SystemExit if its service process fails.
        try:
            run = self._open()
            if run is not None:
                self._write(run)
        except (Exception, SystemExit) as error:
            later = f"; upload what was recorded so far with: {self.sync_command()}" if self._unfinished else ""
            self._warn(f"W&B: recording stopped, the run continues: {_one_line(error)}{later}")

    def _write(self, run: wandb.Run) -> None:
        self._unfinished = [self._run_folder / "wandb" / Path(run.dir).parent.name]
        try:
            while (work := self._work.get()) is not None:
                work(run)
        finally:
            try:
                run.finish(exit_code=1 if self._exit_code is None else self._exit_code)
            finally:
                self._release()
        self._unfinished = []

    def _open(self) -> wandb.Run | None:
        """Opens the run: online if that is requested and possible, otherwise offline. None if W&B is disabled."""
        mode = self._start_service()
        if mode == "disabled":
            return None
        replaced = self._folders("offline-run-*")
        run, problem = (None, None) if mode in ("offline", "dryrun") else self._try_online()
        if run is None:
            run = self._init("offline")
        if self._resume_step is not None:
            for record in MetricsFile(self._run_folder / "metrics.jsonl").records():
                if record["step"] <= self._resume_step:
                    run.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])
        for folder in replaced:
            shutil.rmtree(folder)
        if problem is not None and not (problem == NO_KEY and self._settings.wandb == "auto"):
            self._warn(f"W&B: {problem}. The run is recorded offline; upload it later with: {self.sync_command()}")
        return run

    def _start_service(self) -> str:
        """Starts wandb's service process. Returns the mode of the settings or, for auto, that of WANDB_MODE or
        `wandb offline`."""
        mode = {} if self._settings.wandb == "auto" else {"mode": self._settings.wandb}
        return str(self._wandb.setup(self._wandb.Settings(silent=True, **mode)).settings.mode)

    def _try_online(self) -> tuple[wandb.Run | None, str | None]:
        """An online run and None, or None and the problem."""
        # This check takes at most 10 s and leaves nothing behind; an init that fails would leave an incomplete run.
        try:
            if not self._wandb.login(prompt=False, verify=True):
                return None, NO_KEY
        except Exception as error:
            return None, _one_line(error)
        earlier = self._folders("run-*")
        try:
            return self._init("online"), None
        except Exception as error:
            self._release()
            self._start_service()
            for folder in set(self._folders("run-*")).difference(earlier):
                shutil.rmtree(folder)
            return None, _one_line(error)

    def _init(self, mode: Literal["online", "offline"]) -> wandb.Run:
        limits = {"init_timeout": INIT_SECONDS, "finish_timeout": UPLOAD_SECONDS, "finish_timeout_raises": True}
        return self._wandb.init(
            mode=mode,
            resume="allow"
            if mode == "online" and self._resume_step is not None
            else None,  # None replaces the run with this id
            reinit="create_new",  # does not touch a run that the user's program may have open
            settings=self._wandb.Settings(**QUIET, **limits),
            **self._init_arguments,
        )

    def _release(self) -> None:
        """Ends wandb's service process, which waits until all files are written; `run.finish` may return earlier."""
        if self._wandb.run is None:  # otherwise the user's program has a run open, which would end, too
            self._wandb.teardown()

    def _folders(self, pattern: str) -> list[Path]:
        return sorted((self._run_folder / "wandb").glob(pattern))


def make_tracker(settings: TrackingSettings, **run: Any) -> Tracker:
    """A `WandbTracker(settings, **run)`, or a `NullTracker` if W&B is off."""
    return NullTracker() if settings.wandb == "off" else WandbTracker(settings, **run)


def upload_recorded(folder: Path, destination: Location) -> None:
    """Uploads the folder of a finished session, with metrics.jsonl, to the run's remote folder. Its W&B folder replaces
    the offline folders of earlier sessions, as it does for a local run."""
    wandb = folder / "wandb"
    for link in wandb.glob("*"):
        if link.is_symlink():  # links such as `latest-run` would be uploaded as copies
            link.unlink()
    destination.upload(folder)
    own = {path.name for path in wandb.glob("*run-*")}
    for earlier in (destination / "wandb").children() if own else []:
        if earlier.name.startswith("offline-run-") and earlier.name not in own:
            earlier.delete()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
