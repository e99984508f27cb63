import pytest
import torch
import torch.nn.functional as F

from image_classification.config.schema import LossConfig
from image_classification.optim.losses import build_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_int_labels_equal_torch_and_the_formula(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    loss = build_loss(LossConfig(label_smoothing=smoothing))(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    log_p = logits.log_softmax(1)
    nll = -log_p[torch.arange(6), labels]
    by_hand = ((1 - smoothing) * nll - smoothing * log_p.mean(1)).mean()
    torch.testing.assert_close(loss, by_hand)


def test_soft_targets_are_smoothed_as_well() -> None:
    torch.manual_seed(0)
    logits, soft = torch.randn(4, 5), torch.rand(4, 5).softmax(1)
    loss = build_loss(LossConfig(label_smoothing=0.2))(logits, soft)
    smoothed = 0.8 * soft + 0.2 / 5
    torch.testing.assert_close(loss, -(smoothed * logits.log_softmax(1)).sum(1).mean())


def test_one_hot_targets_equal_int_labels() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    loss = build_loss(LossConfig(label_smoothing=0.1))
    torch.testing.assert_close(loss(logits, labels), loss(logits, F.one_hot(labels, 5).float()))


def test_half_logits_are_taken_to_float32() -> None:
    logits, labels = torch.randn(4, 1000).bfloat16(), torch.tensor([0, 1, 2, 4])
    loss = build_loss(LossConfig())(logits, labels)
    assert loss.dtype == torch.float32 and loss.dim() == 0
    assert torch.equal(loss, F.cross_entropy(logits.float(), labels))


def test_labels_of_another_batch_are_refused() -> None:
    with pytest.raises(AssertionError):
        build_loss(LossConfig())(torch.randn(4, 5), torch.zeros(3, dtype=torch.int64))
