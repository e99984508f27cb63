import numpy as np
import pytest
import torch

from image_classification.data.loaders.device_prefetch import BufferPool, HostNormaliser, normalise

MEAN = torch.tensor((123.675, 116.28, 103.53))
INVERSE_STD = 1 / torch.tensor((58.395, 57.12, 57.375))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_bits_and_layout_are_those_of_the_whole_batch_at_once(layout: torch.memory_format) -> None:
    shape = (5, 3, 17, 13)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=layout)
    apart = (1, 3, 1, 1)
    wanted = normalise(images, MEAN.reshape(apart), INVERSE_STD.reshape(apart))
    on_host = HostNormaliser(MEAN, INVERSE_STD)
    for _ in range(3):  # the second time on into memory used before
        found = on_host(images)
        assert torch.equal(found, wanted)
        assert found.is_contiguous(memory_format=layout)


def test_memory_comes_back_only_when_nothing_refers_to_it() -> None:
    pool = BufferPool(limit=2)
    first = pool.take((4, 8), np.float32)
    address = first.data_ptr()
    part = first[1:]
    del first
    assert pool.take((4, 8), np.float32).data_ptr() != address
    del part
    assert pool.take((4, 8), np.float32).data_ptr() == address


def test_autograd_keeps_its_memory() -> None:
    pool = BufferPool(limit=2)
    weight = torch.ones(8, requires_grad=True)
    images = pool.take((4, 8), np.float32).fill_(3.0)
    product = (images * weight).sum()
    del images
    pool.take((4, 8), np.float32).fill_(7.0)
    product.backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((8,), 12.0))


def test_another_shape_or_type_is_other_memory() -> None:
    pool = BufferPool(limit=3)
    assert pool.take((2, 3), np.uint8).dtype == torch.uint8
    assert pool.take((3, 2), np.float32).shape == (3, 2)


def test_it_holds_no_more_buffers_than_its_limit() -> None:
    pool = BufferPool(limit=2)
    held = [pool.take((16,), np.uint8) for _ in range(5)]
    addresses = [tensor.data_ptr() for tensor in held]
    assert len(set(addresses)) == 5
    held.clear()
    again = {pool.take((16,), np.uint8).data_ptr() for _ in range(2)}
    assert again <= set(addresses[-2:])
