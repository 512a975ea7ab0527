"""Problems and their solutions: the paper's subsets besides MS MARCO (arXiv 2505.21439).

The problem's statement is the query, the solution the passage.
"""

import functools

from data_pipeline.sources import fields

# MetaMathQA (arXiv 2309.12284), also as its one JSON array. It asks many a question several times,
# each time with another solution.
read_metamath = functools.partial(fields.read, fields={"query": "query", "passage": "response"})

# Collections of LeetCode problems differ: LeetCodeDataset (arXiv 2504.14655; versions 0.1 and 0.2
# keep the texts under "meta"), and those with the site's own "content" and a solution a language.
# The plain statement goes before a whole prompt, an explained solution before bare code.
read_leetcode = functools.partial(
    fields.read,
    fields={
        "query": (
            "problem_description",
            "content",
            "description",
            "statement",
            "question",
            "query",
            "meta.query",
        ),
        "passage": (
            "response",
            "meta.response",
            "solution",
            "answer",
            "python",
            "code",
            "completion",
        ),
    },
)
