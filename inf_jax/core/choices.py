"""The allowed values of configuration keys that choose among implementations.

The code behind a choice keeps a table with exactly these names; tests compare the two. They stand
here, without jax, so that a command line is checked before anything heavy is imported.
"""

TOWERS = ("shared", "separate")
QUERY_ENCODERS = ("joint", "attention")
ATTENTION_MASKS = ("model", "causal", "bidirectional")
POOLINGS = ("mean", "cls", "last", "weighted_mean")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
APPEND_EOS = ("auto", "always", "never")
DTYPES = ("float32", "bfloat16")
AUTO = "auto"  # of keys that are settled when a run starts (training.automatic)
REMAT_POLICIES = ("none", "dots", "ffn", "sums", "full", "offload")  # each keeps less than the last
RETRIEVAL_METRICS = (  # names in a run's metrics; higher is better
    "dev/ndcg@10",
    "dev/recall@1",
    "dev/mrr@10",
    "dev/within_focus_accuracy",
    "dev/p_mrr",
    "dev/robustness@10",
)
IDENTICAL_IDS = ("keep", "ignore")
ATTENTIONS = ("auto", "xla", "splash", "cudnn")
GATHERS = ("auto", "layer", "step", "weights")
SHUFFLES = ("auto", "global", "windows")  # of data.shuffle
SCHEDULES = ("linear", "cosine", "constant")
OPTIMISERS = ("adamw", "lamb", "lion", "adafactor", "muon")
LR_SCALINGS = ("none", "sqrt", "linear")
MIXTURE_BATCHES = ("mixed", "homogeneous")
AT_MAX_EPOCHS = ("refuse", "leave")
