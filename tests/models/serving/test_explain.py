"""Why an ad got its score: the numbers are those of the ranking, and they add up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.encode import field_key
from features.priors import lookup
from models.serving.schema import EXPLAINED_MAX, ExplainAnswer, ExplainedAd, ExplainedField, RankedAd
from tests.models.serving.service import BODY, NOW_S, Service, ready_service
from tests.models.serving.test_prerank import hold, narrow
from tests.models.serving.trained import FIELDS, two_snapshots

ADS = BODY["candidates"]
AD = FIELDS[3]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = ready_service(tmp_path)
    for number, ad_id in enumerate(ADS):
        ad = {
            "ad_id": ad_id,
            "values": {"tags": [f"t{number % 2}", f"t{number % 5}"]},
            "bid_micros": 1000 * (number % 7),
        }
        creatives = [{"creative_id": f"{ad_id}-{creative}"} for creative in range(3)]
        service.catalog.put(ad_id, json.dumps(ad | {"creatives": creatives}).encode())
    return service


async def explain(service: Service, **changed: Any) -> ExplainAnswer:
    return await service.pipeline.explain(json.dumps({**BODY, **changed}).encode())


async def rank(service: Service, **changed: Any) -> list[RankedAd]:
    return (await service.pipeline.rank(json.dumps({**BODY, **changed}).encode())).ads


def field_of(ad: ExplainedAd, name: str) -> ExplainedField:
    (found,) = (field for field in ad.fields if field.name == name)
    return found


def same(ad: ExplainedAd) -> tuple[Any, ...]:
    return ad.ad_id, ad.position, ad.pctr, ad.known, ad.bid_micros, ad.ecpm_micros, ad.creative_id


async def test_it_gives_the_numbers_of_the_ranking_and_writes_nothing(service: Service) -> None:
    candidates = [*ADS, {"ad_id": "ad77", "values": {"tags": ["t1"]}}]
    found = await explain(service, candidates=candidates, top=10)
    assert service.log.events == []
    ranked = await rank(service, candidates=candidates, top=10)
    assert [same(ad) for ad in found.ads] == [
        (ad.ad_id, ad.position, ad.pctr, ad.known, ad.bid_micros, ad.ecpm_micros, ad.creative_id) for ad in ranked
    ]
    assert (found.request_id, found.snapshot, found.time_s) == ("q1", two_snapshots()[0].version, NOW_S)
    assert {(ad.prerank_score, ad.prerank_position) for ad in found.ads} == {(None, None)}


async def test_the_ads_that_are_asked_for_are_explained_in_that_order_wherever_they_stand(service: Service) -> None:
    service.catalog.put("ad9", b'{"ad_id": "ad9", "active": false}')
    found = await explain(service, ads=["ad3", "nowhere", "ad11", "ad9", "ad3"], top=1)
    assert [ad.ad_id for ad in found.ads] == ["ad3", "ad11"]
    assert found.unexplained == ["nowhere", "ad9"]
    ranked = {ad.ad_id: ad for ad in await rank(service, top=20)}
    assert [(ad.position, ad.pctr) for ad in found.ads] == [
        (ranked[ad.ad_id].position, ranked[ad.ad_id].pctr) for ad in found.ads
    ]


async def test_what_the_pre_ranker_left_out_is_explained_too(service: Service) -> None:
    preranker = hold(service)
    service.pipeline = narrow(service, keep=6)
    ranked = {ad.ad_id: ad for ad in await rank(service, top=6)}
    assert len(ranked) == 6
    found = await explain(service, ads=ADS, top=6)
    assert found.prerank == preranker.version
    assert {ad.ad_id: (ad.position, ad.pctr, ad.creative_id) for ad in found.ads if ad.position is not None} == {
        ad.ad_id: (ad.position, ad.pctr, ad.creative_id) for ad in ranked.values()
    }
    before = sorted(found.ads, key=lambda ad: ad.prerank_position or 0)
    assert [ad.prerank_position for ad in before] == [*range(20)]
    assert {ad.ad_id for ad in before[:6]} == {*ranked}
    scores = [ad.prerank_score or 0.0 for ad in before]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 10
    last = before[-1]
    (alone,) = await rank(service, candidates=[last.ad_id])
    assert last.pctr == pytest.approx(alone.pctr, abs=1e-6)
    assert last.creative_id.startswith(f"{last.ad_id}-")


async def test_the_terms_add_up_to_the_probability(service: Service) -> None:
    for ad in (await explain(service, top=20)).ads:
        terms = ad.terms
        logit = terms.calibrated_base + terms.calibrated_network + terms.calibrated_level
        assert 1.0 / (1.0 + math.exp(-logit)) == pytest.approx(ad.pctr, abs=1e-6)
        weight = two_snapshots()[0].tensors["calibration.weight"].tolist()
        assert terms.calibrated_base == pytest.approx(weight[0] * terms.base_logit)
        assert terms.calibrated_network == pytest.approx(weight[1] * (terms.network_logit - terms.base_logit))


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("age", {"user": {"user_id": "u1"}}),
        ("user_id", {"user": {"age": 30}}),
        ("hour", {"context": {}}),
        ("tags", {"candidates": [{"ad_id": "ad4", "values": {"tags": None}}]}),
    ],
)
async def test_the_effect_of_a_field_is_what_its_absence_changes(
    service: Service, name: str, without: dict[str, Any]
) -> None:
    (ad,) = (await explain(service, candidates=["ad4"])).ads
    (other,) = await rank(service, **{"candidates": ["ad4"]} | without)
    assert field_of(ad, name).effect == pytest.approx(ad.pctr - other.pctr, abs=1e-6)
    assert abs(field_of(ad, name).effect) > 1e-5


async def test_a_field_is_told_with_its_values_and_their_evidence(service: Service) -> None:
    found = await explain(service, ads=["ad4"])
    (ad,) = found.ads
    snapshot = two_snapshots()[0]
    counts = lookup(snapshot.priors, np.array([[field_key(AD, "ad4")]], np.uint64), NOW_S)
    (evidence,) = field_of(ad, "ad").evidence
    assert evidence.impressions == pytest.approx(counts.n[0, 0].tolist())
    assert evidence.clicks == pytest.approx(counts.c[0, 0].tolist())
    assert evidence.impressions[0] > 1.0
    assert found.half_lives_s == snapshot.priors.half_lives_s.tolist()
    n, c, h = evidence.impressions[1], evidence.clicks[1], snapshot.priors.strength[3, 1]
    parent = (evidence.rate[1] * (n + h) - c) / h  # what the rate leans on, if it is a posterior
    overall = float(counts.root_c[0, 1] / counts.root_n[0, 1])
    assert parent == pytest.approx(overall, abs=0.01)
    assert field_of(ad, "tags").values == {"tags": ["t0", "t4"]}
    assert len(field_of(ad, "tags").evidence) == 2
    assert field_of(ad, "user_tags").values == {"user_id": "u1", "tags": ["t0", "t4"]}
    assert field_of(ad, "age").values == {"age": 30.0}
    assert evidence.has_row


async def test_what_is_absent_has_no_evidence_and_no_effect(service: Service) -> None:
    (ad,) = (await explain(service, user={}, ads=["ad4"])).ads
    for name in ("user_id", "age", "user_tags"):
        assert (field_of(ad, name).evidence, field_of(ad, name).effect) == ([], 0.0)
    assert field_of(ad, "user_id").values == {"user_id": None}


async def test_a_value_that_nobody_has_seen_has_no_row_and_leans_on_the_overall_rate(service: Service) -> None:
    (ad,) = (await explain(service, user={"user_id": "stranger"}, ads=["ad4"])).ads
    (evidence,) = field_of(ad, "user_id").evidence
    assert (evidence.impressions, evidence.clicks, evidence.has_row) == ([0.0, 0.0], [0.0, 0.0], False)
    priors = two_snapshots()[0].priors
    assert evidence.rate[1] == pytest.approx(float(priors.root_c[1] / priors.root_n[1]), abs=0.01)


async def test_no_more_than_its_number_are_explained(service: Service) -> None:
    more = [*ADS, *(f"more{number}" for number in range(20))]
    assert len((await explain(service, candidates=more, top=40)).ads) == EXPLAINED_MAX


async def test_it_waits_in_the_queue_of_rankings(tmp_path: Path) -> None:
    service = ready_service(tmp_path, concurrent_max=1, queue_max=0)
    async with service.client() as client:
        assert (await client.post("/v1/explain", json=BODY)).status_code == 200
        async with service.admission.place():
            assert (await client.post("/v1/explain", json=BODY)).status_code == 429


async def test_without_a_snapshot_there_is_nothing_to_explain(tmp_path: Path) -> None:
    async with Service(tmp_path).client() as client:
        answer = await client.post("/v1/explain", json=BODY)
    assert (answer.status_code, answer.json()["error"]["what"]) == (503, "snapshot")
