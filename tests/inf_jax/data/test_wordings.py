"""Instructions in several wordings or dropped, drawn in each step, and original pairs alone."""

import numpy as np
import pytest

from inf_jax.config.checks import check_config
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import Attention, Joint
from inf_jax.data.from_config import make_loader, tokenised_split, training_wordings
from inf_jax.data.records import Pair, PairExample, pairs, text_hash
from inf_jax.data.sampler import ORDER
from inf_jax.data.tokenised.varied import VariedDataset
from inf_jax.text.noise import perturbed
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.data.batches import grid_texts, hash_of, make
from tests.inf_jax.data.small_split import make_dataset

TEMPLATES = ("{query} {instruction}", "Task: {instruction} Query: {query}")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(tiny_model_dir)


@pytest.fixture
def opened(tiny_config, tokenizer):
    """opened(**of the data section) -> the training split."""

    def call(**changes):
        for name, value in {"max_query_tokens": 32, **changes}.items():
            tiny_config.data[name] = value
        check_config(tiny_config)
        return training_wordings(run_config(tiny_config), tokenizer)

    return call


def rows_of(batch, layout):
    """{pair: (query's tokens, hash, [n_ik's (hash, tokens)], poison's pair or None)}."""
    texts, ids = grid_texts(batch.texts)
    n, m = layout.pairs_per_chunk, layout.sampled
    of_row, found = ids[:, :n].ravel() // 2, {}
    drawn = ids[:, 2 * n :].reshape(-1, m)
    queries = ids[:, :n].ravel()
    for row in np.flatnonzero(batch.valid):
        valid = batch.negatives.valid[row]
        hashes = hash_of(batch.negatives.ids[row])
        sampled = [(int(hashes[1 + j]), texts[drawn[row, j]]) for j in range(m) if valid[1 + j]]
        place = row // n * n + batch.negatives.poison[row]
        own = int(hash_of(batch.ids.instruction[row]))
        poison = int(of_row[place]) if valid[0] else None
        found[int(of_row[row])] = texts[queries[row]], own, sampled, poison
    return found


@pytest.fixture
def varied(opened):
    return opened(more_templates=TEMPLATES, paraphrases=1, drop_instructions=0.3)


