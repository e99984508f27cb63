from collections.abc import Iterator

import pytest
import torch

from image_classification.data.loaders.device_prefetch import DeviceFeed, HostBatch, look_ahead

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def host_batch(memory_format: torch.memory_format = torch.contiguous_format) -> HostBatch:
    images = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8)
    return HostBatch(
        images.to(memory_format=memory_format),
        torch.arange(4),
        torch.tensor([True, True, True, False]),
        "",
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cpu_feed_normalises_and_keeps_the_layout(memory_format: torch.memory_format) -> None:
    host = host_batch(memory_format)
    feed = DeviceFeed(torch.device("cpu"), MEAN, STD)
    batch = feed.take(feed.put(host))
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(batch.images, (host.images / 255 - mean) / std)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=memory_format)
    assert batch.labels.tolist() == [0, 1, 2, 3]
    assert batch.valid.tolist() == [True, True, True, False]


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_feed_equals_the_cpu_feed() -> None:
    hosts = [host_batch(torch.channels_last) for _ in range(8)]
    cpu, cuda = (DeviceFeed(torch.device(d), MEAN, STD) for d in ("cpu", "cuda:0"))
    pinned = (cuda.put(HostBatch(*(t.pin_memory() for t in host[:3]), "")) for host in hosts)
    for host, staged in zip(hosts, look_ahead(pinned, 1), strict=True):
        batch, expected = cuda.take(staged), cpu.take(cpu.put(host))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch.images.cpu(), expected.images)
        assert torch.equal(batch.labels.cpu(), expected.labels)
        assert torch.equal(batch.valid.cpu(), expected.valid)
