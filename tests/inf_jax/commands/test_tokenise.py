"""The command tokenise."""

import shutil


def test_main_tokenises_the_train_split_and_reports(tiny_config, tmp_path, capsys):
    from inf_jax.tokenise import main

    shutil.copytree(tiny_config.data.dir, tmp_path / "data")
    tiny_config.data.dir = str(tmp_path / "data")
    main(tiny_config)
    first = capsys.readouterr().out
    assert "train: 60 examples" in first and "180" in first
    assert f"tokenised records: {tmp_path / 'data' / 'tokenised' / 'inf_ir' / 'train-'}" in first
    main(tiny_config)
    assert "tokenised already" in capsys.readouterr().out
