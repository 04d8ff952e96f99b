from concurrent.futures import ThreadPoolExecutor

import numpy as np

from features.encode import encode
from features.priors import lookup
from models.batch import ROWS_MAX, Predictor, make_inputs, minibatches
from models.click_task import initial_snapshot
from tests.frames import FIELDS, plan, world
from tests.models.learnt import learnt

SNAPSHOT = learnt()[0].latest
PREDICTOR = Predictor(SNAPSHOT)
KEYS = encode(world(400, seed=77), FIELDS)


def predict(which: slice = slice(None)) -> np.ndarray:
    return PREDICTOR(KEYS[which], lookup(SNAPSHOT.priors, KEYS[which], SNAPSHOT.end_s))


def test_predictions_are_probabilities_that_differ() -> None:
    probabilities = predict()
    assert probabilities.dtype == np.float32
    assert 0.0 < probabilities.min() < probabilities.max() < 1.0


def test_a_prediction_does_not_depend_on_the_rows_beside_it() -> None:
    alone = np.concatenate([predict(slice(i, i + 1)) for i in range(50)])
    np.testing.assert_allclose(alone, predict()[:50], atol=1e-6)


def test_no_rows_have_no_predictions() -> None:
    assert predict(slice(0, 0)).shape == (0,)


def test_more_rows_than_are_scored_at_a_time_get_the_same_predictions() -> None:
    times = ROWS_MAX // 400 + 1
    keys = np.tile(KEYS, (times, 1))
    many = PREDICTOR(keys, lookup(SNAPSHOT.priors, keys, SNAPSHOT.end_s))
    np.testing.assert_allclose(many, np.tile(predict(), times), atol=1e-6)


def test_threads_may_share_a_predictor() -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: predict(), range(16)))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_before_it_has_learnt_anything_every_row_has_the_overall_rate() -> None:
    snapshot = initial_snapshot(plan())
    probabilities = Predictor(snapshot)(KEYS, lookup(snapshot.priors, KEYS, 0.0))
    np.testing.assert_allclose(probabilities, 0.5)  # nothing is known of the rate either


def test_values_that_nobody_has_seen_are_scored_by_the_rest() -> None:
    keys = np.where(KEYS > 0, KEYS ^ np.uint64(12345), KEYS)
    probabilities = PREDICTOR(keys, lookup(SNAPSHOT.priors, keys, SNAPSHOT.end_s))
    assert np.isfinite(probabilities).all()
    assert not make_inputs(keys, lookup(SNAPSHOT.priors, keys, SNAPSHOT.end_s), SNAPSHOT, "cpu").rows.any()


def test_mini_batches_hold_each_row_once_in_an_order_of_seed_and_slide() -> None:
    batches = list(minibatches(1000, 300, seed=1, slide=5))
    assert [len(batch) for batch in batches] == [300, 300, 300, 100]
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(1000))
    assert np.array_equal(order, np.concatenate(list(minibatches(1000, 300, seed=1, slide=5))))
    assert not np.array_equal(order, np.concatenate(list(minibatches(1000, 300, seed=1, slide=6))))