def test_texts_are_the_tokenizers_of_one_wording(varied, examples, tokenizer):
    loader = make(varied, instruction_negatives=1, row_tokens=128)
    written = {text_hash(p.instruction): p.instruction for e in examples.values() for p in pairs(e)}

    def text(query, instruction, template, wording):
        if wording and instruction:
            instruction = perturbed(instruction, "paraphrase", "1")
        limits = TextConfig(template, max_query_tokens=32)
        return tuple(tokenizer.queries([(query, instruction)], limits)[0].tolist())

    seen, dropped, total = set(), 0, 0
    for step in range(12):
        numbers = loader.example_indices(step)
        for pair, (tokens, own, sampled, poison) in rows_of(
            loader.host_batch(step), loader.layout
        ).items():
            example = examples[loader.dataset.read([numbers[pair // 3]])[0].id]
            instruction, query = pairs(example)[pair % 3][:2]
            total += 1
            if own == text_hash(""):
                # as a pair without instruction, with nothing that swaps its instruction
                assert tokens == text(query, "", TEMPLATES[0], 0)
                assert not sampled
                assert poison is None
                dropped += 1
                continue
            assert own == text_hash(instruction)  # whatever the wording
            [kind] = [
                (template, wording)
                for template in TEMPLATES
                for wording in (0, 1)
                if text(query, instruction, template, wording) == tokens
            ]
            seen.add(kind)
            assert poison == {0: pair + 1, 1: pair - 1, 2: None}[pair % 3]
            [(digest, other)] = sampled
            assert digest != own
            assert other == text(query, written[digest], *kind)  # in the pair's own wording
    assert len(seen) == 4
    assert 0.2 < dropped / total < 0.4


def test_siblings_lose_their_instructions_together(varied):
    loader = make(varied, instruction_negatives=1, row_tokens=128)
    lost = np.stack([loader.assignment(s).instructions.hashes for s in range(40)])
    lost = (lost == np.uint64(text_hash(""))).reshape(-1, 3)
    np.testing.assert_array_equal(lost[:, 0], lost[:, 1])
    assert (lost[:, 0] != lost[:, 2]).any()


def test_wordings_do_not_depend_on_chunks_or_hosts(varied):
    def look(chunks, hosts):
        parts = [
            make(varied, chunks=chunks, mine=mine, instruction_negatives=1, row_tokens=128)
            for mine in np.split(np.arange(chunks), hosts)
        ]
        found = {}
        for loader in parts:
            batch = loader.host_batch(7)
            rows = rows_of(batch, loader.layout)
            assert not rows.keys() & found.keys()
            found |= rows
        return found

    one = look(1, 1)
    assert len(one) == 18
    assert look(2, 1) == look(2, 2) == look(3, 3) == one


def test_mean_lengths_and_rows_are_those_of_what_is_drawn(varied):
    loader = make(varied, steps=3, row_tokens=128)
    tokens = [(b.texts.segments > 0).sum() for b in map(loader.host_batch, range(3))]
    assert loader.plan.tokens == pytest.approx(np.mean(tokens))
    assert loader.plan.exact


def test_a_mixture_draws_from_the_same_wordings(opened, tiny_config, tmp_path):
    one = opened(more_templates=TEMPLATES[1:], drop_instructions=0.5)
    assert isinstance(one, VariedDataset)
    root = tmp_path / "data"
    for name in ("a", "b"):
        target = root / "inf_ir" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(f"{tiny_config.data.dir}/inf_ir/inf_ir")
    mixed = opened(dir=str(root), mixture="a:1,b:1")
    loader = make(mixed, mixture=True, batch_size=8)
    batch = loader.host_batch(1)
    lost = hash_of(batch.ids.instruction)[batch.valid] == text_hash("")
    assert 0 < lost.sum() < 24
    assert sorted(np.unique(batch.sources[batch.valid])) == [0, 1]
    assert mixed.fingerprint.count("|") == 2


def test_without_keys_the_split_is_the_plain_one(opened, tiny_config, tokenizer):
    tiny_config.data.max_query_tokens = 16
    plain = tokenised_split(run_config(tiny_config), tokenizer, "train")
    found = opened(max_query_tokens=16)
    assert type(found) is type(plain)
    assert found.fingerprint == plain.fingerprint


@pytest.mark.parametrize("query_encoder", [Joint, Attention])
def test_all_instructions_can_be_dropped(opened, query_encoder):
    bare = opened(drop_instructions=1.0)
    batch = make(bare, query_encoder=query_encoder()).host_batch(0)
    hashes = hash_of(batch.ids.instruction)[batch.valid]
    assert (hashes == np.uint64(text_hash(""))).all()


def test_poisoned_pairs_can_be_left_out(opened, examples):
    alone = opened(poisoned_pairs=False)
    assert alone.pairs_per_example == 1
    loader = make(alone, batch_size=8, pairs_per_example=1)
    batch, numbers = loader.host_batch(2), loader.example_indices(2)
    firsts = [pairs(examples[r.id])[0] for r in alone.read(numbers)]
    assert sorted(hash_of(batch.ids.passage)[batch.valid]) == sorted(
        text_hash(p.passage) for p in firsts
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more_templates": ("{query}",)}, r"more_templates: .*'\{query\}' must hold"),
        ({"paraphrases": -1}, r"paraphrases=-1: must not be negative"),
        ({"paraphrases": 10**9}, r"paraphrases=1000000000: each is a copy .*; at most 100"),
        ({"drop_instructions": 1.5}, r"drop_instructions=1\.5: must be in \[0, 1\]"),
        ({"paraphrases": 1, "shuffle": "windows"}, r"several copies of the split; set 'global'"),
    ],
)
def test_impossible_values_are_refused(opened, changes, message):
    with pytest.raises(UserError, match=message):
        opened(**changes)


def test_a_resumed_run_must_have_all_of_its_wordings(opened, tiny_config, tokenizer):
    found = opened(paraphrases=1, drop_instructions=0.1)
    again = training_wordings(run_config(tiny_config), tokenizer, expected=found.fingerprint)
    assert again.fingerprint == found.fingerprint
    first, other, last = found.fingerprint.split("|")
    with pytest.raises(UserError, match="not the data of the resumed run"):
        training_wordings(run_config(tiny_config), tokenizer, expected=f"{first}|{last}|{other}")


def test_the_query_alone_is_one_pair_more(opened, examples):
    more = opened(query_alone=True)
    assert more.pairs_per_example == 4
    loader = make(more, batch_size=4, pairs_per_example=4, queries_alone=True, row_tokens=128)
    batch, numbers = loader.host_batch(1), loader.example_indices(1)
    first = [pairs(examples[r.id])[0] for r in more.read(numbers)]
    alone = batch.queries_alone
    for hashes, texts in (
        (batch.ids.query, [p.query for p in first]),
        (batch.ids.passage, [p.passage for p in first]),
        (batch.ids.instruction, [""] * 4),
    ):
        assert sorted(hash_of(hashes)[alone]) == sorted(map(text_hash, texts))
    assert batch.valid[alone].all()
    assert opened(poisoned_pairs=False).pairs_per_example == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paraphrases": 1, "drop_instructions": 0.5}, r"^data\.paraphrases=1 data\.drop_instr"),
        ({"query_alone": True}, r"^data\.query_alone=True: no pair of .* has an instruction"),
        ({"more_templates": ("a {query} {instruction}",)}, ""),
    ],
)
def test_instructions_that_there_are_none_of_are_not_varied(
    tiny_config, tokenizer, tmp_path, changes, message
):
    """In a new run; one that is resumed goes on."""
    plain = [PairExample(f"{n}", (Pair("", f"disease {n}", f"It is {n}."),)) for n in range(30)]
    make_dataset(tmp_path / "inf_ir" / "plain" / "1.0.0", {"train": [plain]})
    tiny_config.data.update({"dir": str(tmp_path), "source": "plain", **changes})
    tiny_config.train.batch_size = 4
    config = run_config(tiny_config)
    make_loader(config, tokenizer, devices=1, order=ORDER)
    if not message:
        make_loader(config, tokenizer, devices=1)
        return
    with pytest.raises(UserError, match=message):
        make_loader(config, tokenizer, devices=1)
