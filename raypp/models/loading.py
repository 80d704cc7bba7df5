"""Pretrained models and tokenizers: finding them, checking that they fit the task, loading them.

A model is named by a folder, a hub name, or `package:NAME/SUBFOLDER` of an installed Python package. Only safetensors
are loaded, because pickled weights can execute code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from raypp.errors import ConfigError, WorkersLost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raypp.kinds import TaskKind

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spm.model",
)
# The files that a model's outputs depend on. Only these are downloaded from the hub.
MODEL_FILE_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model")
# Arguments of transformers' `from_pretrained`: nothing is downloaded, and no Python file of the folder is run. (Without
# the second one, it would ask on the terminal whether to run it.)
FROM_FOLDER: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# The model families whose positions start at the padding token's id + 1, as RoBERTa's do.
POSITIONS_FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "xmod"),
    *("longformer", "ibert", "luke", "esm", "markuplm", "lilt"),
)


def resolve_model(reference: str, revision: str | None, field: str) -> Path:
    """The local folder of a model, downloaded from the hub if need be.

    Raises:
        ConfigError: naming `field`; there is no such model, or it has no configuration or no safetensors, or one of
            these is not complete.
    """
    folder = _find(reference, revision, field)
    _check_weights(folder, field)
    return folder


def _find(reference: str, revision: str | None, field: str) -> Path:
    """`resolve_model` without a look into the weights."""
    if revision is not None and _is_local(reference):
        raise ConfigError(
            f"{field.removesuffix('model')}revision: only a model of the hub has a revision, but {reference!r} is "
            f"local, got {revision!r}; leave it out"
        )
    if reference.startswith("package:"):
        folder = _package_folder(reference, field)
    elif Path(reference).is_dir():
        folder = Path(reference).resolve()
    else:
        folder = _hub_folder(reference, revision, field)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{field}: {reference!r} has no config.json in {folder}; give a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{field}: {reference!r} has no *.safetensors in {folder}; other weight formats may contain pickled code "
            "and are not loaded: convert it with save_pretrained"
        )
    return folder


def _check_weights(folder: Path, field: str) -> None:
    """Reads the head of each file of weights that transformers will read; the head says how long the file is."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = {single} if single.is_file() else set(folder.glob("*.safetensors"))
    if index.is_file() and not single.is_file():
        try:
            files = {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{field}: {index} is damaged: {error!r}; download or save the model again") from None
    for file in sorted(files):
        try:
            with safe_open(file, "numpy"):  # torch would reserve memory for all of it
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{field}: the weights in {file} cannot be read: {error}; download or save the model again"
            ) from None


def resolve_planned(reference: str, revision: str | None, fingerprint: str, field: str) -> Path:
    """The folder, on this node, of a model that the command has found before, with the files that it found.

    Args:
        revision: from `ModelInput.revision`, so that another commit is never downloaded.
        fingerprint: `model_fingerprint` of the command's copy.

    Raises:
        WorkersLost: naming `field` and the node, which has no copy, or another one. The user's input is right, because
            the command found the model, so another node, or the same one when it reaches the hub, may have it.
    """
    node, same_copy = platform.node(), "give every node the same copy"
    try:
        folder = _find(reference, revision, field)
    except ConfigError as error:
        advice = same_copy if revision is None else "let it reach the hub, or fill its cache"
        problem = str(error).removeprefix(f"{field}: ")
        raise WorkersLost(
            f"{field}: node {node} does not find {reference}, which the command found; {advice} ({problem})"
        ) from None
    if model_fingerprint(folder) != fingerprint:
        cache = folder.parent.parent  # of snapshots/COMMIT, whose files are links
        advice = same_copy if revision is None else f"delete {cache} where it is wrong, and it is downloaded again"
        raise WorkersLost(f"{field}: the copy of {reference} on node {node} differs from the command's; {advice}")
    return folder


def hub_commit(reference: str, folder: Path) -> str | None:
    """The commit of a model of the hub, which is the name of its folder in the hub's cache; None for a local model.

    Args:
        folder: from `resolve_model`.
    """
    return None if _is_local(reference) else folder.name


def _is_local(reference: str) -> bool:
    return reference.startswith("package:") or Path(reference).is_dir()


def _package_folder(reference: str, field: str) -> Path:
    package, _, subfolder = reference.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{field}: {reference!r}: the Python package {package!r} is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)), subfolder)
    if not folder.is_dir():
        raise ConfigError(f"{field}: {reference!r}: the package has no folder {subfolder!r}")
    return folder


