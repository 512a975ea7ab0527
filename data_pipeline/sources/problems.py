"""Reads (problem, solution) pairs from MetaMathQA and LeetCode files, subsets of InF-IR.

The problem statement is the query, the solution the passage (arXiv 2505.21439).
"""

import functools

from data_pipeline.sources import fields

# MetaMathQA (arXiv 2309.12284), including its single JSON array. Many questions occur several
# times with different solutions.
read_metamath = functools.partial(fields.read, fields={"query": "query", "passage": "response"})

# Field names differ among collections of LeetCode problems: LeetCodeDataset (arXiv 2504.14655;
# versions 0.1 and 0.2 have the texts under "meta"), and collections with the site's own "content"
# and a solution per language. A plain statement is preferred to a whole prompt, an explained
# solution to bare code.
_STATEMENTS = "problem_description content description statement question query meta.query"
_SOLUTIONS = "response meta.response solution answer python code completion"
read_leetcode = functools.partial(
    fields.read, fields={"query": _STATEMENTS.split(), "passage": _SOLUTIONS.split()}
)
