"""The `raypp` command: its subcommands and their exit status. It only dispatches.

Exit status: 0 done; 1 the run failed; 2 the user's input is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import logging
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from raypp.display.terminal import StderrHandler, native_output_hidden
from raypp.errors import ConfigError, FailsAgain, RunFailed

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
# What the same command does after it has failed or was interrupted.
RESUMES = {
    "train": "the same command resumes from the last checkpoint",
    "sweep": "the same command resumes from the last checkpoint",
    "prepare": "the same command goes on",
}
STARTED_AT = time.time()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    with contextlib.nullcontext() if options.verbose else native_output_hidden():
        return _run(options, words)


def _run(options: argparse.Namespace, words: Sequence[str]) -> int:
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(format="raypp: %(message)s", level=level, handlers=[StderrHandler()])
    # Schedulers stop a job with SIGTERM, which is handled like Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    again = shlex.join(["raypp", *(word for word in words if word != "--fresh")])
    resumes = None if getattr(options, "dry_run", False) else options.resumes
    resuming = [f"{resumes}: {again}"] if resumes else []
    if "--fresh" in words:
        resuming.append("(add --fresh if it stopped before the old files were deleted)")
    try:
        options.run(options)
    except ConfigError as error:
        _say(*error.problems)
        return WRONG_INPUT
    except KeyboardInterrupt as interrupt:
        _say(f"interrupted {interrupt}".strip(), *resuming)
        return INTERRUPTED
    except FailsAgain as error:
        _say(str(error), "the same command would fail again")
        return FAILED
    except Exception as error:
        if options.verbose:
            logging.exception("the command failed")
        what = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
        _say(what, *resuming, *([] if options.verbose else ["-v shows the traceback"]))
        return FAILED
    return 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _parse(words: list[str]) -> argparse.Namespace:
    """Parses the command line. argparse takes positional arguments in one place only, so overrides that follow an
    option are added here."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if unknown := [word for word in rest if word.startswith("-") or not hasattr(options, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _say(*lines: str) -> None:
    for line in lines:
        print(f"raypp: {line}", file=sys.stderr)