def _hub_folder(reference: str, revision: str | None, field: str) -> Path:
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise ConfigError(f"{field}: {reference!r} is not a folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=list(MODEL_FILE_PATTERNS)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{field}: {reference!r} is not a folder, and the hub does not provide it ({reason}); give a folder, a hub "
            "name or package:NAME/SUBFOLDER, and for a private or gated model set HF_TOKEN"
        ) from None


def model_fingerprint(folder: Path) -> str:
    """sha256 of all files of a model that its outputs depend on: configuration, weights, tokenizer."""
    return _fingerprint_of(folder, model_file_stats(folder))


def model_file_stats(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time (ns) of each of a model's files: they differ if a file was written again."""
    files = sorted({file for pattern in MODEL_FILE_PATTERNS for file in folder.glob(pattern)})
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@functools.lru_cache(maxsize=32)
def _fingerprint_of(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file in (folder / name for name, *_ in files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def load_tokenizer(folder: Path, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ConfigError: naming `field`; there is no tokenizer, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    # Without these files, transformers would silently build a tokenizer with an empty vocabulary.
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(f"{field}: {folder} has no tokenizer; one of {', '.join(TOKENIZER_FILES)} must be there")
    try:
        return AutoTokenizer.from_pretrained(str(folder), **FROM_FOLDER)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{field}: the tokenizer in {folder} cannot be loaded: {_reason(error)}") from error


def load_model_config(folder: Path, field: str, kind: TaskKind | None = None) -> Any:
    """The `transformers` configuration of a model folder.

    Raises:
        ConfigError: naming `field`; it cannot be loaded, or tasks of `kind` cannot use such a model (`check_opens`).
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), **FROM_FOLDER)
    except (ValueError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ConfigError(f"{field}: {folder}/config.json cannot be used: {_reason(error)}") from error
    if kind is not None:
        check_opens(config, kind, field)
    return config


def _reason(error: Exception) -> str:
    """Why transformers cannot load something."""
    if "trust_remote_code" in str(error):
        return "it names Python code of its own, which raypp does not run; give a model that transformers itself has"
    return str(error)


def check_opens(config: Any, kind: TaskKind, field: str) -> None:
    """Checks that tasks of a kind can use a model with this configuration.

    Raises:
        ConfigError: naming `field`; transformers has no such model for the kind, or its outputs depend on padding.
    """
    if type(config) not in kind.auto_model()._model_mapping:
        raise ConfigError(
            f"{field}: model_type {config.model_type!r} has no model for {kind.task.name}; allowed: a model that "
            f"{kind.auto_class} can load"
        )
    if config.model_type == "xlnet":  # its heads read the last token
        raise ConfigError(
            f"{field}: model_type 'xlnet' needs texts that are padded on the left, but raypp pads on the right; give a "
            "model of another family"
        )
    # These mix neighbouring or all tokens, choose landmarks by the padded length, or attend at random.
    if config.model_type in ("canine", "convbert", "fnet", "nystromformer", "yoso"):
        raise ConfigError(
            f"{field}: model_type {config.model_type!r} reads padding as text, so that its outputs for a text would "
            "depend on the batch; give a model of another family"
        )
    if (problem := kind.misfit_of(config)) is not None:
        raise ConfigError(f"{field}: model_type {config.model_type!r} {problem}")


def max_positions(config: Any) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 1 << 30
    offset = 0
    if config.model_type in POSITIONS_FROM_PADDING:
        offset = (config.pad_token_id or 0) + 1
    elif config.model_type == "mpnet":
        offset = 2  # the same, but MPNet always uses 1 for the padding token's id, whatever its configuration says
    return int(positions) - offset


def check_fit(config: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, field: str) -> None:
    """Checks that a model and its tokenizer fit each other and `data.max_length`.

    Raises:
        ConfigError: lists every problem. The model has too few positions or token embeddings, its padding token is not
            the tokenizer's, or its attention would depend on the batch.
    """
    problems = []
    if max_length > max_positions(config):
        problems.append(f"data.max_length: {max_length} is more than the {max_positions(config)} positions of {field}")
    known, pads_with = getattr(config, "pad_token_id", None), tokenizer.pad_token_id
    if None not in (known, pads_with) and known != pads_with:
        problems.append(
            f"{field}: the tokenizer pads with token {pads_with}, but pad_token_id in config.json is {known}; the two "
            "must be the same"
        )
    if config.model_type == "big_bird" and config.attention_type == "block_sparse":
        # At the first batch of at most this many tokens, the model switches to full attention permanently.
        short = (5 + 2 * config.num_random_blocks) * config.block_size
        if max_length > short:
            problems.append(
                f"data.max_length: {max_length} is more than the {short} tokens up to which {field}, a big_bird with "
                f"attention_type block_sparse, attends the same way in every batch; allowed: at most {short}, or "
                "attention_type original_full in its config.json"
            )
    if len(tokenizer) > config.vocab_size:
        problems.append(
            f"{field}: the tokenizer has {len(tokenizer)} tokens, but the model only has embeddings for "
            f"{config.vocab_size}"
        )
    if problems:
        raise ConfigError(problems)


def load_pretrained(folder: Path, kind: TaskKind, seed: int) -> PreTrainedModel:
    """The pretrained encoder with a head for the task, in float32.

    The head is kept if it was trained for this task. Otherwise it is initialised from `seed`, the same in every
    process.

    Raises:
        ConfigError: the weights lack tensors of the encoder, or a tensor has another shape than in config.json.
    """
    with quiet_loading():
        torch.manual_seed(seed)
        model, info = kind.auto_model().from_pretrained(
            str(folder),
            **kind.head_settings(),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            dtype=torch.float32,
            **FROM_FOLDER,
        )
        encoder = f"{model.base_model_prefix}."  # the head may belong to another task, and the pooler may be missing
        lost = sorted(name for name in info["missing_keys"] if name.startswith(encoder))
        if any(".pooler." not in name for name in lost):
            raise ConfigError(
                f"{folder}: the weights lack {len(lost)} tensors of the encoder, for example {lost[0]}; give a folder "
                "with all weights"
            )
        for name, found, wanted in sorted(info["mismatched_keys"]):
            if name.startswith(encoder):
                raise ConfigError(
                    f"{folder}: {name} has shape {list(found)} in the weights, but {list(wanted)} by config.json; the "
                    "two must belong to the same model"
                )
        if not info["missing_keys"] and not kind.keeps_head(load_model_config(folder, "student.model")):
            _reset_head(model, seed)
    return model


def _reset_head(model: PreTrainedModel, seed: int) -> None:
    torch.manual_seed(seed)
    for name, module in model.named_children():
        if name == model.base_model_prefix:
            continue
        for part in (*module.modules(), *module.parameters()):
            # transformers marks all that it loaded, and only initialises modules and parameters without this mark.
            vars(part).pop("_is_hf_initialized", None)
        module.apply(model._init_weights)


def load_finetuned(folder: Path, kind: TaskKind, field: str) -> PreTrainedModel:
    """A fine-tuned model with its own head, in float32 and evaluation mode.

    Raises:
        ConfigError: naming `field`; its outputs are not those of the task, or its weights lack a head.
    """
    kind.output_order(load_model_config(folder, field, kind), field)
    with quiet_loading():
        model, info = kind.auto_model().from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True, use_safetensors=True, **FROM_FOLDER
        )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(
            f"{field}: {folder} is not fine-tuned, because it lacks {missing}; give a model that is fine-tuned for "
            f"{kind.task.name}"
        )
    fine_tuned: PreTrainedModel = model.eval()
    return fine_tuned


def pad_with(model: PreTrainedModel, kind: TaskKind, pad_id: int) -> None:
    """Sets the padding token of a model whose configuration names none: a decoder's output is that of the last token
    that is not padding."""
    if not kind.cuts_texts and model.config.pad_token_id is None:
        model.config.pad_token_id = pad_id


def model_inputs(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a batch that the model's `forward` takes, without the labels.

    Args:
        batch: from `Examples.collate`, such as `input_ids` and `attention_mask`, int64 [rows, width]. It may have
            `token_type_ids` although the model takes none, because the tokenizer makes them.
    """
    names = _parameter_names(type(model).forward)
    if getattr(getattr(model, "config", None), "type_vocab_size", None) == 1:
        names -= {"token_type_ids"}  # it knows one type alone (as RoBERTa does), but the tokenizer may make more
    return {name: value for name, value in batch.items() if name in names and name != "labels"}


@functools.cache
def _parameter_names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextlib.contextmanager
def quiet_loading() -> Any:
    """Hides progress bars and reports of transformers. The functions here check the important parts themselves."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
