"""Final results of requests from the journal."""

from data_pipeline.llm.ask import recorded_result
from data_pipeline.llm.journal import ANSWER, UNKNOWN, UNPAID, Journal, Received, Sent


def test_the_result_of_recorded_attempts(tmp_path):
    journal = Journal(tmp_path / "j")

    def add(key, outcome, text=""):
        sent = Sent(journal.new_id(), key, "judge", "m", 0.1)
        journal.write([sent, Received(sent.id, outcome, text)])

    assert recorded_result(journal, "k", 2) is None
    for outcome in (UNPAID, UNKNOWN, "schema"):
        add("k", outcome)
        assert recorded_result(journal, "k", 2) is None
    add("k", "refusal")
    assert recorded_result(journal, "k", 2).failure == "refusal"
    assert recorded_result(journal, "k", 3) is None
    add("k", ANSWER, "{}")
    assert recorded_result(journal, "k", 2).text == "{}"
    journal.close()
