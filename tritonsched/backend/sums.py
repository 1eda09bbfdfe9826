"""What several servers say, as one answer. Rule: pure; counts are added, lists are united, and what
cannot be read is left as the first server said it.

Source: Triton's statistics and model repository extensions, in JSON and as messages.
"""

from collections.abc import Iterable, Sequence
from typing import Any

Json = dict[str, Any]
_LATEST = "last_inference"
_SIZE = "batch_size"
_READY = "READY"


# -- JSON -----------------------------------------------------------------------------------------


def json_statistics(answers: Sequence[Json]) -> Json:
    """Of `GET v2/models/stats`: each version once. Raises LookupError or TypeError."""
    versions: dict[tuple[str, str], Json] = {}
    for answer in answers:
        for version in answer["model_stats"]:
            key = (version["name"], version["version"])
            versions[key] = _added(versions[key], version) if key in versions else version
    return {**answers[0], "model_stats": [*versions.values()]}


def _added(left: Json, right: Json) -> Json:
    return {**left, **{key: _sum(key, left.get(key), value) for key, value in right.items()}}


def _sum(key: str, left: Any, right: Any) -> Any:
    if isinstance(left, dict) and isinstance(right, dict):
        return _added(left, right)
    if isinstance(left, list) and isinstance(right, list):
        return _by_size(left, right) if key == "batch_stats" else left + right
    if not isinstance(left, int) or not isinstance(right, int) or key == _SIZE:
        return right if left is None else left
    return max(left, right) if key == _LATEST else left + right


def _by_size(left: list[Json], right: list[Json]) -> list[Json]:
    sizes = {batch[_SIZE]: batch for batch in left}
    for batch in right:
        size = batch[_SIZE]
        sizes[size] = _added(sizes[size], batch) if size in sizes else batch
    return [sizes[size] for size in sorted(sizes)]


def json_index(answers: Iterable[list[Json]]) -> list[Json]:
    """Of `POST v2/repository/index`: each model and version once, the one that is ready if any."""
    found: dict[tuple[str, str], Json] = {}
    for answer in answers:
        for model in answer:
            key = (model["name"], model.get("version", ""))
            if key not in found or model.get("state") == _READY:
                found[key] = model
    return [found[key] for key in sorted(found)]


# -- messages -------------------------------------------------------------------------------------


def add_statistics(into: Any, other: Any) -> None:
    """Add a ModelStatisticsResponse to another one."""
    versions = {(stats.name, stats.version): stats for stats in into.model_stats}
    for stats in other.model_stats:
        mine = versions.get((stats.name, stats.version))
        if mine is None:
            into.model_stats.add().CopyFrom(stats)
        else:
            _add(mine, stats)


def _add(into: Any, other: Any) -> None:
    for field, value in other.ListFields():
        name = field.name
        if name == "batch_stats":
            _add_by_size(into.batch_stats, value)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in value:
                _add(getattr(into, name)[key], value[key])
        elif hasattr(value, "extend"):
            getattr(into, name).extend(value)
        elif field.message_type is not None:
            _add(getattr(into, name), value)
        elif isinstance(value, int) and name != _SIZE:
            mine = getattr(into, name)
            setattr(into, name, max(mine, value) if name == _LATEST else mine + value)


def _add_by_size(into: Any, other: Any) -> None:
    sizes = {batch.batch_size: batch for batch in into}
    for batch in other:
        mine = sizes.get(batch.batch_size)
        if mine is None:
            into.add().CopyFrom(batch)
        else:
            _add(mine, batch)


def add_index(into: Any, other: Any) -> None:
    """Unite a RepositoryIndexResponse with another one."""
    known = {(model.name, model.version): model for model in into.models}
    for model in other.models:
        mine = known.get((model.name, model.version))
        if mine is None:
            into.models.add().CopyFrom(model)
        elif model.state == _READY:
            mine.CopyFrom(model)
