"""What is refused of a model before it is loaded, against what its forward pass admits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.models import POSITIONS_FROM_PADDING, load_model_config, max_positions
from raypp.tasks import find_task

SMALL = {
    **{"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    **{"vocab_size": 50, "max_position_embeddings": 20},
}
OWN: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": [4]},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "markuplm": {"max_depth": 2, "xpath_unit_hidden_size": 4},
}


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("family", [*POSITIONS_FROM_PADDING, "mpnet", "bert", "electra", "nystromformer", "yoso"])
def test_the_longest_text_that_is_admitted_is_the_longest_that_a_model_reads(family: str, padding: int) -> None:
    config = transformers.AutoConfig.for_model(family, pad_token_id=padding, **SMALL, **OWN.get(family, {}))
    model = transformers.AutoModel.from_config(config).eval()
    longest = max_positions(config)
    with torch.no_grad():
        states = model(torch.full((1, longest), 7)).last_hidden_state
        assert states.shape[:2] == (1, longest)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 7))


@pytest.mark.parametrize("task", ["mrpc", "squad", "swag"])
def test_xlnet_is_refused_by_its_name(task: str, tmp_path: Path) -> None:
    transformers.XLNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^student\.model: model_type 'xlnet' needs texts padded at their left"):
        load_model_config(tmp_path, "student.model", kind_of(find_task(task)))