class _Version(argparse.Action):
    """Prints raypp's version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"raypp {importlib.metadata.version('raypp')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raypp", description="Makes small, sparse models from pretrained transformer encoders."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(verbose=False, resumes=None)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("-v", "--verbose", action="store_true", help="show Ray's log and tracebacks")
        sub.set_defaults(run=run)
        return sub

    for name, run, summary in (
        ("train", _train, "run one experiment, or resume it"),
        ("prepare", _prepare, "only fill the store for a run or a sweep: features, teacher, teacher logits"),
        ("sweep", _sweep, "run or resume the trials of a sweep, and draw their front"),
        ("show", _show, "print the experiment with all defaults, and run nothing"),
    ):
        sub = verb(name, run, summary)
        sub.set_defaults(resumes=RESUMES.get(name))
        sub.add_argument("experiment", nargs="?" if name == "show" else None, help="experiment file (YAML)")
        sub.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change")
        if name == "show":
            sub.add_argument(
                "--from-original",
                metavar="COMMAND",
                help="print the experiment for a command line of the original scripts, such as masked_run_glue.py",
            )
        if name in ("train", "sweep"):
            sub.add_argument("--fresh", action="store_true", help="start over: delete the files of earlier runs")
        if name == "sweep":
            sub.add_argument(
                "--dry-run", action="store_true", help="print the trials and the resources of each; train nothing"
            )

    sub = verb("evaluate", _evaluate, "metrics of a model or run; for an unlabelled split, a submission file")
    sub.add_argument("model", help="Hugging Face folder, run folder, hub name or package:NAME/SUBFOLDER")
    sub.add_argument("--task", help="name of a built-in task; default: the task of the run")
    sub.add_argument(
        "--data", metavar="DIR", help="folder of the official files; default: the data of the run, or the hub"
    )
    sub.add_argument("--experiment", metavar="FILE", help="take task and data from an experiment file")
    sub.add_argument("--split", default="dev", help="dev (all dev splits of the task), test, or the name of a split")
    sub.add_argument(
        "--out",
        metavar="DIR",
        default=".",
        help="folder for predictions and submission files (default: the current folder)",
    )
    sub.add_argument("--all-checkpoints", action="store_true", help="evaluate every checkpoint of a run")

    sub = verb("inspect", _inspect, "remaining weights by layer, as a table and a figure")
    sub.add_argument("model", help="Hugging Face folder, run folder, hub name or package:NAME/SUBFOLDER")
    sub.add_argument("--save", metavar="FILE", help="file for the figure: .png, .jpg, .svg or .pdf")
    sub.add_argument("--figure", metavar="NAME", help="density_by_layer (default), heads, weights, movement or mask")
    sub.add_argument("--matrix", metavar="NAME", help="draw this matrix only (figures mask, weights and movement)")
    sub.add_argument(
        "--initial", metavar="MODEL", help="the model before pruning, for the figure movement; default: the run's own"
    )

    sub = verb("report", _report, "report on a run, a sweep or several sweeps: an HTML file or a figure")
    sub.add_argument("folders", nargs="+", metavar="RUN_OR_SWEEP", help="run folder, or one or more sweep folders")
    sub.add_argument(
        "--save",
        metavar="FILE",
        help="report (.html) or figure (.png, .jpg, .svg, .pdf); default: report.html in the folder",
    )
    sub.add_argument(
        "--figure",
        metavar="NAME",
        help="for a run: overview (default), schedule, evaluation, loss, density_by_layer, heads, scores, weights, "
        "movement or mask; for a sweep: front",
    )

    sub = verb("export", _export, "write the model of a run in a format that other programs read")
    sub.add_argument("run_folder", metavar="RUN", help="run folder")
    sub.add_argument(
        "--to", required=True, metavar="DIR_OR_URI", help="folder or URI to write; it must be new or empty"
    )
    sub.add_argument("--format", default="huggingface", choices=["huggingface"], help="format of the model")
    return parser


def _experiment(options: argparse.Namespace) -> Any:
    from raypp.load_config import load_experiment

    return load_experiment(options.experiment, options.overrides)


def _train(options: argparse.Namespace) -> None:
    from raypp.cluster.launch import train
    from raypp.display.progress import Display

    experiment = _experiment(options)
    with Display() as display:
        result = train(
            experiment, fresh=options.fresh, on_event=display.handle, verbose=options.verbose, started_at=STARTED_AT
        )
    from raypp.display.summary import print_result  # imports torch, which `train` imports while Ray starts

    print_result(result)


def _sweep(options: argparse.Namespace) -> None:
    from raypp.cluster.sweep import plan_resources, sweep
    from raypp.display.progress import Display
    from raypp.display.summary import print_front, print_trials
    from raypp.plan_checks import check_device
    from raypp.sweeps.plan import plan_sweep

    experiment = _experiment(options)
    if options.dry_run:
        check_device(experiment)
        print_trials(plan_sweep(experiment))
        print(plan_resources(experiment))
        return
    with Display() as display:
        result = sweep(experiment, fresh=options.fresh, on_event=display.handle, verbose=options.verbose)
    print_front(result)
    if failed := [trial for trial in result["trials"] if trial["state"] == "failed"]:
        error = FailsAgain if all(trial["fails_again"] for trial in failed) else RunFailed
        raise error(f"{len(failed)} of {len(result['trials'])} trials failed")


def _prepare(options: argparse.Namespace) -> None:
    from raypp.cluster.pipeline import prepare
    from raypp.cluster.sweep import prepare_sweep
    from raypp.display.progress import Display

    experiment = _experiment(options)
    fill = prepare if experiment.sweep is None else prepare_sweep
    with Display() as display:
        artifacts = fill(experiment, on_event=display.handle, verbose=options.verbose)
    for artifact in artifacts:
        print(f"{artifact.kind}: {artifact.rows} rows in {artifact.location}")


def _show(options: argparse.Namespace) -> None:
    if (options.experiment is None) == (options.from_original is None):
        raise ConfigError("show: give an experiment file, or --from-original and a command line")
    if options.from_original is not None:
        from raypp.original.translation import translate

        print(translate(options.from_original))
        return
    from raypp.commands.show import show

    print(show(_experiment(options)))


def _evaluate(options: argparse.Namespace) -> None:
    from raypp.commands.evaluate_model import evaluate_command

    evaluate_command(
        options.model,
        task=options.task,
        data=options.data,
        experiment_file=options.experiment,
        split=options.split,
        out=options.out,
        all_checkpoints=options.all_checkpoints,
    )


def _inspect(options: argparse.Namespace) -> None:
    from raypp.commands.inspection import inspect_command

    inspect_command(options.model, options.save, figure=options.figure, matrix=options.matrix, initial=options.initial)


def _report(options: argparse.Namespace) -> None:
    from raypp.commands.report import report

    print(report(options.folders, options.save, options.figure))


def _export(options: argparse.Namespace) -> None:
    from raypp.export.huggingface import export_run
    from raypp.storage import Location

    export = {"huggingface": export_run}[options.format]
    print(export(options.run_folder, Location.of(options.to, "--to")))


if __name__ == "__main__":
    sys.exit(main())
