from image_classification.reporting.figures import (
    label_of,
    split_batch,
    value_text,
    with_batch,
)


def test_keys_labels_and_texts_of_figures():
    assert with_batch("latency_ms_p95", 64) == "latency_ms_p95_batch_64"
    assert split_batch("latency_ms_p95_batch_64") == ("latency_ms_p95", 64)
    assert split_batch("top1") == ("top1", None)
    assert label_of("latency_ms_p95_batch_64") == "latency p95 at 64"
    assert value_text("latency_ms_p95_batch_64", 39.361) == "39.36 ms"
    assert value_text("train_speedup", 2.91) == "2.91"
    assert value_text("power_w_per_device", None) == "-"
    assert value_text("inference_images_per_s_batch_1", 78.0) == "78.0 images/s"
