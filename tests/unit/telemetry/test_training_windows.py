from image_classification.telemetry.training_windows import TrainingWindows, WindowTotals


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_time_counts_between_begin_and_end():
    clock = Clock()
    work = TrainingWindows(clock)
    clock.now_s += 5
    work.begin(measured=False)
    clock.now_s += 2
    work.note(8)
    work.measure()
    clock.now_s += 3
    work.note(8)
    clock.now_s += 0.5
    assert work.totals() == WindowTotals(5.5, 3.5, 5.0, 16, 8)
    work.end()
    clock.now_s += 60
    work.end()
    assert work.is_idle
    work.begin(measured=True)
    clock.now_s += 1
    work.note(8)
    assert work.totals() == WindowTotals(6.5, 4.5, 6.5, 24, 16)
