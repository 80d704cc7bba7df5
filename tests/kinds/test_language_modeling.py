"""Language modeling: the head gives the same for chosen tokens as for all, and perplexity is torch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional
from transformers import BertConfig, GPT2Config, MobileBertConfig, XLMConfig

from raypp.config import DataSettings, DistillationSettings, LanguageModelingTask, TextSource
from raypp.corpus.blocks import Blocks
from raypp.corpus.examples import BlockExamples
from raypp.corpus.targets import NOT_PREDICTED, Masker
from raypp.distillation.objective import Objective
from raypp.distillation.teacher import OnlineTeacher, hidden_state_terms
from raypp.errors import ConfigError
from raypp.evaluation.direction import lower_is_better, merit
from raypp.evaluation.evaluate import headline_key
from raypp.evaluation.predictions import Predictions
from raypp.kinds import kind_of
from raypp.models.loading import check_opens
from raypp.tasks import resolve_task

VOCABULARY = 60
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": VOCABULARY}
MASKED = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "electra": "Electra", "mpnet": "MPNet"}
MASKED |= {"albert": "Albert", "deberta-v2": "DebertaV2", "modernbert": "ModernBert"}
CAUSAL = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "llama": "LlamaForCausalLM"}
SOURCE = TextSource(kind="text", files=("some.txt",))


def kind(objective: Any = "masked") -> Any:
    task = LanguageModelingTask(name="corpus", kind="language_modeling", objective=objective)
    return kind_of(resolve_task(task, SOURCE), DataSettings())


def a_model(family: str, seed: int = 0, layers: int = 2, **changes: Any) -> Any:
    torch.manual_seed(seed)
    settings = SMALL | {"num_hidden_layers": layers, "pad_token_id": 0, "initializer_range": 0.3} | changes
    config = transformers.AutoConfig.for_model(family, **settings)
    name = CAUSAL.get(family) or f"{MASKED[family]}ForMaskedLM"
    return getattr(transformers, name)(config).eval()


def examples(objective: Any = "masked", rows: int = 6, **changes: Any) -> BlockExamples:
    chance = np.random.default_rng(0)
    lengths = chance.integers(12, 20, rows)
    ids = chance.integers(5, VOCABULARY, lengths.sum()).astype(np.int32)
    blocks = Blocks(np.arange(rows), np.zeros(rows, np.int64), np.concatenate([[0], np.cumsum(lengths)]), ids)
    masking = kind(objective).task.masking
    counts = np.ones(VOCABULARY, np.int64)
    masker = None if masking is None else Masker.build(masking, 1, counts, [0, 1, 2, 3, 4], 4)
    return BlockExamples(blocks, masker, **changes)


def batch_of(given: BlockExamples, *indices: int) -> dict[str, torch.Tensor]:
    return given.collate(np.array(indices), 0)


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL])
@pytest.mark.parametrize("all_tokens", [False, True])
def test_a_head_on_chosen_tokens_gives_what_the_whole_head_gives_there(family: str, all_tokens: bool) -> None:
    objective = "causal" if family in CAUSAL else "masked"
    model, language = a_model(family), kind(objective)
    batch = batch_of(examples(objective, all_tokens=all_tokens), 0, 3, 5)
    with torch.no_grad():
        output = language.run(model, batch, output_hidden_states=True)
        outputs = language.outputs(output, batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        whole = model(**inputs, output_hidden_states=True)
    assert len(outputs) == int(batch["chosen"].sum())
    torch.testing.assert_close(outputs, whole.logits[batch["chosen"]], rtol=1e-5, atol=1e-5)
    real = batch["attention_mask"].bool()
    for one, other in zip(output.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[real], rtol=1e-5, atol=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks, "the model is unchanged"


@pytest.mark.parametrize("objective", ["masked", "causal"])
@pytest.mark.parametrize("all_tokens", [False, True])
def test_the_hard_loss_is_transformers_own_over_the_global_batch(objective: Any, all_tokens: bool) -> None:
    model, language = a_model("gpt2" if objective == "causal" else "bert"), kind(objective)
    given = examples(objective, all_tokens=all_tokens)
    loss = Objective.build(language, None, None)
    everyone = np.arange(6)
    counts = loss.counts(given.loss_counts(everyone))
    parts = [
        float(loss.loss(loss(model, batch_of(given, *share)), counts).detach()) for share in ((0, 1), (2, 3, 4), (5,))
    ]
    batch = batch_of(given, *everyone)
    labels = batch["labels"]
    if objective == "causal":  # transformers shifts by itself
        labels = functional.pad(labels, (1, 0), value=NOT_PREDICTED)[:, :-1]
    with torch.no_grad():
        reference = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert sum(parts) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize("soft_tokens", ["targets", "all"])
def test_every_loss_of_task_agnostic_distillation_is_a_plain_torch_reference(soft_tokens: Any) -> None:
    """DistilBERT's three (Sanh et al. 2019), the original distiller's fourth and TinyBERT's hidden states."""
    student, teacher, language = a_model("bert", 1), a_model("bert", 2, layers=4), kind()
    settings = DistillationSettings(
        soft_weight=5.0,
        hard_weight=2.0,
        temperature=2.0,
        cosine_weight=1.0,
        logits_weight=0.5,
        hidden_weight=3.0,
        soft_tokens=soft_tokens,
    )
    compared = hidden_state_terms(settings, student.config, teacher.config)
    online = OnlineTeacher(teacher, language, compared, 16, 0, torch.device("cpu"), with_logits=True)
    objective = Objective.build(language, settings, online)
    given = examples(all_tokens=soft_tokens == "all")
    batch = batch_of(given, *range(6))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        terms = objective(student, {**batch, **online.observe(batch)})
        own, followed = (model(**inputs, output_hidden_states=True) for model in (student, teacher))
    everyone = np.arange(6)
    counts = objective.counts(given.loss_counts(everyone))

    real, labels = batch["attention_mask"].bool(), batch["labels"]
    compared_at = real if soft_tokens == "all" else labels != NOT_PREDICTED
    ours, theirs = own.logits[compared_at], followed.logits[compared_at]
    soft = functional.kl_div((ours / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="batchmean") * 4
    mean = {name: float(value) / counts[name] for name, value in terms.items()}
    assert mean["soft_loss"] == pytest.approx(float(soft), rel=1e-4)
    assert mean["logits_loss"] == pytest.approx(float(functional.mse_loss(ours, theirs)), rel=1e-5)
    hard = functional.cross_entropy(own.logits.flatten(0, 1), labels.flatten())
    assert mean["hard_loss"] == pytest.approx(float(hard), rel=1e-5)
    cosine, hidden = [], []
    for row, mask in enumerate(real):
        last, above = own.hidden_states[-1][row][mask], followed.hidden_states[-1][row][mask]
        cosine.append(torch.nn.CosineEmbeddingLoss()(last, above, torch.ones(len(last))))
        layers = [(own.hidden_states[layer], followed.hidden_states[2 * layer]) for layer in (1, 2)]
        hidden.append(sum(functional.mse_loss(one[row][mask], other[row][mask]) for one, other in layers) / 2)
    assert mean["cosine_loss"] == pytest.approx(float(torch.stack(cosine).mean()), rel=1e-5)
    assert mean["hidden_loss"] == pytest.approx(float(torch.stack(hidden).mean()), rel=1e-5)
    weighed = 5 * mean["soft_loss"] + 2 * mean["hard_loss"] + mean["cosine_loss"]
    weighed += 0.5 * mean["logits_loss"] + 3 * mean["hidden_loss"]
    assert float(objective.loss(terms, counts)) == pytest.approx(weighed, rel=1e-5)


def test_perplexity_is_over_all_targets_and_not_a_mean_of_means() -> None:
    model, language, given = a_model("bert"), kind(), examples()
    with torch.no_grad():
        parts = []
        for share in ((0, 1, 2), (3, 4, 5)):
            batch = batch_of(given, *share)
            parts.append(language.predicted(language.outputs(language.run(model, batch), batch), batch))
        batch = batch_of(given, *range(6))
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    reference = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    predictions = Predictions(given, torch.cat(parts).numpy())
    assert language.metrics(predictions) == {"perplexity": pytest.approx(float(reference.exp()), rel=1e-5)}
    assert predictions.logits[:, 1].tolist() == (batch["labels"] != NOT_PREDICTED).sum(1).tolist()
    table = language.table({"dev": predictions}).splitlines()
    assert table[0].split("\t") == ["split", "row", "piece", "targets", "negative_log_likelihood"]
    assert len(table) == 7
    broken = replace(predictions, logits=np.full((6, 2), np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="corpus"):
        language.metrics(broken)


@pytest.mark.parametrize("loss", [709.0, 710.0])
def test_a_loss_whose_perplexity_is_too_large_for_a_number_is_an_error(loss: float) -> None:
    predictions = Predictions(examples(), np.full((6, 2), (loss, 1.0), np.float32))
    if loss < np.log(np.finfo(np.float64).max):
        assert kind().metrics(predictions) == {"perplexity": pytest.approx(np.exp(loss))}
        return
    with pytest.raises(FloatingPointError, match="corpus: no perplexity of a mean loss of 710"):
        kind().metrics(predictions)


def test_less_perplexity_is_better() -> None:
    assert lower_is_better(headline_key(kind().task))
    assert not lower_is_better(headline_key(resolve_task("mrpc", None)))
    assert merit("eval/perplexity", 3.0) > merit("eval/perplexity", 4.0)


@pytest.mark.parametrize(
    ("objective", "config", "reason"),
    [
        ("causal", BertConfig(), "sees the tokens that follow"),
        ("causal", XLMConfig(), "sees the tokens that follow"),
        ("masked", MobileBertConfig(), "cannot be computed for chosen tokens alone"),
        ("causal", BertConfig(is_decoder=True), None),
        ("causal", GPT2Config(), None),
        ("masked", BertConfig(), None),
    ],
)
def test_a_model_that_could_not_learn_the_task_is_refused(objective: Any, config: Any, reason: str | None) -> None:
    if reason is None:
        check_opens(config, kind(objective), "student.model")
        return
    with pytest.raises(ConfigError, match=rf"student\.model: model_type '{config.model_type}' .*{reason}"):
        check_opens(config, kind(objective), "student.model")
