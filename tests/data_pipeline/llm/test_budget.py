"""Prices, upper bounds, and a cap that holds in any order of events."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.llm.budget import Budget, BudgetReached, Price, Usage, estimated_tokens, price_of
from data_pipeline.llm.journal import UNKNOWN, Journal, Received, Sent
from data_pipeline.llm.request import Prompt, RequestTemplate
from inf_jax.core.errors import UserError

PRICE = Price(2.0, 0.5, 8.0)
GENERATE = RequestTemplate("generate", "gpt-4o-mini", Prompt.read("generate_v1"), 2000)


class NoJournal:
    """Stands for the journal of earlier runs."""

    def __init__(self, spent=0.0, unknown=0.0):
        self._spent = spent, unknown

    def spent(self):
        return self._spent


def test_the_cost_of_an_answer():
    usage = Usage(1_000_000, 400_000, 100_000)
    assert PRICE.usd(usage, batch=False) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.1 * 8)
    assert PRICE.usd(usage, batch=True) == pytest.approx(1.1)
    assert PRICE.paid(usage, 9.0, batch=True) == pytest.approx(1.1)
    assert PRICE.paid(Usage.parse(None), 9.0, batch=True) == 9


@given(
    query=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40),
    passage=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_the_upper_bound_holds_for_any_tokenizer_of_bytes(query, passage):
    payload = {"query": query, "passage": passage, "instruction_type": "audience"}
    request = GENERATE.request(payload)
    # worst case: one token per byte of all texts, the schema included
    texts = [message["content"] for message in request.body["messages"]]
    texts += _strings(request.body["response_format"])
    most = Usage(sum(len(text.encode()) for text in texts), 0, request.max_completion_tokens)
    assert PRICE.upper_bound(request, batch=False) >= PRICE.usd(most, batch=False)
    assert PRICE.upper_bound(request, batch=True) == PRICE.upper_bound(request, batch=False) / 2
    assert 0 < estimated_tokens(request) < most.prompt_tokens


def _strings(value):
    if isinstance(value, dict):
        return [*value, *(text for part in value.values() for text in _strings(part))]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return [str(value)]


def test_the_server_s_count_is_below_the_upper_bound(client_of, calm_server):
    client = client_of(calm_server)
    for passage in ("short", "ä" * 500, "漢字" * 300, '"\\\n' * 400):
        payload = {"query": "q", "passage": passage, "instruction_type": "format"}
        request = GENERATE.request(payload)
        usage = Usage.parse(client.chat.completions.create(**request.body).usage.to_dict())
        assert PRICE.usd(usage, batch=False) <= PRICE.upper_bound(request, batch=False)


def test_prices():
    assert price_of("o3-mini") == Price(1.10, 0.55, 4.40)
    assert price_of("o3-mini-2025-01-31") == price_of("o3-mini")
    assert price_of("gpt-4.1-mini-2025-04-14") == price_of("gpt-4.1-mini")
    assert price_of("gpt-4o-2024-05-13").output == 15  # more expensive than later snapshots
    assert price_of("gpt-4o-2024-08-06") == price_of("gpt-4o")
    assert price_of("anything", (0, 0)) == Price(0, 0, 0)
    assert price_of("o3-mini", (1, 2)) == Price(1, 1, 2)
    assert price_of("o3-mini", (1, 0.5, 2)) == Price(1, 0.5, 2)


@pytest.mark.parametrize("model", ["gpt-9", "o3-mini-latest", "ft:gpt-4o-mini", ""])
def test_a_model_without_a_price(model):
    with pytest.raises(UserError, match="give it as the stage's `price`"):
        price_of(model)


@pytest.mark.parametrize("own", [(1,), (1, 2, 3, 4), (-1, 2), (float("nan"), 1), (1, float("inf"))])
def test_an_invalid_price(own):
    with pytest.raises(UserError, match="USD per million tokens"):
        price_of("o3-mini", own)


_REQUEST = st.tuples(
    st.floats(0.0001, 0.4),  # reserved
    st.floats(0, 1),  # share of it that is paid
    st.sampled_from(["paid", "unpaid", "unknown"]),
    st.integers(0, 4),  # iterations of the loop until it ends
)


@given(requests=st.lists(_REQUEST, max_size=30), spent=st.floats(0, 0.5), unknown=st.floats(0, 0.5))
@settings(max_examples=150, deadline=None)
def test_the_cap_holds_in_any_order(requests, spent, unknown):
    budget = Budget(NoJournal(spent, unknown), 1.0)
    ended, refused = [], []

    async def one(reserved, share, end, turns):
        try:
            await budget.reserve(reserved)
        except BudgetReached:
            # refused only if no active request could have made room
            assert budget.worst_case + reserved > 1.0
            assert budget.worst_case == pytest.approx(budget.usd + budget._unknown)
            refused.append(reserved)
            return
        assert budget.worst_case <= 1.0 + 1e-9
        for _ in range(turns):
            await asyncio.sleep(0)
        usd = reserved * share if end == "paid" else 0.0
        budget.settle(reserved, usd, unknown=end == "unknown")
        ended.append(usd + (reserved if end == "unknown" else 0.0))
        assert budget.worst_case <= 1.0 + 1e-9

    async def all_of_them():
        await asyncio.wait_for(asyncio.gather(*(one(*request) for request in requests)), 60)

    asyncio.run(all_of_them())
    assert len(ended) + len(refused) == len(requests)
    assert budget.worst_case == pytest.approx(spent + unknown + sum(ended))


def test_reserve_waits_for_active_requests():
    async def waited():
        budget = Budget(NoJournal(), 1.0)
        await budget.reserve(0.9)
        second = asyncio.create_task(budget.reserve(0.5))
        await asyncio.sleep(0)
        assert not second.done() and not budget.fits(0.5)
        budget.settle(0.9, 0.1)
        await asyncio.wait_for(second, 60)
        third = asyncio.create_task(budget.reserve(0.5))
        await asyncio.sleep(0)
        budget.settle(0.5, 0.0, unknown=True)
        with pytest.raises(BudgetReached, match=r"0\.1000 spent, 0\.5000 possibly billed"):
            await asyncio.wait_for(third, 60)

    asyncio.run(waited())


def test_rounding_does_not_make_reserve_wait_for_ever():
    async def waited():
        budget = Budget(NoJournal(), 1.0)
        for number in range(3000):
            await budget.reserve(one := 0.1 / (number + 3))
            await budget.reserve(two := 0.7 / (number + 7))
            budget.settle(one, one / 9e4)
            budget.settle(two, two / 9e4)
        budget._reserved += 1e-11  # rounding of more requests than a test can make
        with pytest.raises(BudgetReached):
            await asyncio.wait_for(budget.reserve(5.0), 60)

    asyncio.run(waited())


def test_free_requests_ignore_the_cap():
    async def free():
        budget = Budget(NoJournal(spent=2.0), 1.0)
        await budget.reserve(0.0)
        budget.settle(0.0, 0.0)
        unlimited = Budget(NoJournal(spent=2.0), None)
        await unlimited.reserve(1e6)

    asyncio.run(free())


def test_spending_of_earlier_runs_counts(tmp_path):
    journal = Journal(tmp_path / "j")
    paid, lost, open_ = (Sent(journal.new_id(), key, "judge", "m", 0.4) for key in "abc")
    journal.write([paid, lost, open_, Received(paid.id, "answer", "{}", 1, 1, 0.1)])
    journal.write([Received(lost.id, UNKNOWN, "timeout")])
    budget = Budget(journal, 1.0)
    assert budget.usd == 0.1 and budget.worst_case == pytest.approx(0.9)
    budget.settle(0.4, 0.05, earlier=True)  # a batch of an earlier run has ended
    assert budget.usd == pytest.approx(0.15) and budget.worst_case == pytest.approx(0.55)
    budget.settle(0.4, 0.0, unknown=True, earlier=True)
    assert budget.worst_case == pytest.approx(0.55)
    journal.close()
