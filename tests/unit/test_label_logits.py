"""The head sees the positions that carry a label, and no others."""

import pytest
import torch

from softlaunch.training.label_logits import LogitsAtLabels
from tests.bases import CONFIGS, random_base


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_kept_positions(name):
    model = random_base(name).eval()
    at_labels, ids = LogitsAtLabels(model), torch.randint(3, 90, (2, 7))
    kept = torch.zeros(2, 7, dtype=torch.bool)
    kept[0, 2], kept[1, 1], kept[1, 6] = True, True, True
    with torch.no_grad():
        everywhere = model(input_ids=ids).logits
        with at_labels.at(kept):
            some = model(input_ids=ids).logits
        torch.testing.assert_close(some, everywhere[kept])
        assert torch.equal(model(input_ids=ids).logits, everywhere)


def test_embeddings_in_front_of_the_rows_are_not_kept():
    model = random_base("glm").eval()
    at_labels, embeddings = LogitsAtLabels(model), torch.randn(2, 9, model.config.hidden_size)
    kept = torch.rand(2, 6) < 0.5
    with torch.no_grad():
        everywhere = model(inputs_embeds=embeddings).logits
        with at_labels.at(kept):
            some = model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(some, everywhere[:, 3:][kept])
