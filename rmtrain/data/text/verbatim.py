"""Chat templates that write the contents of messages as they are and never look at them: equal roles, equal text around the contents."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, TemplateSyntaxError, nodes

MARK = re.compile(r"\x00(\d+)\x00")
LOOP_NUMBERS = ("first", "last", "index", "index0", "revindex", "revindex0", "length")
STATEMENTS = (nodes.Output, nodes.For, nodes.If, nodes.Assign, nodes.Continue, nodes.Break)


@dataclass(frozen=True, slots=True)
class Form:
    """A conversation without its contents: the texts before, between and after them, one more than there are messages."""

    around: tuple[str, ...]

    def text(self, contents: Sequence[str]) -> str:
        """The conversation with these contents."""
        return "".join([part for pair in zip(self.around, [*contents, ""], strict=True) for part in pair])

    def position(self, contents: Sequence[str]) -> int:
        """Where the content that follows these begins in the text."""
        return sum(map(len, self.around[: len(contents) + 1])) + sum(map(len, contents))


def marked(number: int) -> str:
    """What stands for the content of a message while a form is made."""
    return f"\x00{number}\x00"


def form_of(text: str, messages: int) -> Form | None:
    """The form of a conversation with marked contents; None where a content is not written once, and in turn."""
    parts = MARK.split(text)
    return Form(tuple(parts[::2])) if parts[1::2] == [str(number) for number in range(messages)] else None


def writes_contents_as_they_are(template: str) -> bool:
    """Whether all that a template does with the content of a message is to write it.

    Told from the syntax: `message.content` stands only where it is written, alone or added to other text, and messages are only looped
    over, counted, indexed, and asked for their role and content. No block is captured, so what is written stays. In doubt it is False.
    """
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:
        return False
    return all(isinstance(node, STATEMENTS) for node in tree.find_all(nodes.Stmt)) and _Uses(tree).are_plain()


class _Uses:
    """How the names of a template are used."""

    def __init__(self, tree: nodes.Template) -> None:
        self.names = list(tree.find_all(nodes.Name))
        self.parents = {id(child): node for node in tree.find_all(nodes.Node) for child in node.iter_child_nodes()}
        outputs = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
        self.written = {id(node) for part in outputs for node in _written(part)}
        loops = [loop for loop in tree.find_all(nodes.For) if _is_name(loop.iter, "messages")]
        self.messages = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}

    def are_plain(self) -> bool:
        return all(self._is_plain(name, self.parents[id(name)]) for name in self.names)

    def _is_plain(self, name: nodes.Name, parent: nodes.Node) -> bool:
        if name.name == "loop":
            return isinstance(parent, nodes.Getattr) and parent.attr in LOOP_NUMBERS
        if name.name == "messages":
            return (
                (isinstance(parent, nodes.For) and parent.iter is name and isinstance(parent.target, nodes.Name))
                or (isinstance(parent, nodes.Filter) and parent.name in ("length", "count"))
                or (isinstance(parent, nodes.Getitem) and _is_index(parent.arg) and self._is_field(parent))
            )
        if name.name in self.messages:
            return (
                isinstance(parent, nodes.For) and parent.target is name and _is_name(parent.iter, "messages")
            ) or self._is_field(name)
        return True

    def _is_field(self, message: nodes.Node) -> bool:
        """Whether a message is asked for its role, or for its content in order to write it."""
        access = self.parents[id(message)]
        if isinstance(access, nodes.Getattr):
            field = access.attr
        elif isinstance(access, nodes.Getitem) and access.node is message and isinstance(access.arg, nodes.Const):
            field = access.arg.value
        else:
            return False
        return field == "role" or (field == "content" and id(access) in self.written)


def _written(node: nodes.Node) -> Iterator[nodes.Node]:
    """The parts of an expression that are written as they are, one after the other."""
    if isinstance(node, nodes.Concat):
        parts = node.nodes
    elif isinstance(node, nodes.Add):
        parts = [node.left, node.right]
    elif isinstance(node, nodes.CondExpr):
        parts = [part for part in (node.expr1, node.expr2) if part is not None]
    else:
        yield node
        return
    for part in parts:
        yield from _written(part)


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _is_index(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) or (isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const))
