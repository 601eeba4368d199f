import torch

from softlaunch.data.collate import GenerationCollator, TrainingCollator

SHORT = {"input_ids": [5, 6], "labels": [-100, 6], "row_id": 7}
LONG = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "row_id": 4}


def check(batch, **expected):
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        assert batch[name].dtype == torch.int64
        assert batch[name].tolist() == values


def test_training_batches_are_padded_on_the_right():
    check(
        TrainingCollator(pad_token_id=9)([SHORT, LONG]),
        input_ids=[[5, 6, 9], [1, 2, 3]],
        attention_mask=[[1, 1, 0], [1, 1, 1]],
        labels=[[-100, 6, -100], [-100, 2, 3]],
        row_id=[7, 4],
    )


def test_generation_batches_are_padded_on_the_left():
    check(
        GenerationCollator(pad_token_id=9)([SHORT, LONG]),
        input_ids=[[9, 5, 6], [1, 2, 3]],
        attention_mask=[[0, 1, 1], [1, 1, 1]],
        row_id=[7, 4],
    )
    check(GenerationCollator(pad_token_id=9)([{"input_ids": [5]}]), input_ids=[[5]], attention_mask=[[1]])
