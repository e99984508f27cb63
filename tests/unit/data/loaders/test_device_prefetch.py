from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from image_classification.core.errors import DataError
from image_classification.data.formats.index import FolderIndex, Names
from image_classification.data.loaders.device_prefetch import (
    BufferPool,
    DevicePrefetch,
    HostBatch,
    HostNormalizer,
    host_batch,
    look_ahead,
    normalize,
)
from image_classification.data.order import PADDING

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def noise_batch(layout: torch.memory_format = torch.contiguous_format) -> HostBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 17, 13), dtype=torch.uint8, generator=generator)
    valid = torch.tensor([True, True, True, False])
    return HostBatch(images.contiguous(memory_format=layout), torch.arange(4), valid)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_batch_for_the_cpu_is_normalized_in_its_layout(layout: torch.memory_format) -> None:
    host = noise_batch(layout)
    prefetch = DevicePrefetch(torch.device("cpu"), MEAN, STD)
    batch = prefetch.take(prefetch.put(host))
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(batch.images, (host.images / 255 - mean) / std)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=layout)
    assert batch.labels.tolist() == [0, 1, 2, 3]
    assert batch.valid.tolist() == [True, True, True, False]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_host_normalizer_has_the_bits_of_normalize(layout: torch.memory_format) -> None:
    mean, inverse_std = torch.tensor(MEAN) * 255, 1 / (torch.tensor(STD) * 255)
    images, shape = noise_batch(layout).images, (1, 3, 1, 1)
    expected = normalize(images, mean.reshape(shape), inverse_std.reshape(shape))
    on_host = HostNormalizer(mean, inverse_std)
    for _ in range(3):  # from the second time on, into reused memory
        found = on_host(images)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_batches_as_the_cpu() -> None:
    hosts = [noise_batch(torch.channels_last) for _ in range(8)]
    cpu, cuda = (DevicePrefetch(torch.device(d), MEAN, STD) for d in ("cpu", "cuda:0"))
    pinned = (cuda.put(host._replace(images=host.images.pin_memory())) for host in hosts)
    for host, staged in zip(hosts, look_ahead(pinned, 1), strict=True):
        batch, expected = cuda.take(staged), cpu.take(cpu.put(host))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch.images.cpu(), expected.images)
        assert torch.equal(batch.labels.cpu(), expected.labels)
        assert torch.equal(batch.valid.cpu(), expected.valid)


def test_memory_is_reused_only_when_nothing_refers_to_it() -> None:
    pool = BufferPool(limit=2)
    first = pool.take((4, 8))
    address = first.data_ptr()
    part = first[1:]
    del first
    assert pool.take((4, 8)).data_ptr() != address
    del part
    assert pool.take((4, 8)).data_ptr() == address


def test_memory_that_autograd_saved_is_not_reused() -> None:
    pool = BufferPool(limit=2)
    weight = torch.ones(8, requires_grad=True)
    images = pool.take((4, 8)).fill_(3.0)
    product = (images * weight).sum()
    del images
    pool.take((4, 8)).fill_(7.0)
    product.backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((8,), 12.0))


def test_buffer_pool_has_a_limit_and_separates_shapes() -> None:
    pool = BufferPool(limit=2)
    assert pool.take((2, 8)).shape == (2, 8)
    assert pool.take((8, 2)).shape == (8, 2)
    held = [pool.take((16,)) for _ in range(5)]
    addresses = [tensor.data_ptr() for tensor in held]
    assert len(set(addresses)) == 5
    held.clear()
    assert {pool.take((16,)).data_ptr() for _ in range(2)} <= set(addresses[-2:])


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_look_ahead_draws_ahead_and_keeps_the_order(depth: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for i in range(5):
            drawn.append(i)
            yield i

    ahead = []
    for expected, item in enumerate(look_ahead(items(), depth)):
        assert item == expected
        ahead.append(len(drawn) - 1 - item)
    assert ahead == [min(depth, 4 - i) for i in range(5)]


def test_look_ahead_past_the_end() -> None:
    assert list(look_ahead(iter([1, 2]), 7)) == [1, 2]
    assert list(look_ahead(iter([]), 1)) == []


INDEX = FolderIndex(
    Path("root"), "train", ("a",), np.arange(4) + 10, Names.of([b"0", b"1", b"2", b"3"])
)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [((), [3, 2, 1, 0]), ((1,), [3, 1, 1, 0]), ((3,), [3, 2, 1, 3]), ((2, 0, 3), [2, 2, 2, 2])],
)
def test_lost_rows_become_the_next_decoded_row(lost: tuple[int, ...], expected: list[int]) -> None:
    indices = np.array([3, 2, 1, 0])
    images = torch.from_numpy(indices)[:, None, None, None].expand(4, 3, 2, 2).clone()
    batch = host_batch(images, indices, INDEX, dict.fromkeys(lost, "why"))
    assert batch.labels.tolist() == [10 + index for index in expected]
    assert batch.images[:, 2, 1, 1].tolist() == expected
    assert batch.undecodable == tuple((f"{3 - row}", "why") for row in sorted(lost))


def test_padding_has_label_0_and_is_not_valid() -> None:
    batch = host_batch(torch.zeros(2, 3), np.array([3, PADDING]), INDEX, {})
    assert (batch.labels.tolist(), batch.valid.tolist()) == ([13, 0], [True, False])


def test_a_micro_batch_without_a_decoded_row_raises_an_error() -> None:
    with pytest.raises(DataError, match="no image of a micro-batch of 2 could be read: first"):
        host_batch(torch.zeros(2, 3), np.array([0, 1]), INDEX, {0: "first", 1: "second"})
