"""Reader of the user's YAML, with checks of the types of the keys that we read.

We read these keys before Axolotl validates the YAML.
"""

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import RunDirectory

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault

RL_TYPE = "t_spin"
PLUGIN = "axolotl_tspin.TSpinPlugin"
EXAMPLE = "such as `- {path: train.jsonl, type: t_spin.chat_template}`"

RawConfig = MutableMapping[str, Any]
"""A YAML's keys and values before Axolotl has validated them."""


def _must_be(kind: type, expected: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"is {_kind(value)}; expected {expected}")
        return value

    return BeforeValidator(check)


def _named_path(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"is {_kind(value)}; expected a file, a folder or a name on the hub, {EXAMPLE}"
        )
    return value


class DataSet(BaseModel):
    """An entry of `datasets`."""

    path: Annotated[str, BeforeValidator(_named_path)] = Field(default="", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _has_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"is {_kind(value)}; expected a data set's keys, {EXAMPLE}")
        return {"path": value.get("path")}


Text = Annotated[Any, _must_be(str, "text")]
Names = Annotated[Any, _must_be(list, f"a list, such as `plugins: [{PLUGIN}]`")]
Keys = Annotated[Any, _must_be(Mapping, "keys and values")]
DataSets = Annotated[list[DataSet] | None, _must_be(list, f"a list of data sets, {EXAMPLE}")]


class Shape(BaseModel):
    """The types of the keys that we read before Axolotl has validated them."""

    base_model: Text = None
    output_dir: Text = None
    plugins: Names = None
    lora_model_dir: Text = None
    dataset_prepared_path: Text = None
    t_spin: Keys = None
    accelerator_config: Keys = None
    peft: Keys = None
    datasets: DataSets = None
    test_datasets: DataSets = None


def read_keys(path: str | Path) -> dict[str, Any]:
    """Read a YAML as the user wrote it, without Axolotl; TSpinError unless it has `rl: t_spin`
    and the plugin."""
    content = parse_yaml(path)
    if content.get("rl") != RL_TYPE:
        raise TSpinError(f"{path}: `rl: {content.get('rl')}`; `axolotl t-spin` needs `rl: t_spin`")
    check_shape(content, f"{path}: ")
    _check_plugin(content, path)
    return content


def read_yaml(path: str | Path) -> "DictDefault":
    """Read a YAML as `read_keys` does, into the dictionary that Axolotl takes."""
    from axolotl.utils.dict import DictDefault

    return DictDefault(read_keys(path))


def _check_plugin(content: Mapping[str, Any], path: str | Path) -> None:
    named = [str(name) for name in content.get("plugins") or []]
    if not any(name.endswith(".TSpinPlugin") for name in named):
        raise TSpinError(
            f"{path}: add `plugins: [{', '.join([*named, PLUGIN])}]`; without the plugin Axolotl "
            "does not know `rl: t_spin`"
        )


def inspect_run(cfg: RawConfig) -> tuple[TSpinConfig, RunDirectory]:
    """Get a YAML's settings and its run directory, without reading the rest."""
    if not cfg.get("output_dir"):
        raise TSpinError("`output_dir` is missing from the YAML; `rl: t_spin` needs it")
    config = parse_t_spin(cfg)
    return config, RunDirectory(cfg["output_dir"], config.reference_window)


def parse_t_spin(cfg: RawConfig) -> TSpinConfig:
    """Read the `t_spin` block, or its defaults; TSpinError names what is wrong in it."""
    block = cfg.get("t_spin") or {}
    try:
        return TSpinConfig.model_validate(plain(block))
    except ValidationError as error:
        problems = [
            f"{'.'.join(['t_spin', *map(str, e['loc'])])}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise TSpinError("; ".join(problems)) from error


def parse_yaml(path: str | Path) -> dict[str, Any]:
    """Parse a file into keys and values.

    Raises:
        TSpinError: the file cannot be read, is not valid YAML, or does not hold keys.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TSpinError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TSpinError(
            f"{path} is not text in UTF-8 (byte {error.start}); expected the YAML that "
            "`axolotl train` takes"
        ) from error
    except yaml.YAMLError as error:
        raise TSpinError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        held = "nothing" if content is None else _kind(content)
        raise TSpinError(
            f"{path} holds {held}; expected keys and values (`base_model: …`), as "
            "`axolotl train` takes them"
        )
    return content


def check_shape(cfg: Mapping[str, Any], where: str = "") -> None:
    """Check the types of the keys that we read.

    Args:
        where: text in the error before the key, such as the file's name.

    Raises:
        TSpinError: names the key, what it holds and what is expected.
    """
    try:
        Shape.model_validate({key: cfg.get(key) for key in Shape.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        key, *rest = first["loc"]
        place = str(key) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in rest)
        problem = first["msg"].removeprefix("Value error, ")
        raise TSpinError(f"{where}`{place}` {problem}") from error


def plain(value: Any) -> Any:
    """Convert Axolotl's dictionaries to plain ones, at every depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _kind(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Mapping):
        return "a block of keys" if value else "an empty block"
    if isinstance(value, list):
        return "a list"
    return "missing" if value is None or value == "" else f"`{value}`"
