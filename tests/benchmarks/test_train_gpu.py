"""The benchmark of training runs, here in its smallest part; its figures are for people."""

from benchmarks.train_gpu import run


def test_the_benchmark_of_training_measures_a_learner() -> None:
    (line,) = run(learners=("apga",), ways=("float32",), seconds=0, processes=1)
    assert line["name"] == "train_gpu/apga/float32"
    assert line["value"] > 0
    assert line["ratio"] == 1
