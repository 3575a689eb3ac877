"""YAML 1.2 scalars, and none of YAML's traps: duplicate keys, clever booleans, octal zeros, exploding aliases.

PyYAML speaks YAML 1.1, where ``1e-4`` is a string, ``no`` is false and ``010`` is eight. The loader here reads the
core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), with ``1_000`` allowed as in Python.
"""

import re
from typing import Any

import yaml

from jaxrun.process.errors import UserError

MAX_NODES = 100_000
_MOST_DIGITS = 1_000
"""Of an integer; Python writes none out that has more than 4,300."""
_DIGITS = r"[0-9](?:_?[0-9])*"
_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


_PLAIN = {f"tag:yaml.org,2002:{tag}": re.compile(rf"^(?:{pattern})$") for tag, pattern, _ in _SCALARS}
_TAGS = {*_PLAIN, "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first_characters in _SCALARS:
        for character in first_characters:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"))
            table.setdefault("" if character == "\0" else character, []).append(entry)
    return table


def _quoting_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    old, new = yaml.SafeDumper.yaml_implicit_resolvers, _resolvers()
    return {character: [*new.get(character, []), *old.get(character, [])] for character in {*new, *old}}


class _Loader(yaml.SafeLoader):
    """Reads the YAML 1.2 core schema."""

    yaml_implicit_resolvers = _resolvers()

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        if len(text) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text):,} digits", node.start_mark)
        return int(text, base)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers = _quoting_resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escapes Unicode's own line breaks, which any other style would fold into spaces."""
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def parse_yaml(text: str, source: str) -> Any:
    """Returns the plain data in `text`: dicts with string keys, lists, strings, ints, floats, bools and None.

    Args:
        text: One YAML document.
        source: What to call the text in messages, e.g. a file name.

    Raises:
        UserError: Broken syntax, a tag that is not of the core schema, a duplicate or non-string key, or aliases that
            expand beyond `MAX_NODES` nodes; the message holds the line number.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, source, {}, ())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{source}{at}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{source}:{line}: not valid YAML: a control character, expected plain text") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply, expected a config of a few levels") from error


def dump_yaml(data: Any) -> str:
    """Returns block-style YAML that `parse_yaml` reads back to the same plain data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _count_nodes(node: yaml.Node, source: str, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Returns how many nodes `node` stands for once its aliases are written out, refusing what no config needs."""
    line = node.start_mark.line + 1
    if id(node) in above:
        raise UserError(f"{source}:{line}: an alias that contains itself, expected a plain value")
    if id(node) in sizes:
        return sizes[id(node)]
    _check_tag(node, source)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        children = [value for _, value in node.value]
        _check_keys(node, source)
    size = 1 + sum(_count_nodes(child, source, sizes, (*above, id(node))) for child in children)
    if size > MAX_NODES:
        raise UserError(f"{source}:{line}: aliases expand to more than {MAX_NODES} values, expected fewer")
    sizes[id(node)] = size
    return size


def _check_tag(node: yaml.Node, source: str) -> None:
    """Refuses tags that make something else than plain data, and those that the value does not fit."""
    fits = node.tag not in _PLAIN or (isinstance(node, yaml.ScalarNode) and _PLAIN[node.tag].match(node.value))
    if node.tag not in _TAGS or not fits:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise UserError(f"{source}:{node.start_mark.line + 1}: not valid YAML: the tag {tag}, expected a plain value")


def _check_keys(node: yaml.MappingNode, source: str) -> None:
    first_line: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or a section"
            raise UserError(f"{source}:{line}: key {shown} is not a string, expected a name (in quotes if need be)")
        if key.value in first_line:
            raise UserError(
                f"{source}:{line}: duplicate key '{key.value}', already given on line {first_line[key.value]}"
            )
        first_line[key.value] = line
