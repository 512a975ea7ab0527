"""The tasks that --suite names: public benchmarks, tasks of mteb, and directories."""

from pathlib import Path

from inf_jax.benchmarks.beir_files import read_beir
from inf_jax.benchmarks.hub_tasks import infosearch_sources, mair_sources
from inf_jax.benchmarks.mteb_tasks import SUITES, mteb_sources
from inf_jax.benchmarks.task import TaskSource
from inf_jax.core.errors import UserError

_BY_PART = {"mair": mair_sources, "infosearch": infosearch_sources}
NAMES_OF_SUITES = (*SUITES, *_BY_PART)


def task_sources(
    names: list[str], data_dir: Path, *, split: str = "test", identical_ids: str | None = None
) -> list[TaskSource]:
    """The tasks of suites, in order.

    Args:
      names: of suites (`NAMES_OF_SUITES`), of one task of two of them (mair/IFEval,
        infosearch/Audience-v1), of tasks of mteb, or directories in BEIR's layout; with another
        "/" or a "." in front a name is a directory.
      data_dir: where the public benchmarks' files are, repository by repository.
      split, identical_ids: of directories, see `read_beir`.

    Raises:
      UserError: no such suite, task or directory, files that are missing, or two of one name.
    """
    sources: list[TaskSource] = []
    for name in names:
        path = Path(name).expanduser()
        suite, _, part = name.partition("/")
        if suite in _BY_PART:
            sources += _BY_PART[suite](data_dir, part)
        elif name not in SUITES and path.is_dir():
            sources.append(
                TaskSource(
                    path.resolve().name,
                    "local",
                    lambda path=path: read_beir(path, split=split, identical_ids=identical_ids),
                )
            )
        elif "/" in name or name.startswith("."):
            raise UserError(f"--suite: {name} is not a directory")
        else:
            sources += mteb_sources(name, data_dir)
    seen: set[str] = set()
    for source in sources:
        if source.name in seen:
            raise UserError(f"--suite: two tasks are called {source.name}; rename one")
        seen.add(source.name)
    return sources
