from inf_jax.core.cli_flags import hyphenated


def test_flags_get_hyphens_and_nothing_else_does():
    argv = ["build", "a_b", "--data_dir=a_b", "--path_dev", "a_b", "--dry-run"]
    config = ["--config=a_b.py", "--config.data.train_split=a_b"]
    changed = ["build", "a_b", "--data-dir=a_b", "--path-dev", "a_b", "--dry-run"]
    rest = ["--", "--data_dir=a_b"]
    assert hyphenated([*argv, *config, *rest]) == [*changed, *config, *rest]
